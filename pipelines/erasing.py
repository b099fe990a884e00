"""Erasure across a workspace: lake and snapshots first, then whatever else was made from them."""

from __future__ import annotations

import html
import json
import mmap
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from datasets.erasure import Erasure, erase_subject, finish_erasure, named_subject, word_pattern
from datasets.lake import Lake
from datasets.locking import exclusive_lock
from datasets.logfiles import LogFile, LogFileError, Unread, container_errors, find_log_files, open_unread
from datasets.privacy import PrivacyKey
from pipelines.canary_erasing import erase_from_evidence
from pipelines.drift_history import erase_from_history
from pipelines.incident.redaction import erase_from_incidents
from pipelines.readings import finish_reading
from pipelines.workspace import Workspace
from reports.episode_columns import EPISODES
from reports.episode_terms import without_episodes
from reports.examples import evaluation_without, report_without
from reports.manifest import read_manifest
from reports.release_bucket import mend_release

_SHORTEST_SOUGHT = 4
"""Characters of a value that is looked for in text: shorter ones stand everywhere and mean nothing."""

_ERASED = b"(erased)"
_EVALUATION = {"evaluation.json": evaluation_without, "report.html": report_without}
"""Files of an evaluation, and what takes example episodes out of them whole: a name alone is not all that they hold."""


@dataclass(frozen=True)
class ErasedWorkspace:
    """What an erasure did, or would do, and what is left to a person.

    Attributes:
        erasure: in lake and snapshots.
        releases: whose snapshot was redacted: their decisions are not replayable any more.
        log_files: logs that still hold the subject; they are nobody's to change but their owner's.
        still_named_in: other files of the workspace that name it.
        dry_run: whether nothing was touched.
    """

    erasure: Erasure
    releases: tuple[int, ...]
    log_files: tuple[str, ...]
    still_named_in: tuple[str, ...]
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values. The episodes are counted, not named: the output may be kept."""
        values = asdict(self)
        erasure = values.pop("erasure")
        return {**erasure, "episodes": len(self.erasure.episodes), **values}


def erase(workspace: Workspace, *, episode: str | None, named: str | None, dry_run: bool = False) -> ErasedWorkspace:
    """Erases an episode, or everything of a key given as COLUMN=VALUE, and remembers it by hash.

    Raises:
        ErasureError: the subject cannot be named so.
        PrivacyError: the contract hides columns, and the key is missing or not the lake's.
        LockedError: a night, or another command that changes the workspace, is running.
        LakeError: the disk is full; says how the lake stands. Repeat the command then.
    """
    lake = workspace.open_lake()
    key = lake.privacy_key()
    subject = named_subject(workspace.contract, key, episode=episode, named=named)
    with _locked(workspace):
        at = datetime.now(UTC)

        def traces(names: Iterable[str], snapshots: Iterable[str]) -> None:
            named = {subject.plain, *names}
            _erase_traces(workspace, lake, named, snapshots, _bytes_pattern(named), key)

        snapshots_path = workspace.snapshots_path
        found = erase_subject(lake, subject, key, snapshots_path, at=at, dry_run=dry_run, traces=traces)
        releases = tuple(_resting_on(workspace, found.snapshots))
        pattern = _bytes_pattern([subject.plain, *subject.stored, *found.episodes])
        logs = _logs_naming(workspace, found.sources, pattern)
        named_in = _files_naming(workspace, pattern) if pattern is not None else ()
    return ErasedWorkspace(found, releases, tuple(logs), tuple(named_in), dry_run)


def finish(workspace: Workspace) -> bool:
    """Finishes an erasure that was cut off; returns whether there was one."""
    lake = workspace.open_lake()

    def traces(names: Iterable[str], snapshots: Iterable[str]) -> None:
        named = set(names)
        _erase_traces(workspace, lake, named, snapshots, _bytes_pattern(named), lake.privacy_key())

    with _locked(workspace):
        return finish_erasure(lake, workspace.snapshots_path, traces=traces)


def _locked(workspace: Workspace) -> Any:
    return exclusive_lock(workspace.root / ".lock", f"The workspace {workspace.root}", wait_s=0.0)


def _resting_on(workspace: Workspace, snapshots: Iterable[str]) -> Iterator[int]:
    named = set(snapshots)
    for release in workspace.releases_on_disk():
        path = workspace.release_path(release) / "training.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["snapshot"] in named:
            yield release


def _bytes_pattern(names: Iterable[str]) -> re.Pattern[bytes] | None:
    """Finds a subject's names in files, as they are or as JSON or HTML has them; None where all are too short to mean
    anything."""
    written = {text for name in names for text in (name, json.dumps(name)[1:-1], _as_html(name))}
    sought = [name for name in written if len(name) >= _SHORTEST_SOUGHT]
    return re.compile(word_pattern(sought).pattern.encode()) if sought else None


def _as_html(name: str) -> str:
    """As the report's templates escape it."""
    return html.escape(name).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def _erase_traces(
    workspace: Workspace,
    lake: Lake,
    names: Collection[str],
    snapshots: Iterable[str],
    pattern: re.Pattern[bytes] | None,
    key: PrivacyKey | None,
) -> None:
    """Takes the subject's names out of what was made from the lake. Everything here can be repeated."""
    for name in snapshots:  # half a training on what is no longer there
        shutil.rmtree(workspace.root / "checkpoints" / name, ignore_errors=True)
    if pattern is not None:
        told = (workspace.root / "notify").glob("*.json*")
        for path in (workspace.nights_path, workspace.root / "night.json", *told):
            if path.exists() and _names(path, pattern):
                write_durably(path, pattern.sub(_ERASED, path.read_bytes()))
        erase_from_history(workspace.drift_path, lambda text: pattern.sub(_ERASED, text.encode()).decode())
        for page in workspace.drift_path.glob("*.html"):  # made from that history, and made again by `drift page`
            if _names(page, pattern):
                page.unlink()
    erase_from_evidence(workspace, names, key)
    erase_from_incidents(workspace, names, pattern, _ERASED)
    for release in workspace.releases_on_disk():
        _redact_evaluation(workspace, release, names, pattern)
    workspace.refresh_catalog(lake)


