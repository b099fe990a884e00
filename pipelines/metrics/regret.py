"""Regret against version 0, in the same night: what the rules would have earned where another policy acted."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta

import numpy as np

from datasets.freezing import read_episodes
from datasets.lake import Lake
from datasets.replay import Replay
from offline_dqn.policy import Policy
from pipelines.acting import ReleaseError, load_release
from pipelines.metrics.values import Values
from pipelines.training import VERSION_ZERO
from pipelines.workspace import Workspace
from reports.crossfit import step_probs
from reports.estimators import (
    cumulative_log_weights,
    effective_sample_size,
    episode_log_weights,
    on_policy_returns,
    weighted_per_decision,
)

FEWEST_EPISODES = 30
"""Of version 0 itself, for its own mean to be taken; and effective ones of the others, for them to be weighted."""


def regret_of_nights(
    workspace: Workspace, lake: Lake, nights: Iterable[date], *, as_of: datetime
) -> dict[date, Values]:
    """The regret of each night; its complete episodes are read into memory, those of all these nights at once."""
    wanted = sorted(nights)
    if not wanted:
        return {}
    found = {night: Values() for night in wanted}
    if not workspace.release_path(VERSION_ZERO).exists():
        for values in found.values():
            values.missing(
                "regret", "there is no version 0: offline_dqn.toml has no [baseline], or nothing was trained yet"
            )
        return found
    before = datetime.combine(wanted[0], time(), UTC) - timedelta(microseconds=1)
    episodes = read_episodes(lake, workspace.config.snapshot, as_of=as_of, started_after=before)
    policy: Policy | None = None
    for night, values in found.items():
        here = np.zeros(0, dtype=bool) if episodes is None else np.asarray(episodes.nights == np.datetime64(night))
        if episodes is None or not here.any():
            values.missing("regret", "no complete episode started in this night")
            continue
        try:
            policy = policy or load_release(workspace, VERSION_ZERO, episodes.contract)
        except ReleaseError as error:
            values.missing("regret", f"version 0 cannot be asked: {error}")
            continue
        regret, why = regret_against(policy, episodes.subset(here))
        values.add("offline_dqn_regret", regret)
        if regret is None:
            values.missing("regret", why)
    return found


def regret_against(zero: Policy, episodes: Replay) -> tuple[float | None, str]:
    """What version 0 would have earned more per episode than the others did, discounted; or why that is not known.

    Its own episodes tell where there are enough. Else the others' are weighted to how it acts, step by step: only as
    exact as their effective number is large, and refused where it is small.

    Args:
        zero: version 0.
        episodes: complete ones of one night.

    Source: weighted per-decision importance sampling, see `reports.estimators.weighted_per_decision`.
    """
    gamma = episodes.contract.gamma
    own = episodes.policy_versions == str(VERSION_ZERO)
    if own.all():
        return None, "version 0 itself wrote every episode of the night"
    others = episodes.subset(~own)
    earned = float(on_policy_returns(others.rewards, others.offsets, gamma).mean())
    if own.sum() >= FEWEST_EPISODES:
        rules = episodes.subset(own)
        return float(on_policy_returns(rules.rewards, rules.offsets, gamma).mean()) - earned, ""
    if not (others.behavior_prob > 0).all():
        return None, "the night's log lacks behavior_prob, by which it could be weighted to version 0"
    taken = step_probs(zero, others)[np.arange(others.n_steps), others.actions]
    log_weights = cumulative_log_weights(taken, others.behavior_prob, others.offsets)
    effective = effective_sample_size(episode_log_weights(log_weights, others.offsets))
    if effective < FEWEST_EPISODES:
        return None, (
            f"what acted is too unlike version 0: its {others.n_episodes:,} episodes are worth {effective:.3g} of "
            f"version 0, and {FEWEST_EPISODES} are needed; give version 0 a share of the traffic"
        )
    estimate = weighted_per_decision(others.rewards, log_weights, others.offsets, gamma).value
    return (estimate - earned, "") if np.isfinite(estimate) else (None, "the estimate is no finite number")
