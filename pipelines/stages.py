"""The stages of a night as plain functions: read, call the core once, write. Shell, notebook and flow call these."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.batches import Batch, list_batches
from datasets.coverage import read_coverage
from datasets.data_docs import docs_folder, docs_path, drop_old_docs, write_docs
from datasets.erased import read_erased
from datasets.freezing import freeze_snapshot, read_episodes
from datasets.ingest import IngestReport, ingest_logs
from datasets.journal import AlteredFilesError, LakeError, refuse_altered
from datasets.lake import Lake
from datasets.logfiles import holds_logs
from datasets.quarantine_replay import ReplayReport, replay_quarantine
from datasets.replay import Replay
from datasets.simulators.autoscaler_logs import SimulatedLogs, simulate_logs
from datasets.snapshot import (
    ErasedSnapshotError,
    SnapshotError,
    SnapshotSummary,
    current_snapshot,
    erased_mark,
    open_snapshot,
    read_summary,
)
from datasets.snapshot_bucket import set_checked
from datasets.splits import gate_share
from datasets.spreading import Spread
from datasets.step_rules import ConstraintError
from datasets.suite_process import SuiteError
from datasets.tables import TABLES
from datasets.validation import ValidationResult, validate_steps
from drift.decision import LivePerformance, RetrainDecision, decide_retrain
from drift.records import DriftReport
from offline_dqn.shield import Shielded
from pipelines.acting import load_release
from pipelines.drift_pages import checks_now, checks_of_night
from pipelines.drift_windows import drift_of_champion
from pipelines.engines import spreading
from pipelines.fallbacks import late_share
from pipelines.lapsing import EVALUATED_AT, why_lapsed
from pipelines.live_nights import freshness, newest_nights, nothing_to_compare
from pipelines.log_reading import read_log
from pipelines.promising import own_episodes, promises_of
from pipelines.proving import proof_of
from pipelines.readings import (
    EVALUATION,
    READING,
    check_writable,
    digest_of,
    evaluation_bytes,
    finish_reading,
    found_before,
    judged_releases,
    ledger_of,
    refuse_too_few,
    set_up,
    snapshot_of,
    spent_at,
)
from pipelines.serving.decision_log import mend_log
from pipelines.training import VERSION_ZERO, StageError
from pipelines.trainings import last_training
from pipelines.upkeep import check_snapshots, compact_lake
from pipelines.workspace import Workspace
from reports.episode_columns import EPISODES
from reports.estimators import on_policy_returns
from reports.intervals import variance_of_mean
from reports.ledger import Reading, Verdict, in_words
from reports.manifest import read_manifest
from reports.plan import LogPlan, plan_log
from reports.promises import broken_sentence, judge_promise
from reports.proof_records import Promise
from reports.records import Estimate, Evaluation, evaluation_from_json, evaluation_to_json
from reports.registry import JUDGED_AGAINST
from reports.render import ReportData, render_report

# --- ingest, validate


def ingest(
    workspace: Workspace,
    paths: Sequence[Path] = (),
    *,
    outcomes: Sequence[Path] = (),
    on_rows: Callable[[int], None] = lambda _: None,
) -> IngestReport:
    """Takes new log rows into the lake, steps and then outcomes, each as a batch of its own.

    Args:
        paths, outcomes: logs of steps and of outcomes; without either, those in `logs/steps` and `logs/outcomes`. The
            first folder may be empty once the lake holds batches: logs may come by path, or be cleared away once read.

    Returns:
        The report on steps, with that on outcomes inside, if there were any.

    Raises:
        StageError: there are outcomes, and the contract does not say what they mean; or the folder of logs is gone.
    """
    lake = workspace.open_lake()
    if not paths and not outcomes:
        if not workspace.logs_path.is_dir():
            raise StageError(
                f"{workspace.logs_path} does not exist, so nobody can tell whether there are new logs. Is a disk not "
                f"mounted? Where logs come some other way, leave an empty folder: mkdir -p {workspace.logs_path}"
            )
        for folder in (workspace.logs_path, workspace.outcome_logs_path):
            mend_log(folder)  # what a killed server left of a line is no row; one that runs sees to it itself
        paths = [workspace.logs_path] if holds_logs(workspace.logs_path) or not list_batches(lake) else []
        outcomes = [workspace.outcome_logs_path] if holds_logs(workspace.outcome_logs_path) else []
    if outcomes and workspace.contract.outcomes is None:
        raise StageError(
            f"{outcomes[0]} holds outcomes, and {workspace.root / 'contract.toml'} has no table [outcomes]. Say there "
            "how long after its decision an outcome counts (attribution_window), or take the files away. Nothing was "
            "taken in."
        )
    with spreading(workspace.config.engine, workspace.root) as spread:
        report = _take_in(workspace, lake, "steps", paths, on_rows, spread)
        if outcomes:
            report = replace(report, outcomes=_take_in(workspace, lake, "outcomes", outcomes, on_rows, spread))
    try:
        compact_lake(workspace, lake)
    except AlteredFilesError as error:  # the batches are in, and what is in them is whole
        report = replace(report, not_merged=str(error))
    except LakeError:
        pass  # the batches are in; the next ingest tells of a full disk, and merges, too
    workspace.refresh_catalog(lake)
    for batch in (report.batch, report.outcomes.batch if report.outcomes else None):
        if batch is not None:
            with contextlib.suppress(SuiteError, OSError):  # the batch is in; `batches show` makes the page again
                batch_docs(workspace, batch)
    return report


def _take_in(
    workspace: Workspace,
    lake: Lake,
    kind: Literal["steps", "outcomes"],
    paths: Sequence[Path],
    on_rows: Callable[[int], None],
    spread: Spread,
) -> IngestReport:
    if not paths:
        return IngestReport(None, (), (), (), ())
    return ingest_logs(
        lake,
        paths,
        workspace.config.ingest,
        workspace.config.validate_,
        kind=kind,
        as_of=workspace.given_as_of,
        base=workspace.root,
        on_rows=on_rows,
        spread=spread,
        elsewhere=workspace.config.engine.address is not None,
    )


def held_outcomes(lake: Lake) -> Batch | None:
    """The newest batch of outcomes that waits for a person: rewards that it brings would be taken for the default."""
    held = [batch for batch in list_batches(lake) if batch.status == "held" and batch.kind == "outcomes"]
    return held[-1] if held else None


def _refuse_held_outcomes(lake: Lake) -> None:
    held = held_outcomes(lake)
    if held is not None:
        raise StageError(
            f"Batch {held.batch_id} of outcomes is held, and decisions that it rewards would take the default reward. "
            f"`offline-dqn batches show {held.batch_id}` says why; release or reject it first."
        )


def replay_quarantined(
    workspace: Workspace, *, reason: str | None = None, batch: str | None = None
) -> list[ReplayReport]:
    """Judges quarantined rows again and takes those into the lake that fit the contract as it is now."""
    lake = workspace.open_lake()
    reports = replay_quarantine(
        lake,
        workspace.config.ingest,
        reason=reason,
        batch=batch,
        as_of=workspace.given_as_of,
        at=datetime.now(UTC),
    )
    workspace.refresh_catalog(lake)
    return reports


def validate(workspace: Workspace) -> ValidationResult:
    """Runs the contract's suite on the whole lake, compares its nights, and leaves the result beside it."""
    lake = workspace.open_lake()
    refuse_altered([file for table in TABLES for file in lake.files(table)])
    result = validate_steps(
        lake.files("steps"),
        lake.contract,
        summary=None,
        config=workspace.config.validate_,
        recent=(),
        as_of=workspace.as_of(lake),
    )
    (lake.root / "validation.json").write_text(json.dumps(result.to_json(), indent=1))
    return result


