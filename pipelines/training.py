"""The training stage: a snapshot, many candidates, one release.

`fit` trains every learner on `train`; the networks and the simple policies are judged on `select`; the one that is
chosen is registered, with the whole table beside it. `gate` is not read here.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.snapshot import open_snapshot
from offline_dqn.candidates import (
    Candidate,
    counted_candidates,
    network_candidates,
    other_forms,
    simple_candidates,
)
from offline_dqn.devices import resolve_device
from offline_dqn.distributed import ALONE, Ranks
from offline_dqn.guard_fit import GuardFitter
from offline_dqn.guarded import learned_part
from offline_dqn.learner import fit
from offline_dqn.policy import AnyPolicy, Policy, save_policy
from offline_dqn.potential import Potential
from offline_dqn.streaming import training_source
from offline_dqn.trained import Metrics, TrainedQ
from pipelines.acting import load_release
from pipelines.engines import spreading
from pipelines.event_files import event_files
from pipelines.known_releases import deciding_settings, same_policy, trained_before
from pipelines.metrics.budget import TrainingBudget
from pipelines.metrics.usage import UsageLog
from pipelines.parent import Parent, find_parent, first_parameters
from pipelines.workspace import Workspace
from reports.crossfit import step_probs
from reports.judging import Judge
from reports.registry import RegistryError
from reports.selection import Selection, select_candidate

_logger = logging.getLogger(__name__)

VERSION_ZERO = 0

_SAME_PROBABILITY = 1e-4
"""Difference up to which a logged probability is the policy's own: logs round."""

_MOST_STEPS = 500_000
"""Of the episodes that candidates are counted and judged on; `select` comes first. Networks train on all."""

_MOST_BYTES = 256_000_000
"""Of their observations: images take more than their steps tell."""

_MOST_SELECT = 0.8
"""Share of these that `select` may take, at random where it holds more."""


class StageError(OfflineDqnError):
    """A stage that lacks what an earlier one makes."""


@dataclass(frozen=True)
class TrainOutcome:
    """A trained candidate release.

    Attributes:
        release, snapshot: its number, and what it was trained on.
        n_steps, n_unusable_steps: learned from, and left out because nothing is known to follow them.
        seconds: of training and choosing.
        last_metrics: of the networks.
        chosen: name of the candidate that became the release.
        selection: every candidate (`Selection.to_json`).
        diverged: learners that are no candidates, and why.
        q_exceeds_feasible: whether the chosen network promises more than can be earned.
        began_with: the champion whose networks training began with; None where it began afresh.
        repeated: whether this release stood there already, from the same data and settings.
    """

    release: int
    snapshot: str
    n_steps: int
    n_unusable_steps: int
    seconds: float
    last_metrics: Mapping[str, float]
    chosen: str
    selection: Mapping[str, Any]
    diverged: Mapping[str, str] = field(default_factory=dict)
    q_exceeds_feasible: bool = False
    began_with: int | None = None
    repeated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def train(
    workspace: Workspace,
    snapshot_path: Path | None = None,
    *,
    on_metrics: Callable[[int, Metrics], None] = lambda *_: None,
    ranks: Ranks = ALONE,
) -> TrainOutcome:
    """Trains on a snapshot's `train` split, chooses on `select`, and registers one policy as the candidate release.

    Killed anywhere and repeated on the same snapshot, it goes on from its last checkpoint and ends in the same bits.
    What was trained from the same data with the same settings before is that release, not a new one: a twin would meet
    the gate a second time and spend error that its level does not hold.

    Where several processes train together, this is what the first of them does; the others `train_along`.

    Raises:
        StageError: there is no snapshot, or no episode of it trains.
        BudgetSpentError: it would cost more than `[cost]` allows; the checkpoint stays.
    """
    ensure_version_zero(workspace)
    path = snapshot_path or newest_snapshot(workspace)
    replay, summary = open_snapshot(path)
    replay = replay.under(workspace.contract.rules)
    if not (replay.split == TRAIN).any():
        raise StageError(
            f"No episode of {path.name} is in the training split ({replay.n_episodes} in all). Wait for more nights."
        )
    judge_since = date.fromisoformat(summary.judge_since) if summary.judge_since else None
    _refuse_without_judge(replay, judge_since, path.name)
    acting = load_acting(workspace, replay.contract)  # a damaged one must not cost the hours of a training
    parent = find_parent(workspace, replay, summary)
    settings = deciding_settings(
        workspace,
        champion=acting.baseline.digest if acting.baseline else None,
        version_zero=acting.version_zero.digest if acting.version_zero else None,
        parent=parent.identity if parent else None,
    )
    known = trained_before(workspace, replay.digest, settings, acting.champion)
    if known is not None:
        shutil.rmtree(_checkpoints(workspace, path), ignore_errors=True)
        return _outcome(*known, repeated=True)
    began = time.perf_counter()
    log = UsageLog(workspace.metrics_path)
    with log.stage("train", workspace.night) as measured:
        budget = TrainingBudget(
            workspace.config.cost,
            log,
            folder=_checkpoints(workspace, path),
            settings=settings,
            n_updates=workspace.config.train.n_updates,
            meter=measured.meter,
        )
        budget.check_projection()
        ranks.heard(path.name)
        try:
            trained, began_with = _watched_networks(workspace, path, replay, parent, on_metrics, budget, ranks)
            budget.finished(trained.n_updates)
        finally:
            measured.n_updates, measured.first = budget.updates_done, budget.first
    with log.stage("choose", workspace.night) as measured:
        budget.choose_by(measured.meter)
        selection = choose(workspace, replay, trained, acting, judge_since, may_judge=budget.may_judge)
    seconds = time.perf_counter() - began
    chosen = next((n for n in trained.networks if _named_after(selection, n.name, n.step)), None)
    record = {
        **settings,
        "history": [dict(metrics) for metrics in trained.history],
        "n_steps": trained.n_steps,
        "n_unusable_steps": trained.n_unusable_steps,
        "seconds": seconds,
        "snapshot": path.name,
        "snapshot_digest": replay.digest,
        "chosen": selection.chosen.name,
        "selection": selection.to_json(),
        "diverged": dict(trained.diverged),
        "q_exceeds_feasible": chosen is not None and trained.exceeds_feasible(chosen),
        "began_with": began_with,
        "as_of": summary.as_of,
    }
    outcome = _register(workspace, selection.policy, record)
    shutil.rmtree(_checkpoints(workspace, path), ignore_errors=True)
    return outcome


