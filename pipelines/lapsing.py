"""The deadline of a candidate: one that passed its gate and that nobody decided on in time lapses.

What a verdict rests on grows old. A lapsed release is not promoted until `offline-dqn evaluate N --again` has held its
gate episodes against the newest nights once more: the same reading of `gate`, which spends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from datasets.durable import read_records
from pipelines.readings import reading_behind
from pipelines.workspace import Workspace
from reports.manifest import read_manifest
from reports.release_bucket import records_in
from reports.release_records import LAPSES, decide

EVALUATED_AT = "evaluated_at"
"""Tag of a release: when its recorded evaluation was made, by the clock."""


def deadline_of(workspace: Workspace, release: int) -> datetime | None:
    """Until when a release that passed may be promoted; None where it has no deadline, or did not pass."""
    days = workspace.config.nightly.review_days
    manifest = read_manifest(workspace.release_path(release))
    if days is None or manifest is None or manifest.gate != "passed":
        return None
    made = manifest.tags.get(EVALUATED_AT)
    if made is None:
        reading = reading_behind(workspace, release)
        made = reading.entered_at.isoformat() if reading is not None else None
    return datetime.fromisoformat(made) + timedelta(days=days) if made is not None else None


def why_lapsed(workspace: Workspace, release: int, now: datetime | None = None) -> str:
    """Why a release can no longer be promoted as it stands, as a sentence; "" while it can be decided on."""
    deadline = deadline_of(workspace, release)
    if deadline is None or (now or datetime.now(UTC)) <= deadline or workspace.registry.champion() == release:
        return ""
    return (
        f"Release {release} has lapsed: nobody promoted or rejected it by {deadline.astimezone(UTC):%Y-%m-%d %H:%M} "
        f"UTC ({workspace.config.nightly.review_days:g} days after its evaluation, nightly.review_days). `offline-dqn "
        f"evaluate {release} --again` holds it against the newest nights once more and spends nothing; then it can be "
        "promoted."
    )


def record_lapses(workspace: Workspace, now: datetime | None = None) -> list[str]:
    """Enters candidates whose deadline has passed in `releases/lapses.jsonl`, each once per evaluation.

    Returns:
        A sentence for each that was entered now.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    history, rejections = workspace.registry.history(), workspace.registry.rejections()
    decided = {p.to_release for p in history} | {r.release for r in rejections}
    entered = []
    for release in workspace.releases_on_disk():
        why, deadline = why_lapsed(workspace, release, now), deadline_of(workspace, release)
        if not why or deadline is None or release in decided or workspace.registry.stale(release):
            continue
        line = {"at": now.isoformat(), "release": release, "deadline": deadline.isoformat()}
        if decide(partial(_enter, workspace, line)):
            entered.append(why)
    return entered


def _enter(workspace: Workspace, line: Mapping[str, object]) -> bool:
    """Enters a lapse, unless it is entered already; whether it was entered now."""
    records = records_in(workspace.releases_path)
    seen = records.refresh()
    known = read_records(workspace.releases_path / "lapses.jsonl")
    if any((line["release"], line["deadline"]) == (record["release"], record["deadline"]) for record in known):
        return False
    records.append(LAPSES, line, seen)
    return True
