"""Snapshots in a bucket. An object says what stands under a name, and it is written last and only by who saw it before.

    index/<name>.json     {"state": "frozen", "files": <id>, ...}, or "erased", or "retired"
    <name>/<id>/<file>    the files of one upload; nobody writes there twice
    splits.json           what the snapshots have fixed of the splits

The folder here is a copy. What describes a snapshot comes when a workspace is opened, its arrays when somebody opens
the snapshot, each file compared with the digest that was sealed. Where the folder is no copy, nothing here does
anything.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datasets.bucket_folder import BucketFolder, bucket_behind, delete_folder, download, upload
from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from datasets.object_store import ObjectMissingError, ObjectStore

DESCRIPTION = "snapshot.json"
EPISODES = "episodes.parquet"
ERASED = "erased.json"
"""What is left of a snapshot whose episodes were erased."""
COVERAGE_TABLE = "coverage.parquet"
COVERAGE_SUMMARY = "coverage.json"
_LIGHT = (COVERAGE_TABLE, COVERAGE_SUMMARY)
"""What comes when a workspace is opened, not only when the snapshot is."""

_INDEX = "index"
STORED = ".stored.json"
"""In a snapshot's folder: which upload it is a copy of, and the tag of the object that says so."""
_RETIRED = ".retired.json"
"""Beside the snapshots: the tags of those that are gone by age."""
_UNCHECKED = ".unchecked-"
"""How a file beside the snapshots begins that names one which was stored and not yet searched for who was erased
meanwhile."""
_STRAY_AFTER = timedelta(days=1)
_LOCK_WAIT_S = 60.0

Pointer = dict[str, Any]


class ReplacedSnapshotError(OfflineDqnError):
    """A snapshot that cannot be stored under its name any more."""


def pull_snapshots(folder: Path) -> None:
    """Brings the descriptions of all snapshots up to what the bucket says; erased and retired ones go from here, too.

    Raises:
        ObjectStoreError: the bucket cannot be asked.
    """
    behind = bucket_behind(folder)
    if behind is None:
        return
    with _copying(folder):
        retired = _read_json(folder / _RETIRED)
        for listed in behind.store.list(_INDEX):
            name = listed.key.removeprefix(f"{_INDEX}/").removesuffix(".json")
            if listed.tag not in (_read_json(folder / name / STORED).get("tag"), retired.get(name)):
                _follow(behind, folder / name)


def publish_snapshot(path: Path, files: Mapping[str, str]) -> None:
    """Uploads a snapshot that was just frozen, unless it is stored already: its files, and last what points at them.

    It counts as unchecked then, until `set_checked`.

    Args:
        path: its folder.
        files: SHA-256 by name, without the description.

    Raises:
        ReplacedSnapshotError: episodes of it were erased.
        ObjectStoreError: it could not be uploaded. Nobody sees any of it; repeated, it is uploaded anew.
    """
    behind = bucket_behind(path.parent)
    if behind is not None:
        write_durably(_unchecked_mark(path), "")
        store_snapshot(behind.store, path, files)
        _remember(behind.store, path)


def unchecked_snapshots(folder: Path) -> list[Path]:
    """Snapshots that this machine has stored, or was about to, and not yet searched for who was erased meanwhile."""
    marks = sorted(folder.glob(f"{_UNCHECKED}*"))
    return [mark.with_name(mark.name.removeprefix(_UNCHECKED)) for mark in marks]


def set_checked(path: Path) -> None:
    """That nobody is in a snapshot who was erased while it was frozen."""
    _unchecked_mark(path).unlink(missing_ok=True)


def _unchecked_mark(path: Path) -> Path:
    return path.with_name(f"{_UNCHECKED}{path.name}")