def batch_docs(workspace: Workspace, batch: Batch) -> Path | None:
    """The Data Docs page of a batch, made if it is not there; None where there was no row to validate."""
    if batch.validation is None:
        return None
    lake = workspace.open_lake()
    path = docs_path(lake, batch.batch_id)
    if not path.exists():
        write_docs(ValidationResult.from_json(batch.validation), path, title=f"Batch {batch.batch_id}")
        drop_old_docs(lake, keep=workspace.config.validate_.keep_docs)
    return path


def lake_docs(workspace: Workspace, result: ValidationResult) -> Path:
    """Writes the Data Docs page of a validation of the whole lake, and returns its path."""
    path = docs_folder(workspace.open_lake()) / "lake" / "index.html"
    write_docs(result, path, title=f"The lake of {workspace.contract.name}")
    return path


# --- snapshot, drift


def snapshot(workspace: Workspace, *, judge_since: date | None = None) -> tuple[Path, SnapshotSummary]:
    """Freezes the replay dataset; after a change of the world, `judge_since` is the first night that may judge."""
    lake = workspace.open_lake()
    _refuse_held_outcomes(lake)
    refuse_altered([file for table in TABLES for file in lake.files(table)])
    check_snapshots(workspace)
    before = read_erased(lake.root).hashes
    path, summary = freeze_snapshot(
        lake,
        workspace.config.snapshot,
        workspace.snapshots_path,
        as_of=workspace.as_of(lake),
        judge_since=judge_since,
        whole_nights=workspace.config.ingest.as_of == "newest",
    )
    if read_erased(workspace.open_lake().root).hashes == before:
        set_checked(path)
        return path, summary
    check_snapshots(workspace)  # another machine has erased meanwhile; here an erasure waits for a night to end
    try:
        left = current_snapshot(path)
    except ErasedSnapshotError as error:
        raise StageError(
            "All that was frozen was erased on another machine meanwhile. Run the same command again."
        ) from error
    return left, read_summary(left)


