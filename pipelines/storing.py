"""Moves snapshots and releases between folders and buckets, whole: what is moved is there complete or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.bucket_folder import bucket_behind, upload
from datasets.durable import flush_folder, read_records
from datasets.errors import OfflineDqnError
from datasets.object_store import ObjectStore
from datasets.snapshot import DESCRIPTION, ERASED, changed_files, erased_mark, open_snapshot
from datasets.snapshot_bucket import store_erasure, store_snapshot
from datasets.splits import SPLITS, ledger_from, read_ledger
from pipelines.workspace import Workspace
from reports.manifest import MANIFEST, Manifest, read_manifest
from reports.release_records import HISTORY, JOURNAL, LAPSES, LEDGER, REJECTIONS, RELEASES, entry

_RECORDS = (LEDGER, REJECTIONS, LAPSES, HISTORY)


class StoringError(OfflineDqnError):
    """Something that cannot be moved; where it was, it still is."""


@dataclass(frozen=True)
class Place:
    """Where one of the three lies.

    Attributes:
        name: "lake", "snapshots" or "releases".
        place: as `[store]` has it.
        copy: the folder of this machine's copy; "" where it lies in the workspace.
        n_objects, n_bytes: in the bucket; None where it lies in the workspace.
    """

    name: str
    place: str
    copy: str
    n_objects: int | None
    n_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Moved:
    """What was moved.

    Attributes:
        releases: their numbers.
        snapshots: their names.
        to: by kind, where it lies now.
    """

    releases: tuple[int, ...]
    snapshots: tuple[str, ...]
    to: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"releases": list(self.releases), "snapshots": list(self.snapshots), "to": self.to}


def places(workspace: Workspace) -> list[Place]:
    """Where snapshots and releases lie; each bucket is asked, and shown to keep the conditions of a write.

    Raises:
        ObjectStoreError: a bucket cannot be asked, or does not keep them.
    """
    store, found = workspace.config.store, []
    for name, folder in (("snapshots", workspace.snapshots_path), ("releases", workspace.releases_path)):
        behind = bucket_behind(folder)
        if behind is None:
            found.append(Place(name, getattr(store, name), "", None, None))
            continue
        behind.store.check_conditions()
        listed = behind.store.list()
        size = sum(stored.n_bytes for stored in listed)
        found.append(Place(name, getattr(store, name), str(folder), len(listed), size))
    return found


def upload_folders(workspace: Workspace, *, snapshots: Path | None, releases: Path | None) -> Moved:
    """Copies snapshots and releases from folders into the buckets that `[store]` names. The folders stay as they are.

    Killed and repeated, it goes on, also where other machines have gone on with what was there by then. The caller
    holds the workspace's lock.

    Raises:
        StoringError: a bucket holds other releases already, something is damaged, or there is nothing to copy.
        ObjectStoreError: a bucket cannot be used.
    """
    frozen: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    to: dict[str, str] = {}
    if snapshots is not None:
        behind = bucket_behind(workspace.snapshots_path)
        if behind is None or not snapshots.is_dir() or bucket_behind(snapshots) is not None:
            raise StoringError(_nothing("snapshots", snapshots, workspace))
        frozen, to["snapshots"] = tuple(_upload_snapshots(behind.store, snapshots)), str(behind.store.address)
    if releases is not None:
        behind = bucket_behind(workspace.releases_path)
        if behind is None or not releases.is_dir() or releases == workspace.releases_path:
            raise StoringError(_nothing("releases", releases, workspace))
        numbers, to["releases"] = _upload_releases(behind.store, releases), str(behind.store.address)
    workspace.follow_buckets()
    return Moved(numbers, frozen, to)


def download_folders(workspace: Workspace, *, snapshots: Path | None, releases: Path | None) -> Moved:
    """Copies snapshots and releases out of their buckets into new folders, whole. The buckets stay as they are.

    Raises:
        StoringError: they lie in the workspace already, or a folder exists.
        SnapshotError, ObjectStoreError: a bucket does not hold what was stored.
    """
    frozen: list[str] = []
    numbers: tuple[int, ...] = ()
    to: dict[str, str] = {}
    for target in (snapshots, releases):
        if target is not None and target.exists():
            raise StoringError(f"{target} exists already; nothing was copied. Move it away, or name another folder.")
    if snapshots is not None:
        if bucket_behind(workspace.snapshots_path) is None:
            raise StoringError("[store] snapshots is a folder of the workspace already; nothing was copied.")
        for path in sorted(workspace.snapshots_path.glob(f"[!.]*/{DESCRIPTION}")):
            if erased_mark(path.parent) is None:
                open_snapshot(path.parent)  # fetches and checks every file of it
                frozen.append(path.parent.name)
        _copy(workspace.snapshots_path, snapshots)
        to["snapshots"] = str(snapshots)
    if releases is not None:
        if bucket_behind(workspace.releases_path) is None:
            raise StoringError("[store] releases is a folder of the workspace already; nothing was copied.")
        with workspace.registry.locked():
            _copy(workspace.releases_path, releases)
        numbers, to["releases"] = tuple(workspace.releases_on_disk()), str(releases)
    return Moved(numbers, tuple(frozen), to)


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, ignore=shutil.ignore_patterns(".*"))
    flush_folder(beside)
    beside.replace(target)


def _upload_snapshots(store: ObjectStore, folder: Path) -> Iterator[str]:
    splits = folder / SPLITS
    if splits.exists() and not store.put_if_absent(SPLITS, splits.read_bytes()) and not _covers(store, folder):
        raise StoringError(
            f"{store.address} holds snapshots that are split by rules or nights of their own; those in {folder} cannot "
            "join them: episodes that trained would judge. Choose another prefix."
        )
    for path in sorted({each.parent for name in (DESCRIPTION, ERASED) for each in folder.glob(f"[!.]*/{name}")}):
        mark = erased_mark(path)
        if mark is not None:
            store_erasure(store, path.name, mark)
            continue
        changed = changed_files(path)
        if changed:
            raise StoringError(f"{path / changed[0]} is not what was frozen; restore it, or delete that snapshot.")
        store_snapshot(store, path, json.loads((path / DESCRIPTION).read_text())["files"])
        yield path.name


def _covers(store: ObjectStore, folder: Path) -> bool:
    """Whether what the bucket's snapshots have fixed holds for those in a folder, too: they were there before."""
    own, there = read_ledger(folder), ledger_from(store.get(SPLITS).decode(), f"{store.address}/{SPLITS}")
    return own is None or (own.rule == there.rule and there.merged(own) == there)


