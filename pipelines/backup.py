"""A workspace as one file, and back: what cannot be made anew, as it was at one instant, every byte checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from datasets.durable import flush_folder, flush_to_disk
from datasets.errors import OfflineDqnError
from datasets.lake import folder_lock
from datasets.locking import exclusive_lock
from pipelines.workspace import Workspace, check_no_workspace
from reports.registry import VOUCHED
from reports.shared_tracking import IDENTITY, TrackingError

MANIFEST = "backup.json"
"""The last entry of an archive: size and SHA-256 of every other. One without it was cut off."""

DERIVED = frozenset({"lake.duckdb", "checkpoints", "tensorboard", ".prefect", ".engine", IDENTITY})
"""What a workspace makes anew when it is missing; a backup leaves it out."""

_OF_A_MOMENT = (".lock", "_lock", ".part", ".db-wal", ".db-shm", ".db-journal")
"""Locks, files that are being written, and what SQLite keeps beside a database, whose copy holds what is in them."""

_FORMAT = 1
_BLOCK = 1 << 20


class BackupError(OfflineDqnError):
    """An archive that cannot be made, or that does not hold what was backed up."""


@dataclass(frozen=True)
class Backup:
    """What an archive holds.

    Attributes:
        problem: name of the decision problem.
        n_bytes: of the files in it.
        warning: what could not be taken along; "" for nothing.
    """

    problem: str
    created_at: datetime
    n_files: int
    n_bytes: int
    warning: str = ""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}


def back_up(workspace: Workspace, archive_path: Path, *, at: datetime | None = None) -> Backup:
    """Writes a workspace into a new tar archive, while neither a night nor an ingest nor a promotion changes it.

    Logs that a server appends to meanwhile are taken as long as they are when their turn comes. Keys live in the
    environment and are not in it.

    Args:
        archive_path: must not exist; written beside it first, so that it is there whole or not at all.
        at: when it is made; default now.

    Raises:
        BackupError: the archive exists, lies in the workspace, or would lie in a folder that does not exist.
        LockedError: a night or an ingest is at work.
        OSError: such as a full disk; nothing is left.
    """
    target = archive_path.absolute()
    if target.exists():
        raise BackupError(f"{target} exists already; nothing was written. Name a new file.")
    if target.resolve().is_relative_to(workspace.root):
        raise BackupError(
            f"{target} lies in the workspace itself: the next backup would hold this one. Name a file elsewhere."
        )
    created_at = (at or datetime.now(UTC)).astimezone(UTC)
    if not target.parent.is_dir():
        raise BackupError(
            f"{target.parent} does not exist, and is not made: where a disk is not mounted, the backup would fill the "
            f"one below. Mount it, or make the folder: mkdir -p {target.parent}"
        )
    beside = target.with_name(f".{target.name}.part")
    files: dict[str, dict[str, object]] = {}
    try:
        with _unchanged(workspace), tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as archive:
            vouched, warning = _vouched(workspace)
            vouched_name = f"{workspace.config.store.releases}/{VOUCHED}"
            for name, path in _kept(workspace):
                if not vouched or name != vouched_name:
                    files[name] = _add(archive, name, path)
            if vouched:
                archive.addfile(_entry(vouched_name, len(vouched)), io.BytesIO(vouched))
                files[vouched_name] = {"bytes": len(vouched), "sha256": hashlib.sha256(vouched).hexdigest()}
            described = {
                "format": _FORMAT,
                "problem": workspace.contract.name,
                "created_at": created_at.isoformat(),
                "files": files,
            }
            content = json.dumps(described).encode()
            archive.addfile(_entry(MANIFEST, len(content)), io.BytesIO(content))
        flush_to_disk(beside)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_to_disk(target.parent)
    return replace(_described(described), warning="; ".join(filter(None, [warning, _elsewhere(workspace)])))


def restore(archive_path: Path, root: Path) -> Backup:
    """Makes the folder `root` from an archive; it is there whole, every byte checked, or not at all.

    Args:
        root: must not exist, or be empty.

    Raises:
        BackupError: the archive is none of ours, cut off or altered, or `root` holds something.
    """
    target = root.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        check_no_workspace(target)
        raise BackupError(f"{target} is not empty; nothing was restored. Name a new folder.")
    beside = target.with_name(f".{target.name}.restoring-{os.getpid()}")
    try:
        done = _read(archive_path, beside)
        flush_folder(beside)
        if target.exists():
            target.rmdir()
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    flush_to_disk(target.parent)
    return done


def check(archive_path: Path) -> Backup:
    """Reads a whole archive and compares every byte's digest with what was backed up; writes nothing.

    Raises:
        BackupError: as `restore`.
    """
    return _read(archive_path, None)


@contextmanager
def _unchanged(workspace: Workspace) -> Iterator[None]:
    """Lake, snapshots and registry at rest: those who change them take these locks."""
    with ExitStack() as held:
        held.enter_context(exclusive_lock(workspace.root / ".lock", f"The workspace {workspace.root}", wait_s=0.0))
        if workspace.lake_path.is_dir():
            held.enter_context(folder_lock(workspace.lake_path, wait_s=60.0))
        if workspace.releases_path.is_dir():
            held.enter_context(workspace.registry.locked())
        yield


def _vouched(workspace: Workspace) -> tuple[bytes, str]:
    """What a registry outside the workspace vouches for; and what is wrong with that, in words."""
    if workspace.registry.shared is None or not workspace.releases_path.is_dir():
        return b"", ""
    if workspace.config.store.releases_address is not None:
        return b"", ""  # the journal beside them does
    try:
        digests = {str(number): sorted(known) for number, known in workspace.registry.vouched().items()}
    except TrackingError as error:
        return b"", f"releases are restored as their folders are, for nobody vouched for them: {error}"
    return json.dumps(digests).encode(), ""


def _elsewhere(workspace: Workspace) -> str:
    """What lies in a bucket and is not in the archive, as a clause; "" for nothing."""
    address = workspace.config.store.snapshots_address
    if address is None:
        return ""
    return f"the snapshots stay in {address} and are not in the archive; have that bucket keep versions"


def _kept(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """Name and path of every file that is backed up, in the order of their names.

    A linked folder is entered, since logs or releases may lie on another disk, but not one that holds the link itself.
    """
    root, store = workspace.root, workspace.config.store
    # A copy of part of what lies in a bucket is no backup of it. That of the releases is whole.
    copy = workspace.snapshots_path if store.snapshots_address is not None else None
    for folder, folders, names in os.walk(root, followlinks=True):
        at = Path(folder)
        top, here = at == root, at.resolve()
        folders[:] = sorted(
            n
            for n in folders
            if not (top and n in DERIVED)
            and not n.startswith(".staging-")
            and at / n != copy
            and not ((at / n).is_symlink() and here.is_relative_to((at / n).resolve()))
        )
        for name in sorted(names):
            if name.endswith(_OF_A_MOMENT) or (top and name in DERIVED):
                continue
            yield (at / name).relative_to(root).as_posix(), at / name


def _add(archive: tarfile.TarFile, name: str, path: Path) -> dict[str, object]:
    if path.suffix == ".db":
        content = _database(path)
        archive.addfile(_entry(name, len(content)), io.BytesIO(content))
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # what is appended from now on belongs to the next backup
        hashed = _Hashing(file)
        archive.addfile(_entry(name, size), hashed)
    return {"bytes": size, "sha256": hashed.digest.hexdigest()}


def _database(path: Path) -> bytes:
    """A SQLite database as of its last transaction, whoever has it open."""
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        source.backup(copy)
        return copy.serialize()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.digest.update(block)
        return block


def _read(archive_path: Path, into: Path | None) -> Backup:
    """Reads every entry of an archive, writes them to a folder if there is one, and compares them with the manifest."""
    found: dict[str, dict[str, object]] = {}
    described: Any = None
    try:
        with tarfile.open(archive_path, "r:") as archive:
            for entry in archive:
                path = PurePosixPath(entry.name)
                if not entry.isfile() or path.is_absolute() or ".." in path.parts or entry.name in found:
                    raise BackupError(
                        f"{archive_path} is no backup of a workspace: its entry {entry.name[:80]!r} is no plain file "
                        "inside it. Nothing was written."
                    )
                file = archive.extractfile(entry)
                assert file is not None  # it is a file
                if entry.name == MANIFEST:
                    described = json.load(file)
                    continue
                found[entry.name] = _copied(file, None if into is None else into / path)
    except FileNotFoundError as error:
        raise BackupError(f"{archive_path} does not exist. Name a file that `offline-dqn backup` wrote.") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BackupError(f"{archive_path} cannot be read as a backup: {error}. {_ANOTHER}") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        what = "it was cut off" if described is None else f"its format is {described.get('format')!r}, not {_FORMAT}"
        raise BackupError(f"{archive_path} holds no whole backup: {what}. {_ANOTHER}")
    wanted = described["files"]
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise BackupError(f"{archive_path} is not what was backed up: {shown} differ or are missing. {_ANOTHER}")
    return _described(described)


_ANOTHER = "Nothing was restored; use another backup."


def _copied(file: IO[bytes], to: Path | None) -> dict[str, object]:
    hashed, size = _Hashing(file), 0
    with ExitStack() as opened:
        written = None
        if to is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            written = opened.enter_context(to.open("wb"))
        while block := hashed.read(_BLOCK):
            size += len(block)
            if written is not None:
                written.write(block)
    return {"bytes": size, "sha256": hashed.digest.hexdigest()}


def _described(manifest: dict[str, Any]) -> Backup:
    files = manifest["files"].values()
    return Backup(
        problem=str(manifest["problem"]),
        created_at=datetime.fromisoformat(manifest["created_at"]),
        n_files=len(files),
        n_bytes=sum(int(entry["bytes"]) for entry in files),
    )