def _watched_networks(
    workspace: Workspace,
    path: Path,
    replay: Replay,
    parent: Parent | None,
    on_metrics: Callable[[int, Metrics], None],
    budget: TrainingBudget,
    ranks: Ranks,
) -> tuple[TrainedQ, int | None]:
    """`_train_networks`, with event files beside it and a budget before every update."""
    with event_files(workspace.root / "tensorboard" / path.name) as write:

        def report(step: int, metrics: Metrics) -> None:
            write(step, metrics)
            on_metrics(step, metrics)

        return _train_networks(workspace, path, replay, parent, report, ranks, may_update=budget.may_update)


def _register(workspace: Workspace, policy: AnyPolicy, record: dict[str, Any]) -> TrainOutcome:
    """The policy as a new release, unless an earlier one from the same data is exactly that policy."""
    with workspace.registry.staging() as staged:
        digest = save_policy(staged, policy)
        known = same_policy(workspace, record["snapshot_digest"], digest)
        if known is not None:
            return _outcome(*known, repeated=True)
        (staged / "training.json").write_text(json.dumps(record, indent=1))
        tags = {"snapshot": record["snapshot"], "chosen": record["chosen"]}
        release = workspace.registry.register(staged, gate="not evaluated", tags=tags)
    return _outcome(release, record)


def _refuse_without_judge(replay: Replay, judge_since: date | None, name: str) -> None:
    if judge_since is None or (replay.split == SELECT).any():
        return
    if not ((replay.split == TRAIN) & (replay.nights >= np.datetime64(judge_since))).any():
        raise StageError(
            f"Nothing in {name} could judge what it trains: the world changed on {judge_since}, and no episode of "
            "`train` or `select` has started since. Wait for more nights."
        )


def train_along(workspace: Workspace, ranks: Ranks) -> None:
    """What every process but the first does while that one trains: its part of every batch, and nothing else."""
    name = ranks.heard("")
    if name:
        path = workspace.snapshots_path / name
        replay, summary = open_snapshot(path)
        replay = replay.under(workspace.contract.rules)
        _train_networks(workspace, path, replay, find_parent(workspace, replay, summary), lambda *_: None, ranks)


