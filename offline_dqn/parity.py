"""Whether `policy.onnx` says what the policy says: the same values to rounding, and the same action outside ties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, ImageFeature, VectorFeature
from datasets.observations import MISSING_CODE, Observations
from offline_dqn.choice import supported
from offline_dqn.description import AnyPolicy
from offline_dqn.guard import DISAGREEMENT
from offline_dqn.guarded import GuardedPolicy, learned_part
from offline_dqn.mixture import MixturePolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_graph import constants_of
from offline_dqn.rule_policy import RulePolicy

if TYPE_CHECKING:
    from offline_dqn.onnx_policy import OnnxPolicy

TOLERANCE = 1e-5
"""Largest difference of values, in units of the largest |Q|; scores nearer to each other than that are a tie."""

_SAME_PROBABILITY = 1e-6
"""Largest difference of two probabilities that do not hang on how much better one action's score is."""


@dataclass(frozen=True)
class Parity:
    """What a comparison of a policy with its graph found.

    Attributes:
        n_rows: compared.
        n_ties: rows in which rounding alone could decide, so that their probabilities are not compared.
        largest_difference: of two Q-values, in units of the largest |Q|; 0 for a graph without values.
        n_differing: rows outside ties in which a probability differs by more than rounding of the scores explains.
    """

    n_rows: int
    n_ties: int
    largest_difference: float
    n_differing: int

    @property
    def holds(self) -> bool:
        """Whether the graph may stand for the policy."""
        return self.largest_difference <= TOLERANCE and self.n_differing == 0

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"the largest difference is {self.largest_difference:.1e} of the largest |Q| (at most {TOLERANCE:g} is "
            f"rounding), and {self.n_differing} rows outside ties act differently"
        )


def measure_parity(
    policy: AnyPolicy, graph: OnnxPolicy, observations: Observations, available: NDArray[np.bool_]
) -> Parity:
    """Compare a policy with its graph on n rows.

    Args:
        policy: all that the graph holds.
        graph: made of it.
        observations: n rows.
        available: (n, A) bool, along the actions of the policy's contract.
    """
    probs = policy.action_probs(observations, available)
    graph_probs, graph_own = graph.score(observations, available)
    difference = 0.0
    if graph_own is not None:
        own = policy.q_values(observations)
        assert own is not None
        largest = max(float(np.abs(own).max()), np.finfo(np.float64).tiny)
        difference = float(np.abs(own - graph_own).max()) / largest
    decided = _is_decided(policy, observations, available)
    differences = np.abs(probs - graph_probs).max(axis=1)
    largest_allowed = _SAME_PROBABILITY + _rounding_of_probs(policy, observations, available)
    return Parity(
        n_rows=len(probs),
        n_ties=int((~decided).sum()),
        largest_difference=difference if np.isfinite(difference) else np.inf,
        n_differing=int((decided & ~(differences <= largest_allowed)).sum()),
    )


def probe_rows(policy: AnyPolicy, n_rows: int) -> tuple[Observations, NDArray[np.bool_]]:
    """Rows around what the policy was trained on or asks about, with missing, unseen and extreme values, and masks.

    Returns:
        n observations and (n, A) bool available actions, at least one of which every part of a mixture knows.
    """
    rng = np.random.default_rng(0)
    own = learned_part(policy)
    # Features drawn one by one do not go together: a guard lets only what lies near its middle through.
    middles = policy.guard.familiarity.middles() if isinstance(policy, GuardedPolicy) else {}
    ordinary = 0.1 if middles else 1.0
    numbers, labels = (np.zeros(1), ["a label that no log has held"])
    if isinstance(own, RulePolicy):
        asked = constants_of(own)
        numbers = np.array([0.0, *(v for v in asked if isinstance(v, float))])
        labels += [v for v in asked if isinstance(v, str)]
    columns: dict[str, NDArray[Any]] = {}
    vocabularies: dict[str, tuple[str, ...]] = {}
    for name, feature in own.contract.features.items():
        encoding = own.encoder.features[name] if isinstance(own, QPolicy) else None
        if isinstance(feature, CategoricalFeature):
            vocabularies[name] = (*(encoding.labels if encoding else feature.values or ()), *labels)
            codes = rng.integers(MISSING_CODE, len(vocabularies[name]), n_rows)
            columns[name] = codes.astype(np.int32)
        elif isinstance(feature, ImageFeature):
            columns[name] = _probe_images(rng, n_rows, feature)
        else:
            n_numbers = feature.length if isinstance(feature, VectorFeature) else 1
            level = np.array(encoding.mean) if encoding else rng.choice(numbers, (n_rows, n_numbers))
            scale = np.array(encoding.scale) if encoding else np.abs(level) + 1.0
            level = middles.get(name, level)
            spread = rng.choice([0.0, ordinary, 5.0, 1e6], p=[0.1, 0.7, 0.15, 0.05], size=(n_rows, 1))
            table = level + scale * spread * rng.normal(size=(n_rows, n_numbers))
            table[rng.random(n_rows) < 0.05] = np.nan
            columns[name] = table if isinstance(feature, VectorFeature) else table[:, 0]
    available = rng.random((n_rows, len(policy.actions))) < 0.7
    common = _common_actions(policy)
    available[np.arange(n_rows), rng.choice(np.flatnonzero(common), n_rows)] = True
    return Observations(columns, vocabularies), available


