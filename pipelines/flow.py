"""The nightly Prefect flow: one coarse task per stage, in the order of the night.

A night that died is taken up where it stopped, by our own record (`night_progress`); Prefect's cache plays no part.
Only what touches the outside is tried again: the logs that others write, and Prefect's server.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.runtime import flow_run
from prefect.task_engine import TaskRunTimeoutError

from datasets.errors import OfflineDqnError
from datasets.ingest import IngestReport
from datasets.journal import LakeError
from datasets.locking import LockedError, exclusive_lock
from datasets.snapshot import SnapshotError, current_snapshot
from drift.findings import changed_since
from offline_dqn.trained import Metrics
from pipelines import stages
from pipelines.drift_history import read_drift_history, record_check
from pipelines.drift_pages import write_night_page
from pipelines.engines import spreading
from pipelines.lapsing import record_lapses
from pipelines.metrics.budget import BudgetSpentError
from pipelines.metrics.measuring import measure
from pipelines.metrics.usage import StageUsage, UsageLog
from pipelines.night_artifacts import ended, show_night
from pipelines.night_progress import NightProgress, begin_or_resume, end_progress, read_progress, write_progress
from pipelines.night_record import Ingested, drift_from_json, drift_to_json, held_tonight, record_of
from pipelines.nights import NightRecord, append_night, read_nights
from pipelines.notify.budgets import budget_notices
from pipelines.notify.night import Found, held_batches, of_failed_night, of_night
from pipelines.notify.telling import tell
from pipelines.readings import TooFewEpisodesError
from pipelines.review import ask_for_review, review_by_shell
from pipelines.sentry.telling import tell_sentry
from pipelines.stages import DriftOutcome, EvaluateOutcome
from pipelines.tracing.flows import FlowTrace, begin_trace
from pipelines.training import StageError, TrainOutcome, train
from pipelines.untold import warn_of_untold
from pipelines.upkeep import Retained, retain
from pipelines.workspace import Workspace, open_workspace
from reports.ledger import ErrorSpentError


@dataclass(frozen=True)
class Watch:
    """Who is told how far a night has come; a flow run by a worker tells nobody."""

    stage: Callable[[str, int | None], object] = field(default=lambda *_: None)
    on_rows: Callable[[int], None] = field(default=lambda _: None)
    on_metrics: Callable[[int, Metrics], None] = field(default=lambda *_: None)


_NOBODY = Watch()

watch: ContextVar[Watch] = ContextVar("watch", default=_NOBODY)
"""Set by the command line: a flow's parameters are stored as JSON and cannot carry a function."""


def watching() -> Watch:
    """Who is told. Tasks ask this function: they travel with their pieces to other processes, and a variable cannot."""
    return watch.get()


_GRACE_S = 120.0
"""Seconds that a stage has left to stop once its time is up: what hangs in a library's own code hears nothing of it."""


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether the same ingest can succeed a little later: a full disk may, a wrong contract or path does not."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, TimeoutError):
        return False
    return isinstance(error, LakeError) or not isinstance(error, OfflineDqnError)


@task(name="ingest", retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=_may_pass, cache_policy=NO_CACHE)
def ingest_logs(workspace: Workspace) -> IngestReport:
    """New log rows into the lake. Reads what others write, so it is tried again."""
    return stages.ingest(workspace, on_rows=watching().on_rows)


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
    return train(workspace, snapshot, on_metrics=watching().on_metrics)


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate_candidate(workspace: Workspace, release: int, drift: DriftOutcome) -> EvaluateOutcome:
    """Estimates, gate and report."""
    return stages.evaluate(workspace, release, drift)


@task(name="ask for review", retries=2, retry_delay_seconds=[2, 10], cache_policy=NO_CACHE)
def start_review(workspace: Workspace, release: int) -> str:
    """The review of a candidate that passed. It asks a server, so it is tried again."""
    return ask_for_review(workspace, release)


@task(name="retention", cache_policy=NO_CACHE)
def remove_aged(workspace: Workspace) -> Retained:
    """What is older than configured leaves the lake, the snapshots and the disk."""
    return retain(workspace)


@task(name="metrics", cache_policy=NO_CACHE)
def measure_metrics(workspace: Workspace) -> list[str]:
    """The night's metrics, kept and exported; what went wrong with that is a warning and no failed night."""
    return measure(workspace).warnings


def _run_name() -> str:
    given = flow_run.parameters
    night = str(given.get("as_of") or datetime.now(UTC).date())[:10]
    return f"night {night} of {Path(str(given.get('workspace'))).name}"