def store_snapshot(store: ObjectStore, path: Path, files: Mapping[str, str]) -> None:
    """As `publish_snapshot`, from any folder that holds a snapshot whole."""
    now, _ = _pointer(store, path.name)
    if now.get("state") != "frozen":
        upload_id = uuid.uuid4().hex[:12]
        at = f"{path.name}/{upload_id}"
        upload(store, at, path, [*files, DESCRIPTION])
        frozen = {
            "state": "frozen",
            "files": upload_id,
            "light": {name: files[name] for name in _LIGHT if name in files},
            "frozen_at": datetime.fromtimestamp((path / DESCRIPTION).stat().st_mtime, UTC).isoformat(),
        }
        now = _change(store, path.name, lambda known: None if known.get("state") in _STANDS else frozen)
        if now.get("files") != upload_id:
            delete_folder(store, at)
    if now["state"] == "erased":
        raise ReplacedSnapshotError(
            f"{store.address}/{path.name} was erased while this machine froze it: episodes of it had to go. Freeze "
            "again; the lake is without them."
        )


def fetch_files(path: Path, files: Mapping[str, str]) -> None:
    """Fetches files (SHA-256 by name) of a snapshot into its folder, where the bucket has it.

    Raises:
        AlteredObjectError, ObjectMissingError: the bucket does not hold what was frozen.
    """
    behind = bucket_behind(path.parent)
    stored = _read_json(path / STORED)
    if behind is None or "files" not in stored:
        return
    download(behind.store, f"{path.name}/{stored['files']}", path, files)


def publish_erasures(folder: Path, marks: Iterable[Path]) -> None:
    """Puts marks of erased snapshots in the place of what the bucket has of them, whose files then go.

    Killed anywhere and repeated, it ends in the same.
    """
    behind = bucket_behind(folder)
    if behind is None:
        return
    for mark in marks:
        if "erased" not in _read_json(mark.parent / STORED):
            store_erasure(behind.store, mark.parent.name, json.loads(mark.read_text()))
            tag = _pointer(behind.store, mark.parent.name)[1]
            write_durably(mark.parent / STORED, json.dumps({"tag": tag, "erased": True}))


def store_erasure(store: ObjectStore, name: str, mark: Mapping[str, Any]) -> None:
    """Puts the mark of an erased snapshot in the place of what a bucket has under its name, whose files then go."""

    def erased(known: Pointer) -> Pointer | None:
        return None if known.get("state") == "erased" else {"state": "erased", "mark": dict(mark)}

    _change(store, name, erased)
    delete_folder(store, name)


def retire_snapshot(path: Path) -> None:
    """Takes an aged snapshot from the bucket; whoever freezes the same content again stores it anew."""
    behind = bucket_behind(path.parent)
    if behind is None:
        return
    gone: list[str] = []

    def retired(known: Pointer) -> Pointer | None:
        gone[:] = [known["files"]] if known.get("state") == "frozen" else []
        return {"state": "retired", "at": datetime.now(UTC).isoformat()} if gone else None

    _change(behind.store, path.name, retired)
    for upload_id in gone:
        delete_folder(behind.store, f"{path.name}/{upload_id}")


def sweep_uploads(folder: Path, now: datetime | None = None) -> int:
    """Deletes what uploads that were cut off more than a day ago have left in the bucket; returns how many objects."""
    behind = bucket_behind(folder)
    if behind is None:
        return 0
    before = (now or datetime.now(UTC)) - _STRAY_AFTER
    listed = behind.store.list()
    named = {stored.key for stored in listed if stored.key.startswith(f"{_INDEX}/")}
    kept: dict[str, str | None] = {}
    strays = []
    for stored in listed:
        name, _, rest = stored.key.partition("/")
        if not rest or name == _INDEX or stored.modified_at > before:
            continue
        if name not in kept:
            pointer = _pointer(behind.store, name)[0] if f"{_INDEX}/{name}.json" in named else {}
            kept[name] = pointer.get("files")
        if rest.partition("/")[0] != kept[name]:
            strays.append(stored.key)
    behind.store.delete(strays)
    return len(strays)


