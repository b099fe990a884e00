"""The copy of a bucket's lake on this machine: Delta tables as of any other lake, brought up to the bucket's journal.

Queries, snapshots and everything else read the copy. It is never ahead of the bucket: a commit is made there first, and
then learned here like that of any other machine. Cut off at any moment, it leaves the mark of an unfinished commit, and
the next one to open the lake brings the copy up to whatever the journal says by then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.contract import contract_from_json
from datasets.durable import flush_to_disk, write_durably
from datasets.history import purge_history
from datasets.journal import (
    LakeError,
    Retired,
    StagedFile,
    commit_table,
    delta_table,
    end_journal,
    flush_log,
    journal_path,
)
from datasets.lake_bucket import LakeBucket, News, OtherLakeError, digest_of, new_entry
from datasets.lake_shape import CONTRACTED, files_of, is_form, shape_tables
from datasets.lake_state import LakeFile, LakeState, SideFile
from datasets.object_store import ObjectMissingError
from datasets.tables import TABLES

ABOUT = "lake.json"
"""The file in which a lake says which format it has, and under which contract its rows were written."""

ERASED = "erased.json"
"""The file in which a lake remembers who was erased."""

HELD = "_held"
"""The folder in which held batches wait."""

_MIRROR = "_mirror.json"


@dataclass(frozen=True)
class Mirror:
    """What this machine knows of the bucket.

    Attributes:
        address: of the bucket's lake.
        machine: a random id of this copy; one that was copied with its folder is told by `holder_of`.
        state: the lake as the copy has it; None where it has nothing yet.
        tag: the store's mark of the entry that led to it.
        seen: size and time of change (ns) of the files beside the tables, when they were last as in `state`.
    """

    address: str
    machine: str
    state: LakeState | None = None
    tag: str = ""
    seen: Mapping[str, tuple[int, int]] | None = None


def read_mirror(root: Path) -> Mirror | None:
    """What a folder is a copy of; None where it is none."""
    path = root / _MIRROR
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    state = LakeState.from_json(values["state"]) if values["state"] else None
    seen = {side: (size, at) for side, (size, at) in values["seen"].items()}
    return Mirror(values["address"], values["machine"], state, values["tag"], seen)


def start_mirror(root: Path, address: str) -> Mirror:
    """What the folder is a copy of; one that holds no lake becomes an empty copy of that address.

    Raises:
        LakeError: it holds a lake of its own, or a copy of another one.
    """
    known = read_mirror(root)
    if known is None:
        if (root / ABOUT).exists():
            raise LakeError(
                f"{root} holds a lake of its own, and [store] lake names {address}. Take it there with `offline-dqn "
                "lake upload`, or move the folder away."
            )
        known = Mirror(address, uuid.uuid4().hex, seen={})
        _write_mirror(root, known)
    if known.address != address:
        raise LakeError(
            f"{root} is this machine's copy of the lake {known.address}, and [store] lake names {address}. Remove the "
            "folder, which is only a copy, or set the address back."
        )
    return known


def holder_of(root: Path) -> str:
    """An id of this copy in this place, for a lease: a copy of the copy, such as a restored backup, has another one.

    The machine's boot, its name and the folder's number on its disk are part of it. After a reboot it is another id,
    and a lease of before is waited for.

    Raises:
        LakeError: the folder is no copy.
    """
    known = read_mirror(root)
    if known is None:
        raise LakeError(f"{root} is no copy of a lake in a bucket.")
    boot, at = Path("/proc/sys/kernel/random/boot_id"), root.stat()
    place = (socket.gethostname(), boot.read_text().strip() if boot.exists() else "", at.st_dev, at.st_ino)
    return f"{known.machine}-{hashlib.sha256(repr(place).encode()).hexdigest()[:16]}"


def become_mirror(root: Path, address: str, news: News) -> None:
    """Makes a folder that holds the same lake already a copy of it. The caller holds its lock."""
    _write_mirror(root, Mirror(address, uuid.uuid4().hex, news.state, news.tag, _seen(root, news.state.sides)))


def refuse_mirror(root: Path) -> None:
    """Raises a LakeError where the folder is a copy of a lake in a bucket, and was opened as a lake of its own."""
    known = read_mirror(root)
    if known is not None:
        raise LakeError(
            f"{root} is this machine's copy of the lake {known.address}. Set [store] lake to that address. To leave "
            f"the bucket and go on with the copy alone, remove {root / _MIRROR}; nothing is shared from then on."
        )


def known_state(root: Path) -> LakeState:
    """The lake as a folder has a copy of it."""
    known = _known(root)
    assert known.state is not None
    return known.state


def is_behind(root: Path, bucket: LakeBucket) -> bool:
    """Whether the copy lacks a commit, or is one that was cut off.

    Raises:
        LakeError: the folder is no copy of this bucket's lake.
    """
    known = read_mirror(root)
    if known is None or known.address != str(bucket) or journal_path(root).exists():
        return True
    return _news(root, bucket, known, None) is not None


def publish_contract(root: Path, bucket: LakeBucket, content: bytes, *, grows: bool) -> None:
    """Commits another contract. The caller has made sure that the tables can take its form.

    Args:
        grows: whether the tables grow; else those that the contract shapes are empty, and made anew.

    Raises:
        CommitConflictError: another machine was faster.
    """
    known = known_state(root)
    outgrown = {table: known.tables.get(table, {}) for table in CONTRACTED}
    added, removed = dict[str, tuple[LakeFile, ...]](), dict[str, tuple[str, ...]]()
    if grows:  # a machine without a copy has to learn that there are files with the columns of before
        forms = {table: [f for f in _forms(root, table) if f.name not in outgrown[table]] for table in CONTRACTED}
        added = bucket.upload_files(forms)
    else:
        removed = {table: tuple(files) for table, files in outgrown.items() if files}
    sides = {ABOUT: bucket.upload_side(ABOUT, content)}
    bucket.publish(new_entry(known.number + 1, added=added, removed=removed, sides=sides), known)


def _forms(root: Path, table: str) -> list[StagedFile]:
    """The empty files with a table's columns."""
    found = [(file, Retired.at(table, file)) for file in files_of(delta_table(root, table)) if is_form(file)]
    return [StagedFile(Path(file), at.name, at.partition, 0) for file, at in found]