class CrashedError(OfflineDqnError):
    """A night whose process ended without a word: killed, or out of memory."""


def tell_of_crash(_: Any, run: FlowRun, state: State[Any]) -> None:
    """What a worker does where the process of a night has died: whoever is to be told is told, by the living."""
    workspace = open_workspace(Path(str(run.parameters["workspace"])), follow=False)
    progress = read_progress(workspace)
    error = CrashedError(f"Its process ended: {state.message or 'nobody knows why'}")
    stage, n_starts = (progress.under_way, progress.n_starts) if progress is not None else ("", 1)
    untold = tell(workspace, *_parts(of_failed_night(stage, error, n_starts=n_starts)))
    warn_of_untold(*untold, tell_sentry(workspace, error, stage=stage, start=n_starts, prefect_run=run.id))


@flow(
    name="nightly",
    flow_run_name=_run_name,
    validate_parameters=False,
    on_crashed=[tell_of_crash],  # type: ignore[list-item]  # which is called by position, whatever the names
)
def nightly(
    workspace: str, force_train: bool = False, as_of: str | None = None, afresh: bool = False
) -> dict[str, object]:
    """One night: ingest, drift, and where the decision says so snapshot, training, evaluation and gate.

    Args:
        workspace: folder of the workspace.
        force_train: train whatever drift says.
        as_of: ISO instant with a zone that every stage takes for now.
        afresh: begin anew, even where a night that died could be taken up.

    Returns:
        The night's record as JSON values.
    """
    opened = open_workspace(Path(workspace), datetime.fromisoformat(as_of) if as_of else None, follow=False)
    running = _Running(opened)
    try:
        with (
            exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0),
            spreading(opened.config.engine, opened.root),
        ):
            opened.follow_buckets()  # in here, so that a bucket that is away is told like any other failure
            record = _whole_night(running, force_train, afresh)
    except Exception as error:
        stage, n_starts = running.stage_under_way, running.n_starts
        untold = tell(opened, *_parts(of_failed_night(stage, error, n_starts=n_starts)))
        running.trace.fail(error)
        warn_of_untold(*untold)
        if not isinstance(error, LockedError):  # another night is at work, and that one is well
            tags = {"stage": stage, "start": n_starts, "prefect_run": flow_run.id, "trace": running.trace.trace_id}
            warn_of_untold(tell_sentry(opened, error, **tags))
        raise
    show_night(opened, record)
    return ended(record)  # type: ignore[return-value]  # a state that says how it ended; Prefect unpacks the record


def _whole_night(running: _Running, force_train: bool, afresh: bool) -> NightRecord:
    running.progress = begin_or_resume(running.workspace, force_train=force_train, afresh=afresh)
    running.trace = _trace_of(running)
    record = _recorded(running)
    if record is None:
        record, found = _night(running, force_train)
        untold = tell(running.workspace, *_parts(found))
        record = replace(record, warnings=[*record.warnings, *untold])
        append_night(running.workspace.nights_path, record)
    end_progress(running.workspace)
    with running.trace.stage("metrics"):
        record = replace(record, warnings=[*record.warnings, *measure_metrics(running.workspace)])
    record = replace(record, warnings=[*record.warnings, *_tell_of_budgets(running.workspace)])
    with running.stage("retention"):
        _limited(running, remove_aged)(running.workspace)
    untraced = running.trace.end({**record.to_json(), "n_warnings": len(record.warnings)})
    return replace(record, warnings=[*record.warnings, *untraced])


def _trace_of(running: _Running) -> FlowTrace:
    """The trace of the night; one that is taken up goes on in the same."""
    run = {"prefect.flow_run_id": str(flow_run.id or ""), "prefect.flow_run_name": str(flow_run.name or "")}
    began, n_starts = running.progress.started_at, running.n_starts
    return begin_trace(running.workspace, "nightly", began, start=n_starts, started_at=began, **run)


def _tell_of_budgets(workspace: Workspace) -> tuple[str, ...]:
    """With tonight's metrics, how the error budgets stand; what goes wrong with that is a warning."""
    try:
        return tell(workspace, *budget_notices(workspace, live=False))
    except (OfflineDqnError, OSError) as error:
        return (f"how the error budgets stand could not be told: {str(error).splitlines()[0]}",)


def _recorded(running: _Running) -> NightRecord | None:
    """The line of this very night, where it died between writing that and forgetting how far it had come."""
    last = read_nights(running.workspace.nights_path)[-1:]
    return next((night for night in last if night.started_at == running.progress.started_at), None)