def _redact_evaluation(
    workspace: Workspace, release: int, names: Collection[str], pattern: re.Pattern[bytes] | None
) -> None:
    """Records what an evaluation wrote again without the names and their rows: the verdict stays, the bytes change."""
    folder = workspace.release_path(release)
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if manifest.damage(folder):
        mend_release(workspace.releases_path, release)
    files = {name: (folder / name).read_bytes() for name in manifest.evaluation_files if (folder / name).is_file()}
    redacted = {name: _redacted(name, content, names, pattern) for name, content in files.items()}
    if redacted == files:
        return
    if manifest.damage(folder):  # it cannot be used as it is, and must not be laundered; the rows go all the same
        if EPISODES in redacted:
            write_durably(folder / EPISODES, redacted[EPISODES])
        return
    workspace.registry.record_evaluation(
        release, gate="passed" if manifest.gate == "passed" else "refused", files=redacted
    )
    finish_reading(workspace, release)


def _redacted(name: str, content: bytes, names: Collection[str], pattern: re.Pattern[bytes] | None) -> bytes:
    if name == EPISODES:  # by the whole id: a name too short to be looked for in text is a row all the same
        return without_episodes(content, names)
    if name in _EVALUATION and pattern is not None and pattern.search(content):
        return pattern.sub(_ERASED, _EVALUATION[name](content, pattern))
    return content


def _logs_naming(workspace: Workspace, sources: Iterable[str], pattern: re.Pattern[bytes] | None) -> list[str]:
    """Log files that rows came from, and others beside them whose text names the subject, as far as they are there."""
    found = {source for source in sources if (workspace.root / source).exists()}
    if pattern is not None and (workspace.root / "logs").is_dir():
        try:
            logs = find_log_files([workspace.root / "logs"])
        except LogFileError:
            logs = []  # cleared away once they were read
        for log in logs:
            name = str(log.path.relative_to(workspace.root))
            if name not in found and log.format in {"jsonl", "csv"} and _text_names(log, pattern):
                found.add(name)
    return sorted(found)


def _text_names(log: LogFile, pattern: re.Pattern[bytes]) -> bool:
    whole = Unread(0, log.path.stat().st_size, 0, "", "", 0, 0, "")
    try:
        with container_errors(log), open_unread(log, whole) as text:
            return any(pattern.search(line) for line in text)
    except LogFileError:
        return False  # damaged: nothing of it was ever taken


def _files_naming(workspace: Workspace, pattern: re.Pattern[bytes]) -> Iterator[str]:
    """Files of the workspace that still name the subject; logs and snapshots are looked after elsewhere."""
    for path in sorted(workspace.root.rglob("*")):
        inside = path.relative_to(workspace.root)
        if inside.parts[0] == "logs" or path.is_relative_to(workspace.snapshots_path):
            continue
        if path.is_file() and _names(path, pattern):
            yield str(inside)


def _names(path: Path, pattern: re.Pattern[bytes]) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return pattern.search(content) is not None
