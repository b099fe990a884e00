"""A guard from the training split, with thresholds that keep its promise on clusters it has not seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn.description import AnyPolicy
from offline_dqn.familiarity import Floats
from offline_dqn.familiarity_fit import fit_familiarity
from offline_dqn.guard import (
    CAUSES,
    DISAGREEMENT,
    MISSING,
    NEVER,
    SAME_EXCESS,
    STRANGE,
    Calibration,
    Guard,
    choice_spread,
)
from offline_dqn.guard_config import GuardConfig
from offline_dqn.guarded import GuardedPolicy, learned_part
from offline_dqn.mixture import MixturePolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import RulePolicy

_WEIGHTS = {MISSING: 0.2, STRANGE: 0.4, DISAGREEMENT: 0.4}
"""Parts of the false-alarm share; a cause that cannot fire leaves its part to the others."""

_SMALLEST = 1e-6
"""Of a threshold, so that a score of 0 never fires."""

_ABOVE = {MISSING: 1.0 + 1e-6, STRANGE: 1.0 + 1e-6, DISAGREEMENT: 1.0 + SAME_EXCESS}
"""Of a score that may just not fire: many rows may have it to the last bit, and another engine rounds otherwise, as
does the same one with another number of rows. Networks answer in float32, of which little is left in a spread that is
small beside their values."""


class GuardFitter:
    """Puts the same guard around every candidate of a training; disagreement is measured on each one's networks."""

    def __init__(self, train: Replay, select: Replay, fallback: QPolicy | RulePolicy, config: GuardConfig) -> None:
        """Learn what is ordinary.

        Args:
            train: episodes that candidates were fitted on.
            select: episodes that they are chosen on; thresholds are set here, by cluster.
            fallback: version 0.
            config: the `[guard]` table.

        Raises:
            ValueError: one of the two holds no step.
        """
        self._fallback, self._config = fallback, config
        rng = np.random.default_rng(0)
        self._familiarity = fit_familiarity(train.contract, _some(train, config.max_rows, rng)[0])
        self._rows, self._clusters = _some(select, config.max_rows, rng)
        self._scores = {
            MISSING: self._familiarity.absence(self._rows),
            STRANGE: self._familiarity.distance(self._rows),
        }
        self._may_miss = may_miss(train.contract)
        self._spreads: dict[int, tuple[QPolicy, Floats | None]] = {}

    def guarded(self, policy: AnyPolicy) -> GuardedPolicy:
        """A candidate with its guard; of one that is guarded the guard is set anew."""
        own = policy.own if isinstance(policy, GuardedPolicy) else policy
        scores = dict(self._scores)
        spread = self._spread(own)
        if spread is not None:
            scores[DISAGREEMENT] = spread
        if not self._may_miss:
            del scores[MISSING]
        thresholds, calibration = calibrate(scores, self._clusters, self._config.false_alarm_share)
        return GuardedPolicy(own, self._fallback, Guard(self._familiarity, thresholds, calibration))

    def _spread(self, policy: QPolicy | RulePolicy | MixturePolicy) -> Floats | None:
        learned = learned_part(policy)
        if not isinstance(learned, QPolicy):
            return None
        key = id(learned.weights)
        if key not in self._spreads:  # the policy is kept, so that no other takes its id
            self._spreads[key] = (learned, choice_spread(learned, self._rows))
        return self._spreads[key][1]


def may_miss(contract: Contract) -> bool:
    """Whether anything can be missing, or a label never seen, in an observation that the contract allows."""
    return any(f.nullable or isinstance(f, CategoricalFeature) for f in contract.features.values())