def _probe_images(rng: np.random.Generator, n_rows: int, feature: ImageFeature) -> NDArray[np.uint8]:
    images = rng.integers(0, 256, (n_rows, feature.size + 1)).astype(np.uint8)
    images[:, -1] = rng.random(n_rows) < 0.05
    images[images[:, -1] == 1, :-1] = 0  # a missing one is black
    return images


def _common_actions(policy: AnyPolicy) -> NDArray[np.bool_]:
    """(A,) actions that every part knows."""
    known: NDArray[np.bool_] = np.isin(policy.actions, policy.contract.actions.names)
    if isinstance(policy, GuardedPolicy):
        return _common_actions(policy.own) & _common_actions(policy.fallback)
    return known & _common_actions(policy.partner) if isinstance(policy, MixturePolicy) else known


def _rounding_of_probs(policy: AnyPolicy, observations: Observations, available: NDArray[np.bool_]) -> float:
    """By how much a probability may differ in a decided row, where scores differ by at most `TOLERANCE`.

    A softmax of scores that are each off by at most d changes the odds of two actions by a factor of at most
    exp(2 d / temperature), and so a probability by at most exp(2 d / temperature) - 1.
    """
    if isinstance(policy, GuardedPolicy):
        parts = (policy.own, policy.fallback)
        return max(_rounding_of_probs(part, observations, available) for part in parts)
    if isinstance(policy, MixturePolicy):
        own = _rounding_of_probs(policy.own, observations, available)
        partner = _rounding_of_probs(policy.partner, observations, available)
        return policy.share * own + (1.0 - policy.share) * partner
    if isinstance(policy, RulePolicy) or policy.choice.rule == "greedy":
        return 0.0
    scores, _ = policy.scores(observations)
    allowed = available & np.isin(policy.actions, policy.contract.actions.names)
    exponent = 2.0 * TOLERANCE * np.abs(scores[allowed]).max() / policy.choice.temperature
    return (1.0 - policy.exploration) * float(min(1.0, np.expm1(min(exponent, 1.0))))


def _guard_is_clear(policy: GuardedPolicy, observations: Observations) -> NDArray[np.bool_]:
    """(n,) whether no score lies so near to its threshold that rounding decides which side of it."""
    excess, near = policy.guard_excess(observations), np.array([1e-9, 1e-9, 1e-9])
    learned = learned_part(policy)
    if policy.guard.watches_disagreement and isinstance(learned, QPolicy):
        largest = float(np.abs(learned.member_values(observations)).max())
        near[2] = TOLERANCE * largest / policy.guard.thresholds[DISAGREEMENT]
    return np.asarray((np.abs(excess - 1.0) > near).all(axis=1), dtype=np.bool_)


def _is_decided(policy: AnyPolicy, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether every part's choice, and who makes it, is clearer than rounding."""
    if isinstance(policy, GuardedPolicy):
        clear = _guard_is_clear(policy, observations) & _is_decided(policy.own, observations, available)
        return clear & _is_decided(policy.fallback, observations, available)
    if isinstance(policy, MixturePolicy):
        own = _is_decided(policy.own, observations, available)
        return own & _is_decided(policy.partner, observations, available)
    if isinstance(policy, RulePolicy):
        return np.ones(len(observations), dtype=bool)
    scores, logits = policy.scores(observations)
    allowed = available & np.isin(policy.actions, policy.contract.actions.names)
    candidates, decided = allowed, np.ones(len(scores), dtype=bool)
    threshold = policy.choice.support_threshold
    if threshold > 0:
        candidates = supported(logits, allowed, threshold)
        known = np.where(allowed, logits, -np.inf)
        margins = np.abs(known - known.max(axis=1, keepdims=True) - np.log(threshold))
        decided = ~(margins <= TOLERANCE * np.abs(logits[allowed]).max()).any(axis=1)
    if policy.choice.rule == "softmax":
        return decided
    ordered = np.sort(np.where(candidates, scores, -np.inf), axis=1)
    gaps: NDArray[np.bool_] = ordered[:, -1] - ordered[:, -2] > TOLERANCE * np.abs(scores[allowed]).max()
    return decided & gaps
