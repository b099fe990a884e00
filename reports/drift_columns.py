"""What a drift check compares beside the log's own columns: episodes, what a policy says, and what follows a step."""

from __future__ import annotations

import numpy as np

from datasets.replay import Replay
from drift.windows import DriftColumn
from offline_dqn.policy import Policy
from offline_dqn.shield import acting_probs
from reports.dynamics_models import DynamicsModels, place_outcomes
from reports.estimators import on_policy_returns


def episode_columns(replay: Replay) -> dict[str, DriftColumn]:
    """`episode.return`, discounted, and `episode.length`; none where every row is an episode of its own."""
    if replay.contract.episodes.kind == "one_step":
        return {}
    last = replay.offsets[1:] - 1
    returns = on_policy_returns(replay.rewards, replay.offsets, replay.contract.gamma) if len(last) else np.empty(0)
    return {
        "episode.return": DriftColumn("numeric", returns, role="episode", rows=last),
        "episode.length": DriftColumn("numeric", replay.lengths.astype(np.float64), role="episode", rows=last),
    }


def policy_columns(policy: Policy, replay: Replay, *, acting: Policy | None) -> dict[str, DriftColumn]:
    """`propensity` of the logged action, and of a policy with values `q_value` and `td_error`.

    Args:
        policy: the champion, along the replay's actions.
        replay: T steps.
        acting: what acts in the live window, whose probability of the logged action is the propensity in both windows;
            without it the logged one is. Logged ones of two policies differ by what the policies are.

    Returns:
        `q_value`: sum_a pi(a | s) Q(s, a). `td_error`: r + gamma v(s') - Q(s, a), v as above and 0 after the end, of
        steps of which it is known what followed.
    """
    columns = {}
    rows = np.arange(replay.n_steps)
    if acting is not None:
        taken = acting_probs(acting, replay, rows)[rows, replay.actions]
        columns["propensity"] = DriftColumn("numeric", taken, role="policy")
    elif np.isfinite(replay.behavior_prob).any():
        columns["propensity"] = DriftColumn("numeric", np.array(replay.behavior_prob), role="policy")
    q = policy.q_values(replay.observations)
    if q is None:
        return columns
    probs = acting_probs(policy, replay, np.arange(len(replay.observations)))
    values = np.where(probs > 0.0, probs * np.where(probs > 0.0, q, 0.0), 0.0).sum(axis=1)
    columns["q_value"] = DriftColumn("numeric", values[: replay.n_steps], role="policy")
    q_taken = q[rows, replay.actions]
    known = (replay.terminated | (replay.next_row >= 0)) & np.isfinite(q_taken)
    following = np.where(replay.terminated, 0.0, values[replay.next_row])
    errors = replay.rewards + replay.contract.gamma * following - q_taken
    columns["td_error"] = DriftColumn("numeric", errors[known], role="dynamics", rows=np.flatnonzero(known))
    return columns


def dynamics_columns(models: DynamicsModels, replay: Replay, *, seed: int) -> dict[str, DriftColumn]:
    """`reward.residual` and `next.<feature>.residual`: where what followed fell, given observation and action.

    A right model places it uniformly whatever a policy visits. A fitted one errs here and there, and a policy that
    visits other steps meets other errors: so the reference is weighted to what acts, as for all that actions move.
    """
    names = {"reward": "reward.residual"}
    return {
        names.get(name, f"next.{name}.residual"): DriftColumn(
            "numeric", placed.values, role="dynamics", rows=placed.rows
        )
        for name, placed in place_outcomes(models, replay, seed=seed).items()
    }
