"""What a night found, put together: from what its stages returned to the line that stands in `nights.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from datasets.batches import Batch, list_batches
from datasets.ingest import IngestReport
from pipelines import stages
from pipelines.drift_pages import night_page
from pipelines.excluding import taint_of
from pipelines.fallbacks import live_fallbacks
from pipelines.nights import NightRecord
from pipelines.stages import DriftOutcome, EvaluateOutcome
from pipelines.workspace import Workspace
from reports.night_checks import NightCheck


@dataclass(frozen=True)
class Ingested:
    """What of an ingest a night's record tells: plain values, so that a night that died need not read its logs again.

    Attributes:
        batch, status: of tonight's batch of steps, if there was one.
        warnings: files that could not be read, and rows in quarantine.
    """

    batch: str | None
    status: str
    n_in: int
    n_quarantined: int
    warnings: Sequence[str] = ()

    @classmethod
    def of(cls, report: IngestReport) -> Ingested:
        """From the report on an ingest."""
        batch = report.batch
        return cls(
            batch=batch.batch_id if batch else None,
            status=batch.status if batch else "nothing new",
            n_in=batch.counts.n_in if batch else 0,
            n_quarantined=batch.counts.n_quarantined if batch else 0,
            warnings=tuple(_warnings(report)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "warnings": list(self.warnings)}


def _warnings(ingested: IngestReport) -> list[str]:
    is_held = ingested.batch is not None and ingested.batch.status == "held"  # then no row is in quarantine yet
    of_outcomes = _warnings(ingested.outcomes) if ingested.outcomes else []
    return [
        *(cause for _, cause in ingested.damaged),
        *(f"{file} is empty" for file in ingested.empty),
        *(f"{n:,} rows quarantined: {reason}" for reason, n in ingested.reasons if not is_held),
        *([f"the new rows are in, but files were not merged: {ingested.not_merged}"] if ingested.not_merged else []),
        *([ingested.account.warning] if ingested.account and ingested.account.warning else []),
        *of_outcomes,
    ]


def held_tonight(workspace: Workspace, ingested: Ingested) -> Batch | None:
    """The batch that ends the night: tonight's, or one of outcomes of any night."""
    lake = workspace.open_lake()
    tonight = [b for b in list_batches(lake) if b.batch_id == ingested.batch and b.status == "held"]
    return tonight[0] if tonight else stages.held_outcomes(lake)


def drift_to_json(drift: DriftOutcome) -> dict[str, Any]:
    """Plain JSON values, whole."""
    return {**drift.to_json(), "broken_promise": drift.broken_promise}


def drift_from_json(values: Mapping[str, Any]) -> DriftOutcome:
    """What `drift_to_json` gave."""
    check = NightCheck.from_json("", None, values)
    nights = check.live_nights
    live = (_day(nights[0]), _day(nights[1])) if nights else None
    return DriftOutcome(check.report, check.decision, live, values["broken_promise"])


def _day(text: str) -> Any:
    return datetime.fromisoformat(text).date()


def record_of(
    workspace: Workspace,
    ingested: Ingested,
    drift: DriftOutcome | None,
    evaluated: EvaluateOutcome | None,
    *,
    seconds: Mapping[str, float],
    not_judged: tuple[int, str] | None = None,
    not_trained: str | None = None,
    review: str | None = None,
) -> NightRecord:
    """The record of a night, before it is known what could not be told; `not_judged` is a candidate that did not meet
    `gate`, and why, `not_trained` why there is none."""
    held = held_tonight(workspace, ingested) if drift is None else None
    evaluation = evaluated.evaluation if evaluated else None
    decision = evaluation.decision if evaluation else None
    value, baseline = (evaluated.candidate, evaluated.baseline) if evaluated else (None, None)
    report = evaluated.report_path.relative_to(workspace.root) if evaluated else None
    as_of = workspace.as_of(workspace.open_lake())
    fallbacks = live_fallbacks(workspace, workspace.registry.champion())
    alert = fallbacks.alert(workspace.config.guard.alert_share) if fallbacks is not None else ""
    page = night_page(workspace, as_of.astimezone(UTC).date().isoformat())
    reason = decision.reason if decision else drift.decision.sentence if drift else _why_held(held)
    gate = "not read" if not_judged else "not trained" if not_trained else None
    return NightRecord(
        as_of=as_of.isoformat(timespec="seconds"),
        batch=held.batch_id if held else ingested.batch,
        status=held.status if held else ingested.status,
        n_in=held.counts.n_in if held else ingested.n_in,
        n_quarantined=held.counts.n_quarantined if held else ingested.n_quarantined,
        drift="not measured" if drift is None or drift.report is None else drift.report.status,
        decision="batch held" if drift is None else drift.decision.cause,
        release=evaluated.release if evaluated else not_judged[0] if not_judged else None,
        value=value.value if value else None,
        low=value.interval.low if value and value.interval else None,
        high=value.interval.high if value and value.interval else None,
        baseline=baseline.value if baseline else None,
        gate=gate if decision is None else "passed" if decision.passed else "refused",
        reason=not_judged[1] if not_judged else not_trained or reason,
        report=str(report) if report else None,
        seconds=dict(seconds),
        live_from=drift.live_nights[0].isoformat() if drift and drift.live_nights else None,
        warnings=[
            *ingested.warnings,
            *_still_held(workspace, held.batch_id if held else ingested.batch),
            *warnings_of_drift(drift),
            *_excluded_champion(workspace),
            *([alert] if alert else []),
        ],
        fallback_share=None if fallbacks is None else round(fallbacks.share, 6),
        review=review,
        drift_page=str(page.relative_to(workspace.root)) if drift and page.is_file() else None,
    )


def _why_held(batch: Batch | None) -> str:
    if batch is None:
        return ""
    return (
        f"Batch {batch.batch_id} is held and the lake is as it was. {batch.note} `offline-dqn batches show "
        f"{batch.batch_id}` says more, `batches release` lets it in, `batches reject` turns it away."
    )


def _still_held(workspace: Workspace, tonight: str | None) -> list[str]:
    """Batches of earlier nights that wait for a person: their rows are missing from everything above."""
    held = [b for b in list_batches(workspace.open_lake()) if b.status == "held"]
    return [
        f"batch {b.batch_id} with {b.counts.n_held:,} rows is still held since {b.settled_at:%Y-%m-%d}; "
        f"`offline-dqn batches show {b.batch_id}`"
        for b in held
        if b.batch_id != tonight
    ]


def _excluded_champion(workspace: Workspace) -> list[str]:
    """The champion itself may rest on what somebody took out."""
    champion = workspace.registry.champion()
    tainted = taint_of(workspace, champion) if champion is not None else None
    if tainted is None:
        return []
    return [
        f"release {champion}, the champion: {tainted.in_words}; `offline-dqn rollback` goes back to one before, "
        "`offline-dqn nightly --force-train` trains without them"
    ]


def warnings_of_drift(drift: DriftOutcome | None) -> list[str]:
    """What a person should look at: what is suspicious, what could not be looked for, and what was not compared."""
    if drift is None or drift.report is None:
        return []
    unknown = [said for said in (drift.report.not_looked_for, drift.report.left_out) if said]
    return [*(f"suspicious: {suspicion.sentence}" for suspicion in drift.report.suspicions), *unknown]
