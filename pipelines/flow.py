"""The nightly Prefect flow: one coarse task per stage, in the order of the night."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from datasets.errors import OfflineDqnError
from datasets.ingest import IngestReport
from datasets.lake import LakeError
from datasets.locking import exclusive_lock
from offline_dqn.learner import Metrics
from pipelines import stages
from pipelines.nights import COLUMNS, NightRecord, append_night
from pipelines.stages import DriftOutcome, EvaluateOutcome, TrainOutcome
from pipelines.workspace import Workspace, open_workspace


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
def ingest_logs(workspace: Path) -> IngestReport:
    """New log rows into the lake. Reads what others write, so it is tried again."""
    return stages.ingest(open_workspace(workspace), on_rows=watch.get().on_rows)


@task(name="drift", cache_policy=NO_CACHE)
def measure_drift(workspace: Path, force: bool) -> DriftOutcome:
    """Live nights against the reference, and the decision."""
    return stages.measure(open_workspace(workspace), forced=force)


@task(name="snapshot", cache_policy=NO_CACHE)
def freeze_replay_dataset(workspace: Path, drift: DriftOutcome) -> Path:
    """The fixed replay dataset; after drift only nights of the new world may judge."""
    changed = drift.live_nights[0] if drift.decision.cause == "drift" and drift.live_nights else None
    path, _ = stages.snapshot(open_workspace(workspace), judge_since=changed)
    return path


@task(name="train", cache_policy=NO_CACHE)
def train_candidate(workspace: Path, snapshot: Path) -> TrainOutcome:
    """Snapshot to candidate release."""
    return stages.train(open_workspace(workspace), snapshot, on_metrics=watch.get().on_metrics)


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate_candidate(workspace: Path, release: int, drift: DriftOutcome) -> EvaluateOutcome:
    """Estimates, gate and report."""
    return stages.evaluate(open_workspace(workspace), release, drift)


@flow(name="nightly", flow_run_name="nightly-{workspace}", validate_parameters=False)
def nightly(workspace: str, force_train: bool = False) -> dict[str, object]:
    """One night: ingest, drift, and where the decision says so snapshot, training, evaluation and gate.

    Args:
        workspace: folder of the workspace.
        force_train: train whatever drift says.

    Returns:
        The night's record as JSON values.
    """
    opened = open_workspace(Path(workspace))
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        record = _night(opened, force_train)
    _show(opened, record)
    return record.to_json()


def _night(workspace: Workspace, force_train: bool) -> NightRecord:
    clock = _Clock()
    root = workspace.root
    with clock.stage("ingest"):
        ingested = ingest_logs(root)
    if ingested.batch is not None and ingested.batch.status == "held":
        return _record(workspace, clock, ingested, None, None)
    with clock.stage("drift"):
        drift = measure_drift(root, force_train)
    if not drift.decision.retrain:
        return _record(workspace, clock, ingested, drift, None)
    with clock.stage("snapshot"):
        snapshot = freeze_replay_dataset(root, drift)
    with clock.stage("train", workspace.config.train.n_updates):
        trained = train_candidate(root, snapshot)
    with clock.stage("evaluate"):
        evaluated = evaluate_candidate(root, trained.release, drift)
    workspace.refresh_catalog(workspace.open_lake())
    return _record(workspace, clock, ingested, drift, evaluated)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        watch.get().stage(name, total)
        began = time.perf_counter()
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
) -> NightRecord:
    batch = ingested.batch
    evaluation = evaluated.evaluation if evaluated else None
    decision = evaluation.decision if evaluation else None
    value, baseline = (evaluated.candidate, evaluated.baseline) if evaluated else (None, None)
    report = evaluated.report_path.relative_to(workspace.root) if evaluated else None
    record = NightRecord(
        as_of=workspace.as_of(workspace.open_lake()).isoformat(timespec="seconds"),
        batch=batch.batch_id if batch else None,
        status=batch.status if batch else "nothing new",
        n_in=batch.counts.n_in if batch else 0,
        n_quarantined=batch.counts.n_quarantined if batch else 0,
        drift="not measured" if drift is None or drift.report is None else drift.report.status,
        decision="batch held" if drift is None else drift.decision.cause,
        release=evaluated.release if evaluated else None,
        value=value.value if value else None,
        low=value.interval.low if value and value.interval else None,
        high=value.interval.high if value and value.interval else None,
        baseline=baseline.value if baseline else None,
        gate=None if decision is None else "passed" if decision.passed else "refused",
        reason=decision.reason if decision else drift.decision.sentence if drift else batch.note if batch else "",
        report=str(report) if report else None,
        seconds=clock.total(),
        warnings=_warnings(ingested),
    )
    append_night(workspace.nights_path, record)
    return record


def _warnings(ingested: IngestReport) -> list[str]:
    return [
        *(cause for _, cause in ingested.damaged),
        *(f"{file} is empty" for file in ingested.empty),
        *(f"{n:,} rows quarantined: {reason}" for reason, n in ingested.reasons),
    ]


def _show(workspace: Workspace, record: NightRecord) -> None:
    """The night as Prefect artefacts: the table, and the verdict in words."""
    name = "".join(c if c.isalnum() else "-" for c in workspace.contract.name.lower()).strip("-") or "workspace"
    create_table_artifact(
        table=[dict(zip(COLUMNS, record.row(), strict=True))],
        key=f"night-{name}",
        description=f"The night of {record.as_of[:10]} in {workspace.root.name}",
    )
    verdict = f"**{record.gate or record.decision}**: {record.reason}"
    verdict += "".join(f"\n\n- {warning}" for warning in record.warnings)
    if record.report:
        verdict += f"\n\nReport: `{workspace.root / record.report}`"
    create_markdown_artifact(markdown=verdict, key=f"verdict-{name}", description="What the night decided")