def _upload_releases(store: ObjectStore, folder: Path) -> tuple[int, ...]:
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    manifests = {number: _whole(folder / str(number)) for number in numbers}
    records = [(record, line) for record in _RECORDS for line in read_records(folder / f"{record}.jsonl")]
    if store.find(JOURNAL) is not None:
        if _begins_with(store, manifests, records):
            return tuple(numbers)  # an upload was cut off behind its last step, or is typed again
        raise StoringError(
            f"{store.address} holds releases already, and those in {folder} are not the ones that it began with. They "
            "cannot join them, for both have their own numbers and their own error ledger. Choose another prefix."
        )
    lines = [entry(RELEASES, _upload_release(store, folder / str(n), manifest)) for n, manifest in manifests.items()]
    lines += [entry(record, line) for record, line in records]
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    if not lines or not store.put_if_absent(JOURNAL, content):  # the one moment at which all of it is there
        raise StoringError(
            f"{folder} holds no release, or another machine has filled {store.address} meanwhile; its releases stand."
        )
    return tuple(numbers)


def _begins_with(
    store: ObjectStore, manifests: Mapping[int, Manifest], records: Sequence[tuple[str, Mapping[str, Any]]]
) -> bool:
    """Whether the journal in the bucket begins with exactly these releases and decisions, as an upload writes them."""
    wanted = [(RELEASES, {"release": n, "digest": manifest.digest}) for n, manifest in manifests.items()]
    there = [json.loads(line) for line in store.get(JOURNAL).splitlines()[: len(wanted) + len(records)]]
    found = [(line["record"], line["line"]) for line in there]
    of_releases = [(record, {key: line.get(key) for key in ("release", "digest")}) for record, line in found]
    return bool(wanted) and of_releases[: len(wanted)] == wanted and found[len(wanted) :] == list(records)


def _upload_release(store: ObjectStore, folder: Path, manifest: Manifest) -> dict[str, Any]:
    registered, evaluated = (uuid.uuid4().hex[:12] for _ in range(2))
    upload(store, f"{manifest.release}/{registered}", folder, manifest.files)
    last = evaluated if manifest.evaluation_files else registered
    upload(store, f"{manifest.release}/{last}", folder, manifest.evaluation_files)
    store.put(f"{manifest.release}/{last}/{MANIFEST}", manifest.text().encode())
    return {"release": manifest.release, "digest": manifest.digest, "registered": registered, "upload": last}


def _whole(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    damage = "release.json is missing or unreadable" if manifest is None else manifest.damage(folder)
    if manifest is None or damage:
        raise StoringError(f"{folder} is not what was registered: {damage}. Restore it first; nothing was copied.")
    return manifest


def _nothing(kind: str, folder: Path, workspace: Workspace) -> str:
    place = getattr(workspace.config.store, kind)
    if "://" not in place:
        return (
            f"[store] {kind} is the folder '{place}'; nothing was copied. Name a bucket there first: {kind} = "
            '"s3://BUCKET/PREFIX".'
        )
    return f"{folder} holds no {kind} that could be copied to {place}. Name their folder with --{kind}."