def shared_text(path: Path) -> tuple[str | None, str | None]:
    """A small file beside the snapshots as it stands now, where it lies, and its tag in the bucket.

    Returns:
        Text and tag; None for each that there is not.
    """
    behind = bucket_behind(path.parent)
    if behind is None:
        return (path.read_text() if path.exists() else None), None
    try:
        content, tag = behind.store.get_tagged(path.name)
    except ObjectMissingError:
        return None, None
    return content.decode(), tag


def replace_shared_text(path: Path, text: str, tag: str | None) -> bool:
    """Writes such a file, if in the bucket it still is what `tag` marks; returns whether it was."""
    behind = bucket_behind(path.parent)
    if behind is not None:
        content = text.encode()
        store = behind.store
        put = store.put_if_absent(path.name, content) if tag is None else store.put_if_match(path.name, content, tag)
        if not put:
            return False
    write_durably(path, text)
    return True


# --- what stands under a name

_STANDS = ("frozen", "erased")


def _pointer(store: ObjectStore, name: str) -> tuple[Pointer, str | None]:
    try:
        content, tag = store.get_tagged(f"{_INDEX}/{name}.json")
    except ObjectMissingError:
        return {}, None
    found: Pointer = json.loads(content)
    return found, tag


def _change(store: ObjectStore, name: str, decide: Callable[[Pointer], Pointer | None]) -> Pointer:
    """Lets `decide` replace what stands under a name, again where somebody was faster; None leaves it as it is."""
    key = f"{_INDEX}/{name}.json"
    while True:
        now, tag = _pointer(store, name)
        wanted = decide(now)
        if wanted is None:
            return now
        content = json.dumps({**wanted, "id": uuid.uuid4().hex}).encode()
        if store.put_if_absent(key, content) if tag is None else store.put_if_match(key, content, tag):
            return wanted


def _follow(behind: BucketFolder, path: Path) -> None:
    """One snapshot's folder by what the bucket says of it."""
    pointer, tag = _pointer(behind.store, path.name)
    stored: dict[str, Any] = {"tag": tag}
    if pointer.get("state") == "frozen":
        path.mkdir(parents=True, exist_ok=True)
        at = f"{path.name}/{pointer['files']}"
        stored["files"] = pointer["files"]
        description = behind.store.get(f"{at}/{DESCRIPTION}")
        download(behind.store, at, path, pointer["light"])
        write_durably(path / DESCRIPTION, description)  # last: without it the folder is no snapshot
        made = datetime.fromisoformat(pointer["frozen_at"]).timestamp()
        os.utime(path / DESCRIPTION, (made, made))
    elif pointer.get("state") == "erased":
        stored["erased"] = True
        write_durably(path / ERASED, json.dumps(pointer["mark"], indent=1))
        for left in [left for left in path.iterdir() if left.name not in (ERASED, STORED)]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
        retired = _read_json(path.parent / _RETIRED)
        write_durably(path.parent / _RETIRED, json.dumps({**retired, path.name: tag}))
        return
    write_durably(path / STORED, json.dumps(stored))


def _remember(store: ObjectStore, path: Path) -> None:
    """That a folder is a copy of what stands under its name, where it has the same files."""
    pointer, tag = _pointer(store, path.name)
    try:
        same = store.get(f"{path.name}/{pointer['files']}/{DESCRIPTION}") == (path / DESCRIPTION).read_bytes()
    except (KeyError, ObjectMissingError):
        return
    if same:
        write_durably(path / STORED, json.dumps({"tag": tag, "files": pointer["files"]}))


def _read_json(path: Path) -> dict[str, Any]:
    """What this machine remembers; {} where it does not, and then the bucket is asked again."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _copying(folder: Path) -> AbstractContextManager[None]:
    folder.mkdir(parents=True, exist_ok=True)
    return exclusive_lock(folder / ".copy.lock", f"The copy of the snapshots in {folder}", wait_s=_LOCK_WAIT_S)


def replacing(folder: Path) -> AbstractContextManager[None]:
    """Held while a snapshot's folder is replaced by another, so that nobody writes a description into it meanwhile."""
    return _copying(folder) if bucket_behind(folder) is not None else nullcontext()
