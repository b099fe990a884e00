"""What training reports of itself: every metric that the loop emits, explained once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Owner = Literal["every learner", "Q-learners", "ensembles", "target gaps", "the run"]


@dataclass(frozen=True)
class Metric:
    """A number measured every `log_every` updates, on the batch of that update.

    Attributes:
        name: the loop's; of a learner it stands behind the learner's name and a slash, as in "cql 1/td_loss".
        title: for people.
        unit: "reward units", "scaled" (rewards divided by the reward scale), or "".
        of: who has it; "ensembles" are Q-learners with several networks, "target gaps" those whose penalty weight
            moves, "the run" has it once.
        meaning: what it is, and what to look for.
        computed_by: dotted name of the function.
    """

    name: str
    title: str
    unit: str
    of: Owner
    meaning: str
    computed_by: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "td_error_abs",
        "TD error",
        "reward units",
        "Q-learners",
        "Mean distance between the target and the Q-value of the logged action. It falls to the noise of the log and "
        "stays there; growing without end is divergence.",
        "offline_dqn.losses.double_dqn_target",
    ),
    Metric(
        "td_loss",
        "TD loss",
        "scaled",
        "Q-learners",
        "What is minimised of the TD error: its mean square, Huber or quantile loss.",
        "offline_dqn.losses.td_loss",
    ),
    Metric(
        "conservative_penalty",
        "conservative penalty",
        "scaled",
        "every learner",
        "Mean of logsumexp Q − Q of the logged action: grows when actions that were never logged look better. Of "
        "behavior cloning it is the cross-entropy of the logged action.",
        "offline_dqn.losses.conservative_penalty",
    ),
    Metric(
        "penalty_above_gap",
        "penalty above its gap",
        "scaled",
        "target gaps",
        "Conservative penalty minus the configured target gap; the multiplier moves until it is about 0.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "penalty_weight",
        "penalty weight",
        "",
        "target gaps",
        "The Lagrange multiplier, as it stands. It runs away where the gap cannot be reached: no penalty is below that "
        "of behavior cloning.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "q_logged",
        "Q of the logged action",
        "reward units",
        "Q-learners",
        "Mean Q-value of the action in the log.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "q_greedy",
        "Q of the greedy action",
        "reward units",
        "Q-learners",
        "Mean Q-value of the best available action. A widening distance to that of the logged one is a warning.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "q_logged_minus_return",
        "Q of the log minus its returns",
        "reward units",
        "Q-learners",
        "Mean Q-value of the logged action minus what the log earned from there on. Far above 0 the learner promises "
        "what nobody saw; somewhat above is the better policy it follows, below the caution of the penalty.",
        "offline_dqn.training_data.returns_to_go",
    ),
    Metric(
        "ensemble_spread",
        "ensemble spread",
        "reward units",
        "ensembles",
        "Mean standard deviation of an action's value over a learner's networks: what they do not know.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "gradient_norm",
        "gradient norm",
        "scaled",
        "every learner",
        "Size of the gradient before it is clipped, mean over a learner's networks.",
        "offline_dqn.learner.clip_member_gradients",
    ),
    Metric(
        "changed_share",
        "changed greedy actions",
        "",
        "the run",
        "Share of watched observations whose greedy action changed since the last measurement, over all Q-networks; "
        "there with settled_share alone.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "learning_rate",
        "learning rate",
        "",
        "the run",
        "Of Adam.",
        "offline_dqn.learner.fit",
    ),
    Metric(
        "updates_per_s",
        "updates per second",
        "",
        "the run",
        "Updates of all networks together since the last measurement.",
        "offline_dqn.learner.fit",
    ),
)


def split_name(name: str) -> tuple[str, str]:
    """Learner and metric of a name in the history; the learner of what the run has once is ""."""
    learner, _, metric = name.rpartition("/")
    return learner, metric