@dataclass(frozen=True)
class DriftOutcome:
    """What the drift stage found.

    Attributes:
        report: the comparison; None where there is no champion or no live episode.
        decision: whether to retrain, and why.
        live_nights: first and last night of the live window.
        broken_promise: how the champion's own nights break what its evaluation promised, as a clause; "" if they
            do not.
    """

    report: DriftReport | None
    decision: RetrainDecision
    live_nights: tuple[date, date] | None
    broken_promise: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        nights = [night.isoformat() for night in self.live_nights] if self.live_nights else None
        report = self.report.to_json() if self.report else None
        return {"decision": self.decision.to_json(), "live_nights": nights, "report": report}


def measure(workspace: Workspace, *, forced: bool = False) -> DriftOutcome:
    """Compares the newest nights with what the champion was judged on, and decides whether to retrain."""
    champion = workspace.registry.champion()
    config = workspace.config.drift
    if champion is None or champion == VERSION_ZERO:
        decision = decide_retrain(has_champion=False, report=None, champion_age_days=None, config=config, forced=forced)
        return DriftOutcome(None, decision, None)
    lake = workspace.open_lake()
    _refuse_held_outcomes(lake)
    as_of = workspace.as_of(lake)
    try:
        trained_on, summary = open_snapshot(current_snapshot(snapshot_of(workspace, champion)))
        with contextlib.suppress(ConstraintError):  # the champion is older than a rule's feature: its own rules stand
            trained_on = trained_on.under(workspace.contract.rules)
    except SnapshotError as error:
        return DriftOutcome(None, _without_reference(workspace, champion, error, as_of, forced), None)
    frozen_at = datetime.fromisoformat(summary.as_of)
    since = read_episodes(lake, workspace.config.snapshot, as_of=as_of, started_after=frozen_at)
    live = newest_nights(workspace, since, as_of)
    report, performance, broken = None, None, ""
    if live is not None:
        assert since is not None  # the live nights are among these
        report = drift_of_champion(workspace, champion, trained_on, since, live, frozen_at)
        performance = _performance(workspace, champion, live.subset(live.policy_versions == str(champion)))
        # Under the contract as it is now, which may name more actions than the snapshot's.
        acting = load_release(workspace, champion, since.contract)
        own = own_episodes(workspace, acting, champion, since, since=frozen_at, as_of=as_of)
        broken = broken_sentence(judge_promise(champion, "", recorded_evaluation(workspace, champion), own))
    decision = decide_retrain(
        has_champion=True,
        report=report,
        champion_age_days=(as_of - frozen_at).total_seconds() / 86400,
        config=config,
        forced=forced,
        performance=performance,
        broken_promise=broken,
        night=as_of.astimezone(UTC).date(),
        trained=last_training(workspace, as_of),
        nothing_to_compare=nothing_to_compare(since, frozen_at, as_of) if live is None else "",
    )
    nights = (live.nights.min().astype(date), live.nights.max().astype(date)) if live is not None else None
    return DriftOutcome(report, decision, nights, broken)


