"""Releases in a bucket: each upload in a folder of its own, `<release>/<id>/`, and the journal says which ones count.

What the journal names is complete and never changes. An evaluation that is recorded later is an upload of its own.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datasets.bucket_folder import BucketFolder, bucket_behind, delete_folder, download, file_digest, upload
from datasets.object_store import ObjectMissingError
from reports.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from reports.release_records import (
    RELEASES,
    FolderRecords,
    OvertakenError,
    Records,
    RecordsError,
    Seen,
    SharedRecords,
    seen_lines,
)

_FETCHING = ".fetching-"
_STRAY_AFTER = timedelta(days=1)


def records_in(folder: Path) -> Records:
    """The records beside the releases in `folder`, wherever they lie."""
    behind = bucket_behind(folder)
    return FolderRecords(folder) if behind is None else SharedRecords(behind, follow_releases)


def entered_digests(folder: Path) -> dict[int, str] | None:
    """By release, the digest that its manifest has by the journal; None where releases lie in a folder.

    Raises:
        RecordsError: the journal cannot be read.
    """
    if bucket_behind(folder) is None:
        return None
    return {number: str(line["digest"]) for number, line in _newest(seen_lines(folder)).items()}


def publish_registered(folder: Path, staged: Path, manifest: Manifest, seen: Seen) -> None:
    """Uploads a new release, and enters it in the journal: from then on it exists. In a folder, nothing happens.

    Raises:
        OvertakenError: something was decided since `seen`; nothing of the upload is left.
    """
    _publish(folder, staged, manifest, list(manifest.files), {}, seen)


def publish_evaluated(folder: Path, manifest: Manifest, files: Mapping[str, bytes], seen: Seen) -> None:
    """Uploads what an evaluation wrote, and enters it. What an earlier one had uploaded goes.

    Args:
        folder: of the releases.
        manifest: with the evaluation.
        files: content by name.
        seen: the state on which it is recorded.

    Raises:
        OvertakenError: as `publish_registered`.
    """
    behind = bucket_behind(folder)
    if behind is None:
        return
    before = _newest(seen_lines(folder))[manifest.release]
    beside = folder / f".staging-{uuid.uuid4().hex}"
    beside.mkdir()
    try:
        for name, content in files.items():
            (beside / name).write_bytes(content)
        _publish(folder, beside, manifest, list(files), {"registered": before["registered"]}, seen)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if before["upload"] != before["registered"]:
        delete_folder(behind.store, f"{manifest.release}/{before['upload']}")


def follow_releases(behind: BucketFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Brings the releases in a folder up to what the journal's lines say.

    Raises:
        RecordsError: the bucket lacks what the journal names.
        AlteredObjectError: it holds other bytes than were stored.
        ObjectStoreError: it cannot be asked.
    """
    for left in behind.folder.glob(f"{_FETCHING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for number, line in sorted(_newest(lines).items()):
        manifest = read_manifest(behind.folder / str(number))
        if manifest is None or manifest.digest != line["digest"] or _missing(behind.folder / str(number), manifest):
            _fetch(behind, number, line)


def mend_release(folder: Path, number: int) -> bool:
    """Fetches the files of a release that are not what was registered; returns whether it is whole now.

    Raises:
        RecordsError: the bucket lacks what this machine has seen of its journal, or a part of the release.
        ObjectStoreError: it cannot be asked.
    """
    behind = bucket_behind(folder)
    if behind is None:
        return False
    records_in(folder).refresh()  # a crash may have left the copy of the journal half renewed
    line = _newest(seen_lines(folder)).get(number)
    if line is None:
        return False
    _fetch(behind, number, line)
    return True


def sweep_uploads(folder: Path, now: datetime | None = None) -> int:
    """Deletes what uploads that were cut off more than a day ago have left in the bucket; returns how many objects."""
    behind = bucket_behind(folder)
    if behind is None:
        return 0
    before = (now or datetime.now(UTC)) - _STRAY_AFTER
    listed = behind.store.list()  # before the journal: what is entered in between counts as kept
    records_in(folder).refresh()
    kept = {(str(number), line[key]) for number, line in _newest(seen_lines(folder)).items() for key in _UPLOADS}
    strays = [
        stored.key
        for stored in listed
        if stored.key.count("/") >= 2 and tuple(stored.key.split("/")[:2]) not in kept and stored.modified_at < before
    ]
    behind.store.delete(strays)
    return len(strays)


_UPLOADS = ("registered", "upload")


def _publish(
    folder: Path, source: Path, manifest: Manifest, names: list[str], also: Mapping[str, str], seen: Seen
) -> None:
    behind = bucket_behind(folder)
    if behind is None:
        return
    upload_id = uuid.uuid4().hex[:12]
    at = f"{manifest.release}/{upload_id}"
    upload(behind.store, at, source, names)
    behind.store.put(f"{at}/{MANIFEST}", manifest.text().encode())
    line = {
        "release": manifest.release,
        "digest": manifest.digest,
        "registered": upload_id,
        **also,
        "upload": upload_id,
    }
    try:
        records_in(folder).append(RELEASES, line, seen)
    except OvertakenError:
        delete_folder(behind.store, at)
        raise


def _fetch(behind: BucketFolder, number: int, line: Mapping[str, Any]) -> None:
    """A release's folder as the journal's line says: complete, and the manifest last."""
    folder = behind.folder / str(number)
    at = f"{number}/{line['upload']}"
    try:
        content = behind.store.get(f"{at}/{MANIFEST}")
        into = folder if folder.is_dir() else behind.folder / f"{_FETCHING}{number}"
        into.mkdir(parents=True, exist_ok=True)
        manifest = _manifest(content, behind.name_of(f"{at}/{MANIFEST}"), number, str(line["digest"]))
        download(behind.store, f"{number}/{line['registered']}", into, _wrong(into, manifest.files))
        download(behind.store, at, into, _wrong(into, manifest.evaluation_files))
        write_manifest(into, manifest)
        if into != folder:
            into.replace(folder)
    except ObjectMissingError as error:
        raise RecordsError(
            f"Release {number} is entered in {behind.name_of('journal.jsonl')}, and the bucket lacks a part of it: "
            f"{error} Another machine may just have replaced it: try again. If it stays so, bring the object back, if "
            "the bucket keeps versions, or restore it from a backup."
        ) from error


def _manifest(content: bytes, where: str, number: int, digest: str) -> Manifest:
    try:
        values = json.loads(content)
        manifest = Manifest(created_at=datetime.fromisoformat(values.pop("created_at")), **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordsError(f"{where} cannot be read ({error}); bring its former version back.") from error
    if manifest.digest != digest or manifest.release != number:
        raise RecordsError(
            f"{where} was altered: its digest is not the one that was entered in the journal. Nothing of it was used. "
            "Bring its former version back, if the bucket keeps versions, or restore it from a backup."
        )
    return manifest


def _wrong(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    return {n: d for n, d in files.items() if not (folder / n).is_file() or file_digest(folder / n) != d}


def _missing(folder: Path, manifest: Manifest) -> bool:
    return any(not (folder / name).is_file() for name in (*manifest.files, *manifest.evaluation_files))


def _newest(lines: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {int(line["line"]["release"]): line["line"] for line in lines if line["record"] == RELEASES}