def _parts(found: Found) -> tuple[Any, Any]:
    return found.notices, found.looked_for


def _night(running: _Running, force_train: bool) -> tuple[NightRecord, Found]:
    ingested = _ingest(running)
    workspace = running.workspace
    if held_tonight(workspace, ingested) is not None:
        return running.ends(ingested)
    drift = _drift(running, force_train)
    if not drift.decision.retrain:
        return running.ends(ingested, drift)
    snapshot = _snapshot(running, drift)
    try:
        release = _train(running, snapshot)
    except BudgetSpentError as spent:  # no failure: what it learned is kept, and the champion stays
        return running.ends(ingested, drift, not_trained=str(spent))
    with running.stage("evaluate"):
        try:
            evaluated = _limited(running, evaluate_candidate)(workspace, release, drift)
        except (ErrorSpentError, TooFewEpisodesError) as unread:  # no failure: the night ends, the candidate waits
            workspace.refresh_catalog(workspace.open_lake())
            return running.ends(ingested, drift, not_judged=(release, str(unread)))
    workspace.refresh_catalog(workspace.open_lake())
    review = _review(workspace, evaluated.release) if evaluated.passed else None
    return running.ends(ingested, drift, evaluated, review=review)


def _ingest(running: _Running) -> Ingested:
    """Tonight's logs in the lake; where the lake moved since a night died, what it found before the snapshot is old."""
    workspace = running.workspace
    lake = workspace.open_lake()
    if running.intact_snapshot() is not None:
        known = running.progress.found("ingest")
    else:
        known = running.progress.found("ingest", lake.commit_number())
    if known is not None:
        running.skipped.append("ingest")
    else:
        with running.stage("ingest"):
            report = _limited(running, ingest_logs)(workspace)
            known = running.keep("ingest", Ingested.of(report).to_json())
    running.take_instant()
    return Ingested(**known)


def _drift(running: _Running, force_train: bool) -> DriftOutcome:
    lake = running.workspace.open_lake().commit_number()
    known = running.progress.found("drift", None if running.intact_snapshot() else lake)
    if known is not None:
        running.skipped.append("drift")
        return drift_from_json(known)
    with running.stage("drift"):
        drift: DriftOutcome = _limited(running, measure_drift)(running.workspace, force_train)
        _keep(running.workspace, drift)
        running.keep("drift", drift_to_json(drift))
    return drift


def _snapshot(running: _Running, drift: DriftOutcome) -> Path:
    known = running.intact_snapshot()
    if known is not None:
        running.skipped.append("snapshot")
        return known
    workspace = running.workspace
    with running.stage("snapshot"):
        path: Path = _limited(running, freeze_replay_dataset)(workspace, _changed_since(workspace, drift))
        running.keep("snapshot", {"snapshot": path.name})
    return path


def _train(running: _Running, snapshot: Path) -> int:
    workspace, known = running.workspace, running.progress.found("train")
    if known is not None and (workspace.release_path(known["release"]) / "training.json").is_file():
        running.skipped.append("train")
        return int(known["release"])
    with running.stage("train", workspace.config.train.n_updates):
        release: int = _limited(running, train_candidate)(workspace, snapshot).release
        running.keep("train", {"release": release})
    return release


def _review(workspace: Workspace, release: int) -> str:
    """How the candidate can be decided on; a night never fails for a server that does not answer."""
    try:
        return start_review(workspace, release)
    except Exception as error:
        return f"{review_by_shell(release)} (no review was started: {type(error).__name__})"


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


