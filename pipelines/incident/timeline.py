"""What happened, in order, from the records of a workspace: who was told, who decided what, what was taken out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.durable import read_records
from datasets.exclusions import exclusion_history
from pipelines.incident.captured import Incident, incidents_path
from pipelines.incident.reproduce import read_reproductions
from pipelines.lapsing import EVALUATED_AT
from pipelines.nights import read_nights
from pipelines.serving.switch import switch_history
from pipelines.workspace import Workspace
from reports.manifest import read_manifest

PROMOTED, ALERT, DISABLED, ENABLED, ROLLED_BACK = "promoted", "alert", "disabled", "enabled", "rolled back"
CAPTURED, REPRODUCED, EXCLUDED, LIFTED = "captured", "reproduced", "excluded", "lifted"
TRAINED, EVALUATED, REJECTED, NIGHT, CANARY = "trained", "evaluated", "rejected", "night", "canary"
"""Kinds of events."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        at: by the machine's clock.
        release: that it is about, if any.
        by: who did it, if somebody did.
    """

    at: datetime
    kind: str
    what: str
    release: int | None = None
    by: str = ""


def timeline(workspace: Workspace, incidents: Mapping[Path, Incident]) -> list[Event]:
    """Every event that the workspace's records tell of, oldest first.

    Args:
        incidents: by folder; their captures and reproductions are events.
    """
    found = [
        *_releases(workspace),
        *_promotions(workspace),
        *_switch(workspace),
        *_told(workspace),
        *_nights(workspace),
        *_exclusions(workspace),
        *_canaries(workspace),
        *_of_incidents(incidents),
    ]
    return sorted(found, key=lambda event: event.at)


def suspected_release(incident: Incident) -> int | None:
    """The release that the incident is about: the one that decided most then, else the champion of then."""
    suspect = incident.suspect
    return incident.champion if suspect is None else suspect


def _releases(workspace: Workspace) -> Iterator[Event]:
    for release in workspace.releases_on_disk():
        manifest = read_manifest(workspace.release_path(release))
        if manifest is None or manifest.gate == "baseline":
            continue
        yield Event(manifest.created_at, TRAINED, f"release {release} was trained", release)
        if EVALUATED_AT in manifest.tags:
            at = datetime.fromisoformat(manifest.tags[EVALUATED_AT])
            yield Event(at, EVALUATED, f"the gate {manifest.gate} release {release}", release)


def _promotions(workspace: Workspace) -> Iterator[Event]:
    for line in workspace.registry.history():
        kind = PROMOTED if line.action == "promote" else ROLLED_BACK
        words = "was promoted" if line.action == "promote" else f"took over again from release {line.from_release}"
        yield Event(
            line.at, kind, _noted(f"release {line.to_release} {words}", line.note), line.to_release, line.reviewer
        )
    for no in workspace.registry.rejections():
        yield Event(no.at, REJECTED, _noted(f"release {no.release} was rejected", no.note), no.release, no.reviewer)


def _switch(workspace: Workspace) -> Iterator[Event]:
    for line in switch_history(workspace.serving_path):
        disabling = line["action"] == "disable"
        what = "the kill switch was thrown: version 0 acts" if disabling else "the kill switch was undone"
        at = datetime.fromisoformat(line["at"])
        yield Event(at, DISABLED if disabling else ENABLED, _noted(what, line["note"]), by=line["by"])


def _told(workspace: Workspace) -> Iterator[Event]:
    for line in read_records(workspace.root / "notify" / "sent.jsonl"):
        kind = ALERT if line["level"] == "page" else "ticket"
        missed = "" if line["taken"] else f", which was not delivered: {line['problem']}"
        yield Event(datetime.fromisoformat(line["at"]), kind, f"{line['title']} (to {line['receiver']}{missed})")


def _nights(workspace: Workspace) -> Iterator[Event]:
    for night in read_nights(workspace.nights_path):
        if night.ended_at:
            verdict = f", gate {night.gate}" if night.gate else ""
            what = f"the night of {night.as_of[:10]} ended: {night.decision}{verdict}"
            yield Event(datetime.fromisoformat(night.ended_at), NIGHT, what, night.release)


def _exclusions(workspace: Workspace) -> Iterator[Event]:
    for row in exclusion_history(workspace.open_lake()):
        lifted = row["action"] == "lift"
        meant = " ".join(f"{k} {v}" for k, v in zip(("source", "batch", "where"), _meant(row), strict=True) if v)
        what = (
            f"{row['exclusion_id']} was lifted" if lifted else f"{row['exclusion_id']}: {row['n_rows']:,} rows, {meant}"
        )
        kind = LIFTED if lifted else EXCLUDED
        yield Event(row["settled_at"].astimezone(UTC), kind, _noted(what, row["note"]), by=row["reviewer"])


def _meant(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    return row["source"], row["batch_id"], row["condition"]


def _canaries(workspace: Workspace) -> Iterator[Event]:
    for line in read_records(workspace.serving_path / "canary_history.jsonl"):
        at = line.get("at")
        if isinstance(at, str):
            yield Event(datetime.fromisoformat(at), CANARY, f"canary: {line.get('event', 'changed')}")


def _of_incidents(incidents: Mapping[Path, Incident]) -> Iterator[Event]:
    for folder, incident in incidents.items():
        what = f"{incident.n_episodes:,} episodes and {incident.n_steps:,} steps captured into {folder.name}"
        yield Event(datetime.fromisoformat(incident.captured_at), CAPTURED, _noted(what, incident.note), by=incident.by)
        for line in read_reproductions(folder):
            n = sum(each["n"] for each in line["releases"])
            same = sum(each["n_same"] + each["n_rounded"] for each in line["releases"])
            yield Event(datetime.fromisoformat(line["at"]), REPRODUCED, f"{same:,} of {n:,} decisions reproduced")


def _noted(what: str, note: str) -> str:
    return f"{what} ({note})" if note else what


def captures_of(workspace: Workspace, incidents: list[Incident]) -> dict[Path, Incident]:
    """Incidents by folder."""
    return {incidents_path(workspace) / incident.name: incident for incident in incidents}
