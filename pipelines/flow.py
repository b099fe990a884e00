"""The nightly Prefect flow: one coarse task per stage, in the order of the night."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from datasets.batches import Batch, list_batches
from datasets.errors import OfflineDqnError
from datasets.ingest import IngestReport
from datasets.journal import LakeError
from datasets.locking import exclusive_lock
from drift.findings import changed_since
from offline_dqn.trained import Metrics
from pipelines import stages
from pipelines.drift_history import read_drift_history, record_check
from pipelines.drift_pages import night_page, write_night_page
from pipelines.markdown import as_markdown
from pipelines.metrics.budget import BudgetSpentError
from pipelines.metrics.measuring import measure
from pipelines.metrics.usage import UsageLog
from pipelines.nights import COLUMNS, NightRecord, append_night
from pipelines.readings import TooFewEpisodesError
from pipelines.review import ask_for_review
from pipelines.stages import DriftOutcome, EvaluateOutcome
from pipelines.training import TrainOutcome, train
from pipelines.upkeep import Retained, retain
from pipelines.workspace import Workspace, open_workspace
from reports.ledger import ErrorSpentError
from reports.records import GateDecision


@dataclass(frozen=True)
class Watch:
    """Who is told how far a night has come; a flow run by a worker tells nobody."""

    stage: Callable[[str, int | None], object] = field(default=lambda *_: None)
    on_rows: Callable[[int], None] = field(default=lambda _: None)
    on_metrics: Callable[[int, Metrics], None] = field(default=lambda *_: None)


_NOBODY = Watch()

watch: ContextVar[Watch] = ContextVar("watch", default=_NOBODY)
"""Set by the command line: a flow's parameters are stored as JSON and cannot carry a function."""


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether the same ingest can succeed a little later: a full disk may, a wrong contract or path does not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, LakeError) or not isinstance(error, OfflineDqnError)


@task(name="ingest", retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=_may_pass, cache_policy=NO_CACHE)
def ingest_logs(workspace: Workspace) -> IngestReport:
    """New log rows into the lake. Reads what others write, so it is tried again."""
    return stages.ingest(workspace, on_rows=watch.get().on_rows)


@task(name="drift", cache_policy=NO_CACHE)
def measure_drift(workspace: Workspace, force: bool) -> DriftOutcome:
    """Live nights against the reference, and the decision."""
    return stages.measure(workspace, forced=force)


@task(name="snapshot", cache_policy=NO_CACHE)
def freeze_replay_dataset(workspace: Workspace, changed: date | None) -> Path:
    """The fixed replay dataset; after drift only nights of the new world may judge."""
    path, _ = stages.snapshot(workspace, judge_since=changed)
    return path


@task(name="train", cache_policy=NO_CACHE)
def train_candidate(workspace: Workspace, snapshot: Path) -> TrainOutcome:
    """Snapshot to candidate release."""
    return train(workspace, snapshot, on_metrics=watch.get().on_metrics)


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate_candidate(workspace: Workspace, release: int, drift: DriftOutcome) -> EvaluateOutcome:
    """Estimates, gate and report."""
    return stages.evaluate(workspace, release, drift)


@task(name="retention", cache_policy=NO_CACHE)
def remove_aged(workspace: Workspace) -> Retained:
    """What is older than configured leaves the lake, the snapshots and the disk."""
    return retain(workspace)


@task(name="metrics", cache_policy=NO_CACHE)
def measure_metrics(workspace: Workspace) -> list[str]:
    """The night's metrics, kept and exported; what went wrong with that is a warning and no failed night."""
    return measure(workspace).warnings


@flow(name="nightly", flow_run_name="nightly-{workspace}", validate_parameters=False)
def nightly(workspace: str, force_train: bool = False, as_of: str | None = None) -> dict[str, object]:
    """One night: ingest, drift, and where the decision says so snapshot, training, evaluation and gate.

    Args:
        workspace: folder of the workspace.
        force_train: train whatever drift says.
        as_of: ISO instant with a zone that every stage takes for now.

    Returns:
        The night's record as JSON values.
    """
    opened = open_workspace(Path(workspace), datetime.fromisoformat(as_of) if as_of else None)
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        record = _night(opened, force_train)
        record = replace(record, warnings=[*record.warnings, *measure_metrics(opened)])
        with UsageLog(opened.metrics_path).stage("retention", opened.night):
            remove_aged(opened)
    _show(opened, record)
    return record.to_json()


