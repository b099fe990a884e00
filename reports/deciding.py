"""Which estimator decides: a rule on what policies do, fixed before the gate episodes are read.

Products of ratios need nothing but right probabilities, and their variance grows exponentially with the horizon.
Marginalized weights stay tame, and rest on observations that tell all that matters. So the products decide where they
are affordable, and marginalized weights, checked against longer and longer products, where they are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from datasets.settings import Settings
from reports.estimators import Floats, Ints, step_in_episode, windowed_log_weights
from reports.overlap import largest_influence_share

Deciding = Literal["dr", "drl"]

_ROOM = 0.25
"""Of the share that one episode may carry, what it may be expected to: errors differ, and refusals shall be rare."""

WINDOWS = (1, 2, 4, 8, 16, 32, 64)
"""Steps of exact products that the check of marginalized weights may look back."""


class DecidingConfig(Settings):
    """When products of ratios decide, and how far back the check of marginalized weights looks."""

    estimator: Literal["rule", "dr", "drl"] = "rule"
    """"rule" leaves it to the rule; else the one that is named, whatever it costs."""
    largest_variance_ratio: float = Field(1.1, ge=1)
    """Products of ratios decide where they cost at most this many times the variance of marginalized weights."""
    largest_check_ratio: float = Field(4.0, ge=1)
    """The check uses the longest products that cost at most this many times as much."""


@dataclass(frozen=True)
class DecidingRule:
    """The estimator that decides, and why.

    Attributes:
        estimator: "dr", products of ratios, or "drl", marginalized weights.
        window: steps that the check of "drl" looks back; 0 under "dr".
        variance_ratio: predicted variance of products over that of marginalized weights; None where it was not needed.
        says: the reason in one sentence.
    """

    estimator: Deciding
    window: int
    variance_ratio: float | None
    says: str


def choose_deciding(
    ratios: Floats,
    state_weights: Floats | None,
    offsets: Ints,
    gamma: float,
    *,
    n_gate_episodes: int,
    largest_share: float,
    config: DecidingConfig,
) -> DecidingRule:
    """The rule, on episodes other than those of the gate. It looks at no reward.

    Both estimators are a model's value plus sum_t gamma^t weight_t error_t. With errors of equal size, uncorrelated
    along the episode (as a right model's are), their variances compare like the means of sum_t gamma^2t weight_t^2.

    Args:
        ratios: (T,) evaluation_prob / behavior_prob of the logged actions.
        state_weights: (T,) marginalized weights of the same steps; None where they cannot be had.
        offsets: (N + 1,) of these episodes.
        gamma: discount of one step.
        n_gate_episodes: how many will decide.
        largest_share: of one episode in the squared influence, as the gate allows it.
        config: see its fields.
    """
    if int(np.diff(offsets).max(initial=1)) == 1:
        return DecidingRule("dr", 0, None, "Episodes have one step: the ratio of that step weighs it.")
    if state_weights is None:
        return DecidingRule("dr", 0, None, "Too few behavior probabilities are known to model visits of states.")
    log_ratios = _logs(ratios)
    reach = gamma ** step_in_episode(offsets).astype(np.float64)
    marginal = windowed_log_weights(log_ratios, _logs(state_weights), offsets, 0)
    of_marginal = _squares(marginal, reach, offsets)
    longest = int(np.diff(offsets).max())
    products = _squares(windowed_log_weights(log_ratios, np.zeros(len(ratios)), offsets, longest), reach, offsets)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = float(products.mean() / of_marginal.mean())
        one = largest_influence_share(np.sqrt(products)) * len(products) / n_gate_episodes
    affordable = np.isfinite(ratio) and ratio <= config.largest_variance_ratio and one <= _ROOM * largest_share
    shown = f"{ratio:.3g}" if np.isfinite(ratio) else "far more than a thousand"
    if config.estimator == "dr" or (config.estimator == "rule" and affordable):
        return DecidingRule(
            "dr", 0, ratio if np.isfinite(ratio) else None,
            f"Products of ratios are expected to have {shown} times the variance of marginalized weights on the "
            "episodes outside the gate.",
        )  # fmt: skip
    window = 0
    for steps in WINDOWS:
        longer = _squares(windowed_log_weights(log_ratios, _logs(state_weights), offsets, steps), reach, offsets)
        if steps >= longest or not longer.mean() <= config.largest_check_ratio * of_marginal.mean():
            break
        window = steps
    return DecidingRule(
        "drl", max(window, 1), ratio if np.isfinite(ratio) else None,
        f"Products of ratios are expected to have {shown} times the variance of marginalized weights on the episodes "
        f"outside the gate, or to hang on one episode; products of {max(window, 1) + 1} steps check them.",
    )  # fmt: skip


def _squares(log_weights: Floats, reach: Floats, offsets: Ints) -> Floats:
    """(N,) sum over an episode of (gamma^t weight_t)^2; inf where it overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(np.add.reduceat((reach * np.exp(log_weights)) ** 2, offsets[:-1]))


def _logs(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(values))