def _without_reference(
    workspace: Workspace, champion: int, error: SnapshotError, as_of: datetime, forced: bool
) -> RetrainDecision:
    manifest = read_manifest(workspace.release_path(champion))
    made_at = manifest.created_at if manifest is not None else as_of
    return decide_retrain(
        has_champion=True,
        report=None,
        champion_age_days=(as_of - made_at).total_seconds() / 86400,
        config=workspace.config.drift,
        forced=forced,
        night=as_of.astimezone(UTC).date(),
        trained=last_training(workspace, as_of),
        nothing_to_compare=(
            f"what the champion was judged on cannot be read, so nothing can be compared ({str(error).rstrip('.')}); "
            "`offline-dqn nightly --force-train` trains a successor with a reference of its own"
        ),
    )


def promises(workspace: Workspace) -> tuple[Promise, ...]:
    """What each promoted release earned beside what its evaluation promised."""
    return promises_of(workspace, lambda release: recorded_evaluation(workspace, release))


def _performance(workspace: Workspace, champion: int, own: Replay) -> LivePerformance | None:
    """The champion's promise against what its own live episodes earned; None without a promise, or a second cluster."""
    evaluation = recorded_evaluation(workspace, champion)
    if evaluation is None or evaluation.deciding_estimator is None:
        return None
    promised = evaluation.estimate(evaluation.deciding_estimator, "candidate")
    if promised is None or promised.interval is None:
        return None
    n_clusters = len(np.unique(own.clusters))
    if n_clusters < 2:
        return None
    returns = on_policy_returns(own.rewards, own.offsets, own.contract.gamma)
    return LivePerformance(
        promised_low=promised.interval.low,
        live_mean=float(returns.mean()),
        live_standard_error=math.sqrt(variance_of_mean(returns, own.clusters)),
        n_episodes=n_clusters,
    )


# --- evaluate


@dataclass(frozen=True)
class EvaluateOutcome:
    """A candidate's recorded evaluation."""

    release: int
    evaluation: Evaluation
    report_path: Path
    repeated: bool
    not_replayable: str = ""
    """Why the decision cannot be made again from its snapshot; "" where it can."""
    stale: str = ""
    """Why the decision no longer stands: it was compared with another champion; "" where it does."""

    @property
    def passed(self) -> bool:
        """Whether the gate opened."""
        return self.evaluation.decision is not None and self.evaluation.decision.passed

    @property
    def candidate(self) -> Estimate | None:
        """The candidate's value by the estimator that decides."""
        name = self.evaluation.deciding_estimator
        return self.evaluation.estimate(name, "candidate") if name else None

    @property
    def baseline(self) -> Estimate | None:
        """The value of what runs today: the log's own return where the baseline wrote it, else an estimate."""
        found = self.evaluation
        if found.baseline_source == "estimated" and found.deciding_estimator:
            return found.estimate(found.deciding_estimator, "baseline")
        return found.estimate("on_policy", "log")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "release": self.release,
            "passed": self.passed,
            "repeated": self.repeated,
            "not_replayable": self.not_replayable,
            "stale": self.stale,
            "report": str(self.report_path),
            "evaluation": evaluation_to_json(self.evaluation),
        }