def calibrate(
    scores: Mapping[str, Floats], clusters: NDArray[np.int64], false_alarm_share: float
) -> tuple[dict[str, float], Calibration]:
    """Thresholds above which at most `false_alarm_share` of the rows of other clusters lie, by any of the causes.

    Args:
        scores: (n,) by cause, on rows that nothing was fitted to.
        clusters: (n,) of each row.
        false_alarm_share: of all causes together; each has a part of its own, so that they may well fire together.
    """
    total = sum(_WEIGHTS[cause] for cause in scores)
    shares = {cause: false_alarm_share * _WEIGHTS[cause] / total for cause in scores}
    found = {cause: conformal_threshold(values, clusters, shares[cause]) for cause, values in scores.items()}
    thresholds = dict.fromkeys(CAUSES, NEVER)
    for cause, threshold in found.items():
        largest = float(scores[cause].max(initial=0.0))  # too few to promise anything: beyond all that was seen
        thresholds[cause] = max((largest if threshold is None else threshold) * _ABOVE[cause], _SMALLEST)
    return thresholds, Calibration(
        false_alarm_share=false_alarm_share,
        shares=shares,
        n_rows=len(clusters),
        n_clusters=len(np.unique(clusters)),
        held=all(threshold is not None for threshold in found.values()),
    )


def conformal_threshold(scores: Floats, clusters: NDArray[np.int64], share: float) -> float | None:
    """The smallest score that a share of the rows of further clusters can be expected to exceed, at most.

    It is the k-th largest of all. Each cluster in turn is left out, and its rows above the k-th largest of the others
    are counted; k is the largest for which these are at most `share` of all rows. Clusters are taken for exchangeable;
    within one, rows may hang together in any way: where a whole cluster lies far out, all of its rows count.

    Args:
        scores: (n,).
        clusters: (n,).
        share: in (0, 1).

    Returns:
        One of `scores`; None where even the largest of the others is exceeded by too many rows of one cluster.

    Source: the leave-one-out form of conformal risk control: Cohen, Park, Simeone, Shamai 2024, Cross-Validation
    Conformal Risk Control (arXiv:2401.11974). Differs from it: the loss is a ratio, rows that exceed over rows.
    """
    at_least = _others_at_least(scores, clusters)
    # Left out, a row exceeds the k-th largest of the others where fewer than k of these are as large as it.
    n_may = int(share * len(scores) * (1.0 + 1e-12))
    k = int(np.sort(at_least)[n_may]) if n_may < len(scores) else len(scores)
    return float(np.sort(scores)[-k]) if k >= 1 else None


def _others_at_least(scores: Floats, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) rows of other clusters with at least the score of each row."""
    _, ranks = np.unique(scores, return_inverse=True)
    _, codes = np.unique(clusters, return_inverse=True)
    n, n_ranks = len(scores), int(ranks.max(initial=0)) + 1
    everywhere = n - np.searchsorted(np.sort(ranks), ranks, side="left")
    keys = codes * n_ranks + ranks
    ordered = np.sort(keys)
    own = np.searchsorted(ordered, (codes + 1) * n_ranks, side="left") - np.searchsorted(ordered, keys, side="left")
    return np.asarray(everywhere - own, dtype=np.int64)


def _some(replay: Replay, max_rows: int, rng: np.random.Generator) -> tuple[Observations, NDArray[np.int64]]:
    """Steps of at most so many rows, by whole clusters, and the cluster of each."""
    clusters, of_episode = np.unique(replay.clusters, return_inverse=True)
    sizes = np.bincount(of_episode, weights=replay.lengths, minlength=len(clusters))
    order = rng.permutation(len(clusters))
    n_kept = max(1, int(np.searchsorted(np.cumsum(sizes[order]), max_rows, side="right")))
    kept = np.isin(of_episode, order[:n_kept])[replay.episode_of_step]
    rows = np.flatnonzero(kept)
    of_step = of_episode[replay.episode_of_step[rows]]
    if len(rows) > max_rows:  # one cluster with more than that
        chosen = np.sort(rng.choice(len(rows), max_rows, replace=False))
        rows, of_step = rows[chosen], of_step[chosen]
    return replay.observations.take(rows), of_step