def _train_networks(
    workspace: Workspace,
    path: Path,
    replay: Replay,
    parent: Parent | None,
    on_metrics: Callable[[int, Metrics], None],
    ranks: Ranks,
    may_update: Callable[[int], None] = lambda _: None,
) -> tuple[TrainedQ, int | None]:
    """The networks, and the release whose own they began with."""
    config = workspace.config.train
    source = training_source(
        replay,
        replay.split == TRAIN,
        config,
        device=resolve_device(config.device),
        older=parent.older if parent else None,
        potential=Potential(replay.contract, config.potential) if config.potential is not None else None,
    )
    first = first_parameters(workspace, parent, source)
    checkpoints = _checkpoints(workspace, path)
    trained = fit(
        source,
        config,
        warm_start=first,
        checkpoint_dir=checkpoints,
        on_metrics=on_metrics,
        may_update=may_update,
        ranks=ranks,
    )
    return trained, parent.release if parent is not None and first is not None else None


def _checkpoints(workspace: Workspace, path: Path) -> Path:
    return workspace.root / "checkpoints" / path.name


@dataclass(frozen=True)
class Acting:
    """What acts today.

    Attributes:
        champion: its number, and `baseline` its policy; None before the first promotion.
        version_zero: the configured rules, where there are any.
    """

    champion: int | None
    baseline: AnyPolicy | None
    version_zero: AnyPolicy | None


def load_acting(workspace: Workspace, contract: Contract) -> Acting:
    """The champion and version 0 under a snapshot's contract.

    Raises:
        ReleaseError: one of them is damaged, or cannot act under that contract.
    """
    champion = workspace.registry.champion()
    exists = workspace.release_path(VERSION_ZERO).exists()
    return Acting(
        champion,
        None if champion is None else load_release(workspace, champion, contract),
        load_release(workspace, VERSION_ZERO, contract) if exists else None,
    )