def evaluate(
    workspace: Workspace, release: int, drift: DriftOutcome | None = None, *, again: bool = False
) -> EvaluateOutcome:
    """Estimates a release on its snapshot's `gate` episodes, decides, and writes evaluation and report beside it.

    A release meets `gate` once: a repeat returns the recorded decision and spends nothing. The reading is entered in
    the error ledger before `gate` is read; killed after that and repeated, it goes on with the reading it began.

    Args:
        drift: what the night's drift stage found, for the report.
        again: judge a release once more whose recorded decision compared it with a former champion (another reading of
            `gate`), or that has lapsed (the same reading, held against the newest nights).

    Raises:
        ErrorSpentError: the year's error is spent; `gate` was not read.
        TooFewEpisodesError: `gate` holds fewer episodes than may decide; it was not read.
        SettingsError: a setting is wrong, even where the decision is known already.
        StageError: there is nothing to judge the release on or to compare it with, or nothing can be written.
    """
    gate = workspace.config.gate
    folder = workspace.registry.path(release)
    recorded = recorded_evaluation(workspace, release)
    ledger = ledger_of(workspace)
    report_path = folder / "report.html"
    stale = workspace.registry.stale(release)
    if recorded is not None and again and not stale and not why_lapsed(workspace, release):
        raise StageError(
            f"The decision on release {release} stands: it was compared with what acts now. A second reading of the "
            "same episodes would spend error and could only repeat or contradict it."
        )
    if recorded is not None and not again:
        finish_reading(workspace, release)
        why = _why_not_replayable(workspace, release)
        return EvaluateOutcome(release, recorded, report_path, repeated=True, not_replayable=why, stale=stale)
    bench = set_up(workspace, release)
    refuse_too_few(bench)
    check_writable(folder)
    fresh = freshness(workspace, bench.replay, bench.summary)
    proof = replace(proof_of(workspace, bench.replay), promises=promises(workspace))
    reading = ledger.begin(bench.terms, gate, spent_at(workspace), judged_releases(workspace))
    found = found_before(workspace, reading, release)
    if found is None:
        with spreading(workspace.config.engine, workspace.root) as spread:
            evaluation, episodes = bench.judge(fresh, late_share(workspace, bench.champion), spread=spread)
        found = replace(evaluation, proof=proof), episodes
    evaluation, episodes = found
    decision = evaluation.decision
    assert decision is not None  # evaluate_candidate always decides
    verdict: Verdict = "passed" if decision.passed else "refused"
    _refuse_second_verdict(reading, release, verdict)
    data = _report_data(workspace, release, evaluation, bench.summary, drift)
    data = replace(data, lineage={**data.lineage, "reading of gate": in_words(reading, ledger.readings(), gate)})
    content = evaluation_bytes(evaluation_to_json(evaluation))
    workspace.registry.record_evaluation(
        release,
        gate=verdict,
        files={EVALUATION: content, EPISODES: episodes, "report.html": render_report(data).encode()},
        tags={
            **_headline(evaluation),
            EVALUATED_AT: datetime.now(UTC).isoformat(),
            JUDGED_AGAINST: bench.stands_for,
            READING: reading.number,
        },
    )
    ledger.decide(reading, verdict, digest_of(content), release)
    return EvaluateOutcome(release, evaluation, report_path, repeated=False)


def _refuse_second_verdict(reading: Reading, release: int, verdict: Verdict) -> None:
    """What a reading found may be gone; judged again by other code or on another night, it must not end otherwise."""
    if reading.verdict not in (None, verdict):
        listed = ", ".join(map(str, reading.releases))
        raise StageError(
            f"Reading {reading.number} of `gate`, of release {listed}, ended with '{reading.verdict}', and judged "
            f"again release {release} would have '{verdict}': the code or the newest nights are others now. A second "
            "look at the same episodes is no second verdict, so nothing was recorded. Train another candidate."
        )


def _headline(evaluation: Evaluation) -> dict[str, float]:
    """The numbers that a list of releases shows; what was refused is absent."""
    name = evaluation.deciding_estimator
    value = evaluation.estimate(name, "candidate") if name else None
    difference = evaluation.comparison("baseline")
    found = {
        "value": value.value if value else None,
        "difference": difference.value if difference else None,
        "difference_lower_bound": difference.lower_bound if difference else None,
        "certified_share": evaluation.decision.certified_share if evaluation.decision else None,
    }
    return {name: number for name, number in found.items() if number is not None}


