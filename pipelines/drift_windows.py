"""The windows of a drift check: what the champion was judged on, its own first nights, and the nights since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from datasets.replay import GATE, TRAIN, Replay
from drift.detection import measure_drift
from drift.joint import with_joint
from drift.records import ColumnDrift, DriftReport
from drift.windows import DriftWindow, window_from_replay
from offline_dqn.policy import AnyPolicy
from pipelines.acting import load_release
from pipelines.drift_guard import guarded
from pipelines.drift_history import DriftCheck, read_drift_history
from pipelines.live_nights import UNWEIGHABLE, acting_release, weights_to, with_probs
from pipelines.workspace import Workspace
from reports.drift_columns import dynamics_columns, episode_columns, policy_columns
from reports.drift_effects import drift_effects
from reports.dynamics_models import DynamicsModels, fit_dynamics

MOST_NIGHTS = 60
"""Nights since the reference that are looked at one by one."""


@dataclass(frozen=True)
class ChampionWindows:
    """What a champion is compared on.

    Attributes:
        references: its `gate` episodes; and once it has acted long enough, its own first nights, for all that its
            actions move.
        replays: the episodes of each.
        live: the newest nights.
        recent: the unbroken run of nights up to those in which the same policy acted, as far as they are no reference.
        unweighable: whether the reference cannot be weighted to what acts now, as its log does not know with what
            probability it chose. What actions move then has no reference, and weighs nothing in this one.
    """

    references: tuple[DriftWindow, ...]
    replays: tuple[Replay, ...]
    live: DriftWindow
    recent: DriftWindow
    unweighable: bool


def drift_of_champion(
    workspace: Workspace, champion: int, trained_on: Replay, since: Replay, live: Replay, frozen_at: datetime
) -> DriftReport:
    """Tonight's comparison, what is suspicious about it, and what each drifted feature does to the champion.

    Arguments as in `champion_windows`.
    """
    config = workspace.config.drift
    windows = champion_windows(workspace, champion, trained_on, since, live, frozen_at)
    report = measure_drift(windows.references, windows.live, config, recent=windows.recent)
    report = with_joint(report, windows.references[-1], windows.live, config)
    if windows.unweighable:
        report = replace(report, columns=tuple(with_cause(column) for column in report.columns))
    report = guarded(
        report,
        windows.references,
        windows.live,
        compared_with=windows.replays,
        live=live,
        lake=workspace.open_lake(),
        config=config,
    )
    moved = moved_columns(report)
    if not moved:
        return report
    policy = load_release(workspace, champion, live.contract)
    effects = drift_effects(policy, live, windows.references, moved, seed=config.seed)
    return replace(report, effects=effects)


def moved_columns(report: DriftReport) -> tuple[ColumnDrift, ...]:
    """What may have changed the champion's decisions: drifted columns, then those that moved slowly, then those that
    tell most where all columns together drifted."""
    names = [column.name for column in report.drifted_columns]
    names += [found.name for found in report.slow]
    names += [name for test in report.joint if test.drifted for name, _ in test.columns]
    by_name = {column.name: column for column in report.columns if column.psi is not None}
    return tuple(by_name[name] for name in dict.fromkeys(names) if name in by_name)


def champion_windows(
    workspace: Workspace, champion: int, trained_on: Replay, since: Replay, live: Replay, frozen_at: datetime
) -> ChampionWindows:
    """The windows of tonight's check.

    The `gate` episodes were written by an earlier policy, most often. Columns that actions move are weighted to what
    acts in the live nights, features declared exogenous are not. The models of what follows a step are fitted on the
    champion's `train` episodes, so they saw neither window; residuals are weighted too, for a policy that visits other
    steps meets other errors of the models.

    Args:
        trained_on: the champion's snapshot, all splits.
        since: the episodes since that snapshot; live: the newest nights among them.
        frozen_at: when it was frozen.

    Raises:
        ReleaseError: the champion, or what acted in the live nights, is not what was registered.
    """
    gate, train = trained_on.of_split(GATE), trained_on.of_split(TRAIN)
    acting = acting_release(workspace, live)
    seed = workspace.config.drift.seed
    view = _View(workspace, champion, acting, fit_dynamics(train, seed=seed), seed)
    weights, unweighable = None, False
    if acting is not None and not (gate.policy_versions == str(acting)).mean() > 0.5:
        weights = weights_to(view.policy(acting, gate), with_probs(workspace, gate, train))
        unweighable = weights is None
        weights = np.zeros(gate.n_steps) if weights is None else weights
    frozen_on = np.datetime64(frozen_at.astimezone(UTC).date())
    own_nights, run = split_nights(
        since, live, acting, min_nights=workspace.config.drift.min_nights, frozen_on=frozen_on, champion=champion,
        moved=moved_nights(read_drift_history(workspace.drift_path), champion),
    )  # fmt: skip
    recent = view.window(since.subset(np.isin(since.nights, run)), 2)
    references, replays = [view.window(gate, 0, weights)], [gate]
    if len(own_nights):
        own = since.subset(np.isin(since.nights, own_nights) & (since.policy_versions == str(champion)))
        references.append(view.window(own, 1))
        replays.append(own)
    now = recent.subset(np.isin(recent.nights, live.nights))
    unweighable = unweighable and not len(own_nights)
    return ChampionWindows(tuple(references), tuple(replays), now, recent, unweighable)


def with_cause(column: ColumnDrift) -> ColumnDrift:
    """With the cause where the weights, of which none is left, are the reason; other reasons stand."""
    weightless = column.reason == "the reference holds no entry of it" and column.reference_rows
    return replace(column, reason=UNWEIGHABLE) if weightless and not column.exogenous else column


@dataclass(frozen=True)
class _View:
    """How every window of a check is seen."""

    workspace: Workspace
    champion: int
    acting: int | None
    models: DynamicsModels
    seed: int

    def policy(self, release: int, replay: Replay) -> AnyPolicy:
        """A release along a replay's actions."""
        return load_release(self.workspace, release, replay.contract)

    def window(self, replay: Replay, number: int, weights: NDArray[np.float64] | None = None) -> DriftWindow:
        """The log's own columns, episodes, what the champion says, and what followed."""
        base = window_from_replay(replay, weights)
        acting = None if self.acting is None else self.policy(self.acting, replay)
        more = (
            episode_columns(replay)
            | policy_columns(self.policy(self.champion, replay), replay, acting=acting)
            | dynamics_columns(self.models, replay, seed=self.seed + number)
        )
        return replace(base, columns={**base.columns, **more})