def bring_up(
    root: Path,
    bucket: LakeBucket,
    *,
    staged: Mapping[str, Path] | None = None,
    until: int | None = None,
) -> bool:
    """Brings the copy up to the bucket's last commit; returns whether there was anything to do.

    The caller holds the lock of the folder.

    Args:
        staged: files that need not be fetched, by key of their object.
        until: the last commit that is asked for.

    Raises:
        LakeError: an object was altered, or is gone though the lake rests on it.
        OtherLakeError: the bucket holds another lake than this folder is a copy of.
    """
    known = start_mirror(root, str(bucket))
    is_cut_off = journal_path(root).exists()
    while True:
        news = _news(root, bucket, known, until)
        if news is None:
            if not is_cut_off or known.state is None:
                return False
            news = News(known.state, known.tag, same_rows=True, purge=frozenset(), gone={})
        try:
            _learn(root, bucket, known, news, staged or {})
            return True
        except ObjectMissingError as error:
            # Removed by a commit that came after the journal was read: then there is something newer to learn.
            later = _news(root, bucket, known, until)
            if later is None or later.state.number == news.state.number:
                raise LakeError(
                    f"{error} Commit {news.state.number} of the lake rests on it. Restore it from a backup or the "
                    "bucket's own versions; no command of offline-dqn deletes what the lake rests on."
                ) from error


def _known(root: Path) -> Mirror:
    known = read_mirror(root)
    assert known is not None
    return known


def _news(root: Path, bucket: LakeBucket, known: Mirror, until: int | None) -> News | None:
    try:
        return bucket.news(known.state, known.tag, until=until)
    except OtherLakeError as error:
        raise OtherLakeError(f"{error} The copy is {root}.") from error


def _learn(root: Path, bucket: LakeBucket, known: Mirror, news: News, staged: Mapping[str, Path]) -> None:
    state = news.state
    write_durably(journal_path(root), json.dumps({"number": state.number, "from": str(bucket)}))
    before = known.state or LakeState(state.lake_id, -1)
    changed = {path: side for path, side in state.sides.items() if before.sides.get(path) != side}
    _take_contract(root, bucket, state.sides[ABOUT])
    for table in TABLES:
        _learn_table(root, bucket, table, state, news, staged)
    bucket.download((side, root / path) for path, side in changed.items() if path != ABOUT)
    _remove_sides(root, before.sides.keys() - state.sides.keys())
    if news.purge:
        purge_history(root, [table for table in TABLES if table in news.purge])
        shutil.rmtree(root / "_identities", ignore_errors=True)  # hashes of identities, those of purged rows among them
        bucket.collect_garbage(state)  # whoever committed it may have died before that
    _write_mirror(root, replace(known, state=state, tag=news.tag, seen=_seen(root, state.sides)))
    end_journal(root)


def _take_contract(root: Path, bucket: LakeBucket, about: SideFile) -> None:
    path = root / ABOUT
    if path.exists() and digest_of(path) == about.digest:
        return
    content = bucket.content_of(about)
    wanted = contract_from_json(json.loads(content)["contract"], f"{bucket}/{about.key}")
    before = contract_from_json(json.loads(path.read_text())["contract"], str(path)) if path.exists() else None
    shape_tables(root, before, wanted)
    write_durably(path, content)