def recorded_evaluation(workspace: Workspace, release: int) -> Evaluation | None:
    """The evaluation that the registry knows of a release; None where it was not evaluated.

    A file that is merely there was left by a process that died before it could record it, or by somebody else.
    """
    folder = workspace.release_path(release)
    manifest = read_manifest(folder)
    if manifest is None or manifest.gate not in ("passed", "refused"):
        return None
    return evaluation_from_json(json.loads((folder / "evaluation.json").read_text()))


def _report_data(
    workspace: Workspace, release: int, evaluation: Evaluation, summary: SnapshotSummary, drift: DriftOutcome | None
) -> ReportData:
    folder, as_of = workspace.release_path(release), datetime.fromisoformat(summary.as_of)
    manifest = json.loads((folder / "policy.json").read_text())
    batches = list_batches(workspace.open_lake())
    newest = batches[-1] if batches else None
    return ReportData(
        contract_name=workspace.contract.name,
        release=release,
        created_at=datetime.now(UTC),
        as_of=as_of,
        evaluation=evaluation,
        training=json.loads((folder / "training.json").read_text()),
        drift=checks_now(workspace, drift.to_json()) if drift else checks_of_night(workspace, as_of.date()),
        validation=newest.validation if newest else None,
        snapshot=summary.to_json(),
        batch=newest.to_json() if newest else None,
        coverage=read_coverage(snapshot_of(workspace, release)),
        lineage={
            "policy digest": manifest["digest"],
            "contract digest": workspace.contract.digest,
            "snapshot digest": summary.digest,
            "code version": manifest["code_version"],
            **{f"lake version of {table}": str(version) for table, version in summary.lake_versions.items()},
        },
        promote_command=f"offline-dqn promote {release} --reviewer NAME",
    )


# --- plan, act, simulate


def plan(workspace: Workspace, paths: Sequence[Path] = ()) -> LogPlan:
    """What a log can decide before any training: the lake's episodes, or those of the given files."""
    replay, _ = read_log(workspace, paths)
    splits = workspace.config.snapshot
    config = workspace.config
    return plan_log(replay, config.gate, gate_share(splits, len(np.unique(replay.nights))), config.evaluate.deciding)


def simulate(
    workspace: Workspace,
    *,
    night: int | None = None,
    n_episodes: int | None = None,
    traffic: float = 1.0,
    trace_path: Path | None = None,
) -> SimulatedLogs:
    """Writes one simulated night of logs: the champion acts, or version 0 before there is one.

    Args:
        night: number of the night from 1; by default the one after the newest log.
        traffic: factor on the request rate, a shift of the world.
        trace_path: CSV of timestamp and requests that drives the traffic in place of the rhythm.
    """
    config = workspace.config.simulate
    if config is None:
        raise StageError(
            f"{workspace.root} has no simulator: its offline_dqn.toml lacks the table [simulate]. "
            "`offline-dqn init DIR --scenario autoscaler` writes a workspace that has one."
        )
    acting = workspace.registry.champion() or VERSION_ZERO
    return simulate_logs(
        workspace.logs_path,
        night=night,
        n_episodes=n_episodes or config.n_episodes,
        seed=config.seed,
        traffic=traffic,
        trace_path=trace_path,
        policy=_acting_policy(workspace, acting),
        policy_version=str(acting),
    )


def _acting_policy(workspace: Workspace, release: int) -> Shielded | None:
    """What writes the simulated log: the release, or the configured rules before they are registered as version 0."""
    if workspace.release_path(release).exists():
        return Shielded(load_release(workspace, release), workspace.contract)
    rules = workspace.config.baseline
    return Shielded(rules.to_policy(workspace.contract), workspace.contract) if rules else None


# --- releases


def _why_not_replayable(workspace: Workspace, release: int) -> str:
    mark = erased_mark(snapshot_of(workspace, release))
    return f"not replayable: erased on {str(mark['erased_at'])[:10]}, with episodes that had to go" if mark else ""
