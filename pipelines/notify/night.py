"""What of a night a person should hear of: its record, or how it failed, as notices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from datasets.batches import Batch, list_batches
from datasets.clocks import SLACK
from datasets.errors import OfflineDqnError
from datasets.locking import LockedError
from pipelines.nights import NightRecord, read_nights
from pipelines.notify.budgets import budget_notices
from pipelines.notify.notices import Notice
from pipelines.workspace import Workspace

NIGHT, OVERDUE, BATCHES, PROMISE = "night", "overdue", "batches", "promise"
DRIFT, GATE, REVIEW, LAPSED = "drift", "gate", "review", "lapsed"
INGEST, CALIBRATION = "ingest", "calibration"
"""Causes."""


@dataclass(frozen=True)
class Found:
    """What was found, and the causes that were looked for."""

    notices: tuple[Notice, ...]
    looked_for: frozenset[str]


def of_night(
    record: NightRecord,
    held: Sequence[Batch],
    *,
    promise: str = "",
    moved: Sequence[str] = (),
    lapsed: Sequence[str] = (),
) -> Found:
    """A night that ran to its end.

    Args:
        record: of it.
        held: every batch that waits for a person.
        promise: how the champion breaks its promise, in words; "" where it does not.
        moved: the columns that drifted.
        lapsed: candidates whose deadline has passed, a sentence each.
    """
    notices, looked_for = [*of_batches(held)], {NIGHT, OVERDUE, BATCHES, REVIEW, INGEST}
    if record.drift not in ("not measured", "not enough data"):
        looked_for |= {DRIFT, PROMISE}
    if promise:
        title = f"the champion breaks its promise: {record.as_of[:10]}"
        notices.append(Notice(PROMISE, "page", title, f"{promise[:1].upper()}{promise[1:]}. {_undo()}"))
    if record.drift == "drifted" or record.decision in ("drift", "suspicious"):
        suspicious = [warning for warning in record.warnings if warning.startswith("suspicious")]
        page = f" Page: {record.drift_page}." if record.drift_page else ""
        text = " ".join([record.reason if not record.gate else _drifted(moved), *suspicious]) + page
        notices.append(Notice(DRIFT, "ticket", "the world has drifted", text, ", ".join([*moved, *sorted(suspicious)])))
    if record.gate is not None:
        looked_for.add(GATE)
    if record.gate == "not trained":
        notices.append(Notice(GATE, "ticket", "the budget stopped the training", record.reason, "not trained"))
    if record.gate in ("refused", "not read"):
        what = "the gate refused" if record.gate == "refused" else "the gate did not read"
        text = f"{record.reason} The champion stays." + (f" Report: {record.report}." if record.report else "")
        notices.append(
            Notice(GATE, "ticket", f"{what} release {record.release}", text, f"{record.release}", lasts=False)
        )
    if record.gate == "passed" and record.review and not record.review.startswith("decided already"):
        title = f"release {record.release} passed and waits for its reviewer"
        notices.append(Notice(REVIEW, "ticket", title, record.review, f"{record.release}", lasts=False))
    if lapsed:
        notices.append(Notice(LAPSED, "ticket", "a candidate lapsed", " ".join(lapsed), str(len(lapsed)), lasts=False))
    return Found(tuple(notices), frozenset(looked_for))


def _drifted(moved: Sequence[str]) -> str:
    return f"Moved: {', '.join(moved)}. A candidate was trained for it." if moved else "A candidate was trained for it."


def _undo() -> str:
    return "`offline-dqn rollback` goes back to the champion before; `offline-dqn promises` shows the numbers."


def of_failed_night(stage: str, error: BaseException, *, n_starts: int) -> Found:
    """A night that failed; one that only met another at work is a ticket."""
    cause = _cause(error)
    if isinstance(error, LockedError):
        return Found((Notice(NIGHT, "ticket", "a night met another one at work", cause, "locked"),), frozenset())
    again = f" It was start {n_starts} of this night." if n_starts > 1 else ""
    text = f"{cause}{again} What earlier stages found is kept; `offline-dqn nightly` goes on from there."
    where = f"in {stage}" if stage else "before its first stage"
    return Found(
        (Notice(NIGHT, "page", f"the night failed {where}", text, f"{stage}: {type(error).__name__}"),), frozenset()
    )


def of_failed_ingest(error: BaseException) -> Found:
    """An hourly ingest that failed: the night will try again, so it can wait."""
    text = f"{_cause(error)} Its rows are missing until an ingest succeeds; nothing of them is lost."
    return Found((Notice(INGEST, "ticket", "the hourly ingest failed", text, type(error).__name__),), frozenset())


def of_broken_calibration(broken: Sequence[str]) -> Found:
    """A calibration: the promises that do not hold with this code, a clause each."""
    title = f"the gate errs more often than it promises, in {len(broken)} of its cells"
    text = "; ".join(broken[:5]) + ". Do not promote before it is understood."
    notices = (Notice(CALIBRATION, "ticket", title, text, ", ".join(broken)),) if broken else ()
    return Found(notices, frozenset({CALIBRATION}))


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, OfflineDqnError) else f"{type(error).__name__}: {error}"


def of_batches(held: Sequence[Batch]) -> tuple[Notice, ...]:
    """Batches that wait for a person; none where there is none."""
    if not held:
        return ()
    newest = held[-1]
    title = f"batch {newest.batch_id} is held" if len(held) == 1 else f"{len(held)} batches are held"
    text = " ".join(
        f"Batch {b.batch_id} of {b.kind}, {b.counts.n_held:,} rows: {b.note} (`offline-dqn batches show {b.batch_id}`)."
        for b in held[-3:]
    )
    text += " Nights judge without these rows until someone releases or rejects them."
    return (Notice(BATCHES, "page", title, text, ", ".join(b.batch_id for b in held)),)


def held_batches(workspace: Workspace) -> list[Batch]:
    """Every batch that waits for a person, oldest first."""
    return [batch for batch in list_batches(workspace.open_lake()) if batch.status == "held"]


def of_overdue(workspace: Workspace, now: datetime) -> Found:
    """Whether no night has ended for too long; a workspace that has never had one is not overdue."""
    hours = workspace.config.notify.overdue_hours
    nights = [datetime.fromisoformat(n.ended_at) for n in read_nights(workspace.nights_path) if n.ended_at]
    ended = [at for at in nights if at <= now + SLACK]  # one of a clock that was ahead would keep us quiet till then
    if hours is None or not ended:
        return Found((), frozenset({OVERDUE}))
    last = max(ended)
    if now - last <= timedelta(hours=hours):
        return Found((), frozenset({OVERDUE}))
    text = (
        f"The last one ended on {last:%Y-%m-%d %H:%M} UTC and notify.overdue_hours allows {hours:g}. Look whether the "
        "scheduler runs and what its newest run says; `offline-dqn nightly` runs one now."
    )
    notice = Notice(OVERDUE, "page", f"no night has ended since {last:%Y-%m-%d %H:%M} UTC", text)
    return Found((notice,), frozenset({OVERDUE}))


def check_now(workspace: Workspace, now: datetime | None = None) -> Found:
    """What can be told at any hour: held batches, nights that do not come, and budgets that burn or are spent."""
    overdue = of_overdue(workspace, now or datetime.now(UTC))
    of_budgets, budgets = budget_notices(workspace)
    notices = (*of_batches(held_batches(workspace)), *overdue.notices, *of_budgets)
    return Found(notices, overdue.looked_for | budgets | {BATCHES, INGEST})
