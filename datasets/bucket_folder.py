"""A folder that is a copy of what lies in a bucket: it says so itself, so that whoever uses it asks the bucket.

The bucket decides and the folder only spares asking twice: it may be deleted at any time, and fills again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.durable import write_durably
from datasets.object_store import ObjectMissingError, ObjectStore, ObjectStoreError, open_store

_MARK = ".bucket.json"
_OWNER = "owner.json"
_FORMAT = 1


class WrongBucketError(ObjectStoreError):
    """What lies at an address belongs to another decision problem, or is something else."""


class AlteredObjectError(ObjectStoreError):
    """An object whose bytes are not those that were stored."""


@dataclass(frozen=True)
class BucketFolder:
    """A folder and what it is a copy of.

    Attributes:
        folder: the copy.
        store: the objects, by their keys below the address.
    """

    folder: Path
    store: ObjectStore

    def name_of(self, key: str) -> str:
        """An object for a message."""
        return f"{self.store.address}/{key}"


def follow_bucket(folder: Path, address: str, *, kind: str, problem: str) -> BucketFolder:
    """Makes `folder` a copy of what lies at an address, which it claims for a decision problem if nobody has.

    Args:
        kind: what lies there, such as "releases".
        problem: name of the decision problem whose it is.

    Raises:
        WrongBucketError: something else lies there.
        ObjectStoreError: the bucket cannot be used, or does not keep the conditions of a write.
    """
    wanted = {"format": _FORMAT, "address": address, "kind": kind, "problem": problem}
    followed = BucketFolder(folder, _store(address, _environment()))
    try:
        marked = _read(folder / _MARK)
    except WrongBucketError:
        marked = None  # half written, or damaged: it is written anew
    if marked != wanted:
        _claim(followed, {name: wanted[name] for name in ("format", "kind", "problem")})
        write_durably(folder / _MARK, json.dumps(wanted, indent=1))
    return followed


def bucket_behind(folder: Path) -> BucketFolder | None:
    """What a folder is a copy of; None where it is the place itself.

    Raises:
        ObjectStoreError: the store's client is not installed, or cannot be set up by the environment.
    """
    marked = _read(folder / _MARK)
    return BucketFolder(folder, _store(str(marked["address"]), _environment())) if marked is not None else None


def upload(store: ObjectStore, at: str, folder: Path, names: Iterable[str]) -> None:
    """Writes files of a folder into the folder `at` of a bucket, where nobody else writes."""
    for name in names:
        store.put(f"{at}/{_inside(name)}", folder / name)


def download(store: ObjectStore, at: str, folder: Path, files: Mapping[str, str]) -> None:
    """Fetches files (SHA-256 by name) into a folder; each is there with exactly these bytes, or not at all.

    Raises:
        AlteredObjectError: an object has other bytes.
        ObjectMissingError: there is no such object.
    """
    for name, digest in files.items():
        key = f"{at}/{_inside(name)}"
        target = folder / name
        beside = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
        try:
            store.download(key, beside)
            found = file_digest(beside)
            if found != digest:
                raise AlteredObjectError(
                    f"{store.address}/{key} is not what was stored: its SHA-256 is {found[:16]}..., not "
                    f"{digest[:16]}... Nothing of it was used. Bring its former version back, if the bucket keeps "
                    "versions, or restore it from a backup."
                )
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


def delete_folder(store: ObjectStore, at: str) -> None:
    """Deletes every object in a folder of a bucket."""
    store.delete(stored.key for stored in store.list(at))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(name: str) -> str:
    """A file's name, once it is sure that it stays in its folder: it may come from what somebody else has written."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise AlteredObjectError(
            f"{name[:80]!r} names no file inside its folder, so what lists it is not what was stored. Nothing of it "
            "was used."
        )
    return name


def _claim(followed: BucketFolder, wanted: Mapping[str, Any]) -> None:
    """Makes sure that an address is ours, and that two machines cannot both be told that it is theirs alone."""
    store = followed.store
    found = _owner(followed)
    if found is None:
        store.check_conditions()
        store.put_if_absent(_OWNER, json.dumps({**wanted, "id": uuid.uuid4().hex}).encode())
        found = _owner(followed)
    held = {name: (found or {}).get(name) for name in wanted}
    if held != wanted:
        raise WrongBucketError(
            f"{store.address} holds {held['kind']} of '{held['problem']}' (format {held['format']}), not "
            f"{wanted['kind']} of '{wanted['problem']}' (format {wanted['format']}). Give each its own prefix in "
            "[store] of offline_dqn.toml."
        )


def _owner(followed: BucketFolder) -> dict[str, Any] | None:
    try:
        content = followed.store.get(_OWNER)
    except ObjectMissingError:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise WrongBucketError(
            f"{followed.name_of(_OWNER)} cannot be read, so whose the address is cannot be told. Choose another prefix "
            "in [store] of offline_dqn.toml, or bring the object's former version back."
        )
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        # Taken for no copy, it would be written to and nobody else would ever see it.
        raise WrongBucketError(
            f"{path} says which bucket {path.parent} is a copy of, and cannot be read ({error}). Delete the folder: it "
            "is a copy, and fills again."
        ) from error
    return found


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.lru_cache(maxsize=8)
def _store(address: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    del environment  # of which the store reads: another one makes another store
    return open_store(address)