def _night(workspace: Workspace, force_train: bool) -> NightRecord:
    clock = _Clock(workspace)
    with clock.stage("ingest"):
        ingested = ingest_logs(workspace)
    if _held(workspace, ingested) is not None:
        return _record(workspace, clock, ingested, None, None)
    with clock.stage("drift"):
        drift = measure_drift(workspace, force_train)
        _keep(workspace, drift)
    if not drift.decision.retrain:
        return _record(workspace, clock, ingested, drift, None)
    with clock.stage("snapshot"):
        snapshot = freeze_replay_dataset(workspace, _changed_since(workspace, drift))
    try:
        with clock.stage("train", workspace.config.train.n_updates):
            trained = train_candidate(workspace, snapshot)
    except BudgetSpentError as spent:  # no failure either: what it learned is kept, and the champion stays
        return _record(workspace, clock, ingested, drift, None, not_trained=str(spent))
    with clock.stage("evaluate"):
        try:
            evaluated = evaluate_candidate(workspace, trained.release, drift)
        except (ErrorSpentError, TooFewEpisodesError) as unread:  # no failure: the night ends, the candidate waits
            workspace.refresh_catalog(workspace.open_lake())
            return _record(workspace, clock, ingested, drift, None, not_judged=(trained.release, str(unread)))
    workspace.refresh_catalog(workspace.open_lake())
    review = ask_for_review(workspace, evaluated.release) if evaluated.passed else None
    return _record(workspace, clock, ingested, drift, evaluated, review=review)


def _keep(workspace: Workspace, drift: DriftOutcome) -> None:
    """Into `drift_history` at once: what a night found stays known even where its training fails."""
    as_of = workspace.as_of(workspace.open_lake())
    record_check(workspace.drift_path, drift.to_json(), as_of=as_of, champion=_trained_champion(workspace))
    with contextlib.suppress(OSError):  # the record is there; `drift page --night` makes the page again
        write_night_page(workspace, as_of)


def _trained_champion(workspace: Workspace) -> int | None:
    return workspace.registry.champion() or None  # version 0 are the rules


def _changed_since(workspace: Workspace, drift: DriftOutcome) -> date | None:
    """After drift, the first night of the new world, where the report tells; else that of the unbroken run of nights
    that drifted, whether they trained, cooled down or were held."""
    if drift.decision.cause != "drift" or drift.report is None or drift.live_nights is None:
        return None
    since = changed_since(drift.report)
    if since is not None:
        return min(date.fromisoformat(since), drift.live_nights[0])
    changed = drift.live_nights[0]
    for check in reversed(read_drift_history(workspace.drift_path)):
        if check.champion != _trained_champion(workspace) or check.live_nights is None or not check.drifted:
            break
        changed = min(changed, date.fromisoformat(check.live_nights[0]))
    return changed


class _Clock:
    """Seconds by stage, and in the log of usage all that a stage took."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._log = workspace, UsageLog(workspace.metrics_path)
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        watch.get().stage(name, total)
        began = time.perf_counter()
        with contextlib.ExitStack() as measured:
            if name != "train":  # measures itself, as it does when it is run by hand
                measured.enter_context(self._log.stage(name, self._workspace.night))
            yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def total(self) -> dict[str, float]:
        return {**self.seconds, "total": round(time.perf_counter() - self._began, 2)}


def _record(
    workspace: Workspace,
    clock: _Clock,
    ingested: IngestReport,
    drift: DriftOutcome | None,
    evaluated: EvaluateOutcome | None,
    not_judged: tuple[int, str] | None = None,
    not_trained: str | None = None,
    review: str | None = None,
) -> NightRecord:
    """The line of the night; `not_judged` is a candidate that did not meet `gate`, and why, `not_trained` why there is
    none."""
    held = _held(workspace, ingested) if drift is None else None
    batch = held or ingested.batch
    evaluation = evaluated.evaluation if evaluated else None
    decision = evaluation.decision if evaluation else None
    value, baseline = (evaluated.candidate, evaluated.baseline) if evaluated else (None, None)
    report = evaluated.report_path.relative_to(workspace.root) if evaluated else None
    as_of = workspace.as_of(workspace.open_lake())
    page = night_page(workspace, as_of.astimezone(UTC).date().isoformat())
    gate = "not read" if not_judged else "not trained" if not_trained else None
    record = NightRecord(
        as_of=as_of.isoformat(timespec="seconds"),
        batch=batch.batch_id if batch else None,
        status=batch.status if batch else "nothing new",
        n_in=batch.counts.n_in if batch else 0,
        n_quarantined=batch.counts.n_quarantined if batch else 0,
        drift="not measured" if drift is None or drift.report is None else drift.report.status,
        decision="batch held" if drift is None else drift.decision.cause,
        release=evaluated.release if evaluated else not_judged[0] if not_judged else None,
        value=value.value if value else None,
        low=value.interval.low if value and value.interval else None,
        high=value.interval.high if value and value.interval else None,
        baseline=baseline.value if baseline else None,
        gate=gate if decision is None else "passed" if decision.passed else "refused",
        reason=not_judged[1] if not_judged else not_trained or _reason(drift, decision, batch),
        report=str(report) if report else None,
        seconds=clock.total(),
        live_from=drift.live_nights[0].isoformat() if drift and drift.live_nights else None,
        warnings=[*_warnings(ingested), *_still_held(workspace, batch), *warnings_of_drift(drift)],
        review=review,
        drift_page=str(page.relative_to(workspace.root)) if drift and page.is_file() else None,
    )
    append_night(workspace.nights_path, record)
    return record


def _reason(drift: DriftOutcome | None, decision: GateDecision | None, batch: Batch | None) -> str:
    return decision.reason if decision else drift.decision.sentence if drift else _why_held(batch)


def _held(workspace: Workspace, ingested: IngestReport) -> Batch | None:
    """The batch that ends the night here: tonight's, or one of outcomes of any night."""
    if ingested.batch is not None and ingested.batch.status == "held":
        return ingested.batch
    return stages.held_outcomes(workspace.open_lake())