def _learn_table(
    root: Path, bucket: LakeBucket, table: str, state: LakeState, news: News, staged: Mapping[str, Path]
) -> None:
    wanted = state.tables.get(table, {})
    present = {Retired.at(table, file).name for file in files_of(delta_table(root, table))}
    # The empty file with a table's columns is of this machine: it goes where an entry names it.
    leaving = {name for name in present - wanted.keys() if not is_form(name) or name in news.gone.get(table, ())}
    arriving = [file for name, file in wanted.items() if name not in present]
    _fetch(root / table, bucket, arriving, staged)
    if not arriving and not leaving and table != "steps":
        return
    changes: dict[str, list[dict[str, Any]]] = {
        "add": [
            {"name": f.name, "n_bytes": f.n_bytes, "partition": dict(f.partition), "n_rows": f.n_rows} for f in arriving
        ],
        "remove": [{"name": name, "partition": _partition(name)} for name in sorted(leaving)],
    }
    commit_table(root, table, changes, state.number, same_rows=news.same_rows)
    flush_log(root, table)  # before the mark goes, by which it would be done again


def _fetch(folder: Path, bucket: LakeBucket, files: Iterable[LakeFile], staged: Mapping[str, Path]) -> None:
    missing = list[tuple[LakeFile, Path]]()
    folders = {folder}
    for file in files:
        target = folder / file.name
        source = staged.get(file.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            flush_to_disk(source)
            source.replace(target)
            folders.add(target.parent)
        elif not target.exists() or target.stat().st_size != file.n_bytes:
            missing.append((file, target))
            folders.add(target.parent)
    bucket.download(missing)
    for changed in folders:
        flush_to_disk(changed)


def _partition(name: str) -> dict[str, str]:
    return dict(folder.split("=", 1) for folder in Path(name).parts[:-1])


# --- files beside the tables


def side_paths(root: Path) -> dict[str, Path]:
    """The files beside the tables that all machines share, by path inside the lake's folder."""
    held = [*(root / HELD).rglob("*.parquet"), *(root / HELD).glob("*/validation.json")]
    found = [root / ABOUT, root / ERASED, *held]
    return {path.relative_to(root).as_posix(): path for path in found if path.is_file()}


def changed_sides(root: Path) -> dict[str, Path | None]:
    """The files beside the tables that differ from those of the known state; None for one that is gone."""
    known = _known(root)
    assert known.state is not None
    present = side_paths(root)
    changed: dict[str, Path | None] = dict.fromkeys(known.state.sides.keys() - present.keys())
    for name, path in present.items():
        side = known.state.sides.get(name)
        if side is None or (_stat(path) != (known.seen or {}).get(name) and digest_of(path) != side.digest):
            changed[name] = path
    return changed


def upload_sides(root: Path, bucket: LakeBucket) -> dict[str, SideFile | None]:
    """Brings what has changed beside the tables into the bucket, ready to be named by an entry."""
    changed = changed_sides(root)
    return {name: bucket.upload_side(name, path) if path is not None else None for name, path in changed.items()}


def revert_sides(root: Path, bucket: LakeBucket) -> None:
    """Sets the files beside the tables back to what all machines share: what a process that died had begun."""
    known = read_mirror(root)
    if known is None or known.state is None:
        return
    changed, sides = changed_sides(root), known.state.sides
    _remove_sides(root, {name for name in changed if name not in sides})
    bucket.download([(sides[name], root / name) for name in changed if name in sides])
    held = root / HELD
    named = {Path(name).parts[1] for name in sides if Path(name).parts[0] == HELD}
    for folder in list(held.iterdir()) if held.exists() else []:
        if folder.name not in named:
            shutil.rmtree(folder)


def _remove_sides(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).unlink(missing_ok=True)
        for folder in (root / name).parents:  # what is left of a held batch has no file any more
            if folder in (root, root / HELD) or not folder.is_dir() or list(folder.rglob("*.parquet")):
                break
            shutil.rmtree(folder)


def _seen(root: Path, sides: Iterable[str]) -> dict[str, tuple[int, int]]:
    return {name: _stat(root / name) for name in sides}


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _write_mirror(root: Path, mirror: Mirror) -> None:
    values: dict[str, Any] = {
        "address": mirror.address,
        "machine": mirror.machine,
        "state": mirror.state.to_json() if mirror.state else None,
        "tag": mirror.tag,
        "seen": dict(mirror.seen or {}),
    }
    write_durably(root / _MIRROR, json.dumps(values))