def choose(
    workspace: Workspace,
    replay: Replay,
    trained: TrainedQ,
    acting: Acting,
    judge_since: date | None,
    *,
    may_judge: Callable[[], None] = lambda: None,
) -> Selection:
    """The best candidate on `select`, and all the others.

    Args:
        judge_since: as `Judge` takes it.
        may_judge: called before every candidate; what it raises ends the choice.
    """
    config, select = workspace.config, workspace.config.select
    episodes = _episodes_to_judge(replay, judge_since)
    baseline, select_split = acting.baseline, episodes.of_split(SELECT)
    wrote = written_by(baseline, acting.champion, select_split)
    judge = Judge(
        episodes,
        trained.encoder,
        baseline=baseline,
        baseline_wrote_select=bool(wrote.any() and wrote.all()),
        config=select,
        fqe=config.evaluate.fqe,
        propensity=config.evaluate.propensity,
        gate=config.gate,
        n_gate_episodes=int((replay.split == GATE).sum()),
        seed=config.train.seed,
        judge_since=judge_since,
    )

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        return each(
            other_forms(
                candidate,
                judge.episodes,
                baseline or acting.version_zero,
                temperatures=select.temperatures,
                support_thresholds=select.support_thresholds,
                mixture_shares=select.mixture_shares,
            )
        )

    def each(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
        for candidate in candidates:
            may_judge()
            yield candidate

    guard = guard_fitter(workspace, episodes, acting.version_zero)
    with spreading(config.engine, workspace.root) as spread:
        return select_candidate(
            each(_candidates(workspace, episodes, trained)),
            judge,
            other_forms=forms,
            as_served=guard.guarded if guard is not None else lambda policy: policy,
            spread=spread,
        )


def guard_fitter(workspace: Workspace, episodes: Replay, version_zero: AnyPolicy | None) -> GuardFitter | None:
    """What puts a guard around candidates; None, with a logged warning where one is wanted, without version 0 or rows.

    Args:
        episodes: of `train`, which say what is ordinary, and of `select`, on which thresholds are set.
        version_zero: what acts where a guard fires.
    """
    config = workspace.config.guard
    if not config.enabled or version_zero is None:
        return None
    train, select = episodes.of_split(TRAIN), episodes.of_split(SELECT)
    if not train.n_episodes or not select.n_episodes:
        _logger.warning(
            "guard: no candidate gets one tonight: what is ordinary is learned on `train`, which holds %d episodes, "
            "and thresholds are set on `select`, which holds %d; wait for more nights",
            train.n_episodes,
            select.n_episodes,
        )
        return None
    return GuardFitter(train, select, learned_part(version_zero), config)


def _candidates(workspace: Workspace, episodes: Replay, trained: TrainedQ) -> Iterator[Candidate]:
    exploration, select = workspace.config.train.exploration, workspace.config.select
    train = episodes.of_split(TRAIN)
    yield from simple_candidates(train, exploration)
    yield from counted_candidates(
        train, trained.encoder, exploration, pessimisms=select.pessimisms, largest=select.largest_counted
    )
    yield from network_candidates(trained)


def _episodes_to_judge(replay: Replay, judge_since: date | None) -> Replay:
    """Train and select episodes alone, at most so many; of `train` as many as fit beside `select`.

    Each at random, except that episodes of `train` since the change of the world come before older ones.
    """
    n_bytes = sum(column.nbytes for column in replay.observations.columns.values())
    most = int(min(_MOST_STEPS, _MOST_BYTES / max(1.0, n_bytes / len(replay.observations))))
    order = np.random.default_rng(0).permutation(replay.n_episodes)
    select = _first(replay, order[replay.split[order] == SELECT], int(most * _MOST_SELECT))
    train = order[replay.split[order] == TRAIN]
    if judge_since is not None:
        train = train[np.argsort(replay.nights[train] < np.datetime64(judge_since), kind="stable")]
    train = _first(replay, train, most - int(replay.lengths[select].sum()))
    kept = np.zeros(replay.n_episodes, dtype=bool)
    kept[np.concatenate([select, train])] = True
    return replay.subset(kept)


def _first(replay: Replay, order: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
    """The first episodes of an order that fit into so many steps, and one in any case."""
    return order[: max(1, int(np.searchsorted(np.cumsum(replay.lengths[order]), n_steps, side="right")))]


def _named_after(selection: Selection, name: str, step: int) -> bool:
    """Whether the chosen policy acts on this network."""
    found = getattr(learned_part(selection.policy), "config", {})
    return (found.get("learner"), found.get("updates")) == (name, step)


def _outcome(release: int, record: Mapping[str, Any], *, repeated: bool = False) -> TrainOutcome:
    return TrainOutcome(
        release=release,
        snapshot=record["snapshot"],
        n_steps=record["n_steps"],
        n_unusable_steps=record["n_unusable_steps"],
        seconds=0.0 if repeated else record["seconds"],
        last_metrics=record["history"][-1] if record["history"] else {},
        chosen=record["chosen"],
        selection=record["selection"],
        diverged=record["diverged"],
        q_exceeds_feasible=record["q_exceeds_feasible"],
        began_with=record.get("began_with"),  # releases of older versions do not name it
        repeated=repeated,
    )


def read_outcome(workspace: Workspace, release: int) -> TrainOutcome:
    """How a release was trained and what it was chosen from."""
    return _outcome(release, json.loads((workspace.release_path(release) / "training.json").read_text()))


def ensure_version_zero(workspace: Workspace) -> None:
    """Registers the configured rules as version 0, where there are rules and no version 0 yet."""
    rules = workspace.config.baseline
    if rules is None or workspace.release_path(VERSION_ZERO).exists():
        return
    with workspace.registry.staging() as staged:
        save_policy(staged, rules.to_policy(workspace.contract))
        try:
            workspace.registry.register(staged, gate="baseline", tags={})
        except RegistryError:
            if not workspace.release_path(VERSION_ZERO).exists():  # else another machine was faster
                raise


def written_by(policy: Policy | AnyPolicy | None, release: int | None, replay: Replay) -> NDArray[np.bool_]:
    """(N,) whether a release wrote each episode: logged under its number, with the probabilities that it gives.

    The number alone is no proof: a log may well call a policy of its own "0" or "1".
    """
    if policy is None or release is None or not replay.n_episodes:
        return np.zeros(replay.n_episodes, dtype=bool)
    taken = step_probs(policy, replay)[np.arange(replay.n_steps), replay.actions]
    differs = ~(np.abs(taken - replay.behavior_prob) <= _SAME_PROBABILITY)  # not known (NaN) differs
    n_differing = np.bincount(replay.episode_of_step[differs], minlength=replay.n_episodes)
    return np.asarray((replay.policy_versions == str(release)) & (n_differing == 0))


def newest_snapshot(workspace: Workspace) -> Path:
    """The one that was frozen last.

    Raises:
        StageError: there is none.
    """
    found = sorted(workspace.snapshots_path.glob("*/snapshot.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise StageError("There is no snapshot to train on. `offline-dqn snapshot` freezes one from the lake.")
    return found[-1].parent
