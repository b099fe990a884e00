"""Pages of drift checks: the night's own beside its record, and one on demand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from pipelines.drift_history import DriftCheck, read_drift_history
from pipelines.workspace import Workspace
from reports.drift_page import render_drift_page
from reports.night_checks import NightCheck, NightlyChecks

_PAST_NIGHTS = 60
"""That a timeline shows at most."""


def checks_now(workspace: Workspace, outcome: dict[str, Any]) -> NightlyChecks:
    """A check that was just made, as `DriftOutcome.to_json` gives it, after those of the nights before."""
    night = workspace.as_of(workspace.open_lake()).astimezone(UTC).date().isoformat()
    newest = NightCheck.from_json(night, workspace.registry.champion() or None, outcome)
    return _after(workspace, newest, _recorded(workspace))


def checks_of_night(workspace: Workspace, night: date) -> NightlyChecks | None:
    """The check that was recorded of a night, after those before it; None where there is none."""
    found = _recorded(workspace)
    newest = next((check for check in found if check.night == night.isoformat()), None)
    return None if newest is None else _after(workspace, _seen(newest), found)


def recorded_nights(workspace: Workspace) -> tuple[str, ...]:
    """ISO dates of the nights that have a check, ascending."""
    return tuple(check.night for check in _recorded(workspace))


def write_page(workspace: Workspace, checks: NightlyChecks, path: Path) -> Path:
    """Writes the page of a check, and returns where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, render_drift_page(checks, workspace.contract.name))
    return path


def write_night_page(workspace: Workspace, as_of: datetime) -> Path | None:
    """The page of the night's recorded check; None where none was recorded.

    It lies beside the record and is made from it alone, so pages beyond the newest `drift.keep_pages` are removed.
    """
    night = as_of.astimezone(UTC).date()
    checks = checks_of_night(workspace, night)
    if checks is None:
        return None
    path = write_page(workspace, checks, night_page(workspace, night.isoformat()))
    for old in night_pages(workspace)[: -workspace.config.drift.keep_pages]:
        old.unlink(missing_ok=True)
    return path


def night_page(workspace: Workspace, night: str) -> Path:
    """Where the page of a night is written."""
    return workspace.drift_path / f"{night}.html"


def night_pages(workspace: Workspace) -> list[Path]:
    """The pages of nights that are there, oldest first."""
    return sorted(workspace.drift_path.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].html"))


def _recorded(workspace: Workspace) -> list[DriftCheck]:
    return read_drift_history(workspace.drift_path)


def _after(workspace: Workspace, newest: NightCheck, found: Iterable[DriftCheck]) -> NightlyChecks:
    before = [check for check in found if check.night < newest.night][-_PAST_NIGHTS:]
    return NightlyChecks(
        newest=newest,
        past=tuple(_seen(check) for check in before),
        promotions=tuple(workspace.registry.history()),
    )


def _seen(check: DriftCheck) -> NightCheck:
    outcome = {"decision": check.decision, "live_nights": check.live_nights, "report": check.report}
    return NightCheck.from_json(check.night, check.champion, outcome)