def moved_nights(checks: Sequence[DriftCheck], champion: int) -> NDArray[np.datetime64]:
    """The nights that had drifted from a champion, or were held for a person: no reference for those that follow."""
    found = [np.zeros(0, dtype="datetime64[D]")]
    for check in checks:
        if check.champion == champion and check.live_nights and (check.drifted or check.held):
            first, last = np.datetime64(check.live_nights[0]), np.datetime64(check.live_nights[-1])
            found.append(np.arange(first, last + np.timedelta64(1, "D")))
    return np.unique(np.concatenate(found))


def split_nights(
    since: Replay,
    live: Replay,
    acting: int | None,
    *,
    champion: int,
    min_nights: int,
    frozen_on: np.datetime64,
    moved: NDArray[np.datetime64],
) -> tuple[NDArray[np.datetime64], NDArray[np.datetime64]]:
    """What the nights since the champion's snapshot are for.

    A night belongs to the policy that wrote most of its episodes; where what acts now is known by no number, all nights
    are its own.

    Args:
        since: the episodes of these nights; live: the newest ones.
        acting: what acts in the live nights.
        min_nights: that the champion must have acted in before they are a reference.
        frozen_on: day of the snapshot, which may have begun before it.
        moved: nights that had drifted or were held: they are no reference.

    Returns:
        The champion's first `min_nights` whole nights before the live ones that had not moved, or none; and the
        unbroken run of nights after them, up to the live ones, in which what acts now acted, at most `MOST_NIGHTS`. A
        night without an episode does not break it.
    """
    nights, of_episode = np.unique(since.nights, return_inverse=True)
    share = np.bincount(of_episode, since.policy_versions == str(acting)) / np.bincount(of_episode)
    acted = (share > 0.5) | (acting is None)
    first_live, last_live = live.nights.min(), live.nights.max()
    whole = (nights > frozen_on) & (nights < first_live)
    own = nights[acted & whole & ~np.isin(nights, moved)][:min_nights]
    if acting != champion or len(own) < min_nights:
        own = own[:0]
    others = nights[~acted & (nights < first_live)]
    run = nights[(nights > others.max()) & (nights <= last_live)] if len(others) else nights[nights <= last_live]
    most = max(MOST_NIGHTS, len(np.unique(live.nights)))
    if len(own):  # those before it that had moved are behind what is compared
        run = run[run > own.max()]
    return own, run[-most:]