def _why_held(batch: Batch | None) -> str:
    if batch is None:
        return ""
    return (
        f"Batch {batch.batch_id} is held and the lake is as it was. {batch.note} `offline-dqn batches show "
        f"{batch.batch_id}` says more, `batches release` lets it in, `batches reject` turns it away."
    )


def _still_held(workspace: Workspace, tonight: Batch | None) -> list[str]:
    """Batches of earlier nights that wait for a person: their rows are missing from everything above."""
    held = [b for b in list_batches(workspace.open_lake()) if b.status == "held"]
    return [
        f"batch {b.batch_id} with {b.counts.n_held:,} rows is still held since {b.settled_at:%Y-%m-%d}; "
        f"`offline-dqn batches show {b.batch_id}`"
        for b in held
        if tonight is None or b.batch_id != tonight.batch_id
    ]


def warnings_of_drift(drift: DriftOutcome | None) -> list[str]:
    """What a person should look at: what is suspicious, what could not be looked for, and what was not compared."""
    if drift is None or drift.report is None:
        return []
    unknown = [said for said in (drift.report.not_looked_for, drift.report.left_out) if said]
    return [*(f"suspicious: {suspicion.sentence}" for suspicion in drift.report.suspicions), *unknown]


def _warnings(ingested: IngestReport) -> list[str]:
    is_held = ingested.batch is not None and ingested.batch.status == "held"  # then no row is in quarantine yet
    of_outcomes = _warnings(ingested.outcomes) if ingested.outcomes else []
    return [
        *(cause for _, cause in ingested.damaged),
        *(f"{file} is empty" for file in ingested.empty),
        *(f"{n:,} rows quarantined: {reason}" for reason, n in ingested.reasons if not is_held),
        *([ingested.account.warning] if ingested.account and ingested.account.warning else []),
        *of_outcomes,
    ]


def _show(workspace: Workspace, record: NightRecord) -> None:
    """The night as Prefect artefacts: the table, and the verdict in words."""
    name = "".join(c if c.isalnum() else "-" for c in workspace.contract.name.lower()).strip("-") or "workspace"
    create_table_artifact(
        table=[dict(zip(COLUMNS, record.row(), strict=True))],
        key=f"night-{name}",
        description=f"The night of {record.as_of[:10]} in {workspace.root.name}",
    )
    verdict = f"**{record.gate or record.decision}**: {as_markdown(record.reason)}"
    verdict += "".join(f"\n\n- {as_markdown(warning)}" for warning in record.warnings)
    if record.review:
        verdict += f"\n\nReview: {as_markdown(record.review)}"
    if record.report:
        verdict += f"\n\nReport: `{workspace.root / record.report}`"
    if record.drift_page:
        verdict += f"\n\nDrift: `{workspace.root / record.drift_page}`"
    create_markdown_artifact(markdown=verdict, key=f"verdict-{name}", description="What the night decided")