class _Running:
    """A night that runs: how far it has come, written down before and after every stage."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.progress = NightProgress({}, "", None)
        self.stage_under_way = ""
        self.skipped: list[str] = []
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._stage_began = 0.0
        self.trace = FlowTrace()

    @property
    def n_starts(self) -> int:
        return self.progress.n_starts

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        self.stage_under_way = name
        if name != "retention":  # the night is over then: nothing is shown, and nothing of it is taken up
            watch.get().stage(name, total)
            self.progress = self.progress.begin(name)
            write_progress(self.workspace, self.progress)
        self._stage_began = time.perf_counter()
        try:
            with contextlib.ExitStack() as measured:
                measured.enter_context(self.trace.stage(name, self._used))
                if name != "train":  # measures itself, as it does when it is run by hand
                    log = UsageLog(self.workspace.metrics_path)
                    measured.enter_context(log.stage(name, self.workspace.night))
                yield
        except TaskRunTimeoutError as error:
            raise _too_long(self.workspace, name) from error
        finally:
            self._seconds[name] = round(time.perf_counter() - self._stage_began, 2)
        self.stage_under_way = ""

    def keep(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        """Writes down what the stage under way found."""
        lake = self.workspace.open_lake().commit_number()
        seconds = round(time.perf_counter() - self._stage_began, 2)
        self.progress = self.progress.finish(name, lake, seconds, found)
        write_progress(self.workspace, self.progress)
        self.trace.found(found)
        return found

    def _used(self) -> list[StageUsage]:
        return UsageLog(self.workspace.metrics_path).of_night(self.workspace.night())

    def intact_snapshot(self) -> Path | None:
        """The snapshot that this night froze; from there on the lake may move. None without one, or where it is gone
        or was erased from."""
        known = self.progress.found("snapshot")
        path = self.workspace.snapshots_path / known["snapshot"] if known is not None else None
        try:
            return path if path is not None and path.is_dir() and current_snapshot(path) == path else None
        except SnapshotError:
            return None

    def take_instant(self) -> None:
        """From here on every stage takes the same instant for now, and so does the night that is taken up."""
        if self.progress.as_of is None:
            as_of = self.workspace.as_of(self.workspace.open_lake()).isoformat()
            self.progress = replace(self.progress, as_of=as_of)
            write_progress(self.workspace, self.progress)
        self.workspace = open_workspace(self.workspace.root, datetime.fromisoformat(str(self.progress.as_of)))

    def ends(
        self,
        ingested: Ingested,
        drift: DriftOutcome | None = None,
        evaluated: EvaluateOutcome | None = None,
        *,
        not_judged: tuple[int, str] | None = None,
        not_trained: str | None = None,
        review: str | None = None,
    ) -> tuple[NightRecord, Found]:
        """The record of the night and what of it a person should hear of."""
        seconds = {**{s: self.progress.seconds()[s] for s in self.skipped}, **self._seconds}
        seconds["total"] = round(time.perf_counter() - self._began, 2)
        record = record_of(
            self.workspace,
            ingested,
            drift,
            evaluated,
            seconds=seconds,
            not_judged=not_judged,
            not_trained=not_trained,
            review=review,
        )
        record = replace(
            record,
            started_at=self.progress.started_at,
            ended_at=datetime.now(UTC).isoformat(),
            resumed=_resumed(self.progress, self.skipped),
            trace_id=self.trace.trace_id,
        )
        lapsed = record_lapses(self.workspace)
        record = replace(record, warnings=[*record.warnings, *lapsed])
        moved = [c.name for c in drift.report.drifted_columns] if drift and drift.report else []
        promise = drift.broken_promise if drift else ""
        return record, of_night(record, held_batches(self.workspace), promise=promise, moved=moved, lapsed=lapsed)


def _resumed(progress: NightProgress, skipped: list[str]) -> str | None:
    if progress.n_starts > 1:
        kept = f"taken over from before: {', '.join(skipped)}" if skipped else "nothing of it could be taken over"
        return f"start {progress.n_starts} of this night; {kept}"
    return f"begun afresh: {progress.why_afresh}" if progress.why_afresh else None


class StageTimeoutError(StageError):
    """A stage that took longer than its time."""


def _too_long(workspace: Workspace, name: str) -> StageTimeoutError:
    hours = getattr(workspace.config.nightly.timeout_hours, name)
    return StageTimeoutError(
        f"The stage {name} was stopped after {hours:g} hours, its time in [nightly.timeout_hours]. Look at what it was "
        "given and at the machine; where it needs longer, raise the number. `offline-dqn nightly` goes on from there."
    )


def _limited(running: _Running, stage: Task[..., Any]) -> Callable[..., Any]:
    """A stage with its time limit: Prefect stops it; what does not stop ends with the process, a little later."""
    limit_s = 3600.0 * getattr(running.workspace.config.nightly.timeout_hours, stage.name)
    limited = stage.with_options(timeout_seconds=limit_s)

    def run(*arguments: Any) -> Any:
        last = threading.Timer(limit_s * (stage.retries + 1) + _GRACE_S, _end_hanging, (running.workspace, stage.name))
        last.daemon = True
        last.start()
        try:
            return limited(*arguments)
        finally:
            last.cancel()

    return run


def _end_hanging(workspace: Workspace, name: str) -> None:
    """Ends the process: a library holds the stage and does not come back. Whatever it was at can be repeated."""
    error = _too_long(workspace, name)
    print(f"error: {error} It did not stop when told to, so the process ends.", file=sys.stderr, flush=True)
    tell(workspace, *_parts(of_failed_night(name, error, n_starts=1)))
    os._exit(1)
