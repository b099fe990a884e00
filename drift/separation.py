"""How well a classifier tells live rows from the reference's, on clusters that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.joint_rows import Side

N_FOLDS = 2
_MOST_NAMED = 5


@dataclass(frozen=True)
class Separation:
    """A cross-fitted classifier's work.

    Attributes:
        area: mean over the folds of the area under the ROC curve, in (0, 1); .5 where nothing tells the sides apart.
        standard_error: of it, by clusters.
        freedom: degrees of freedom behind that.
        rows: of reference and live.
        folds: each fold's classifier with the rows that it did not see: values, side (1 live) and weights.
    """

    area: float
    standard_error: float
    freedom: float
    rows: tuple[int, int]
    folds: tuple[tuple[Any, NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]], ...]


def separate(
    before: Side, cells: NDArray[np.bool_], now: Side, live_cells: NDArray[np.bool_], *, seed: int
) -> Separation:
    """Gradient boosting on half of each side's clusters, judged on the other half, and the other way round.

    Args:
        before, now: the sides; the same one twice where a night of the reference is tried against the others.
        cells, live_cells: (cells,) bool, which cells of each take part.
        seed: of the halves.

    Source: Obuchowski 1997, Nonparametric analysis of clustered ROC curve data, for the variance.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

    chosen, live_chosen = cells[before.cell], live_cells[now.cell]
    values = np.concatenate([before.values[chosen], now.values[live_chosen]])
    weights = np.concatenate([before.weights[chosen], now.weights[live_chosen]])
    clusters = [before.cluster[chosen], now.cluster[live_chosen]]
    side = np.repeat([0, 1], [len(clusters[0]), len(clusters[1])])
    fold = np.concatenate([_deal(codes, seed + i) for i, codes in enumerate(clusters)])
    codes = np.concatenate(clusters)
    areas, variances, folds = [], [], []
    for number in range(N_FOLDS):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero((fold != number) & (weights > 0))
        if len(np.unique(side[outside])) < 2 or any(weights[inside][side[inside] == s].sum() <= 0 for s in (0, 1)):
            continue  # one half holds no weight at all: it tells nothing
        model = HistGradientBoostingClassifier(
            max_iter=30, learning_rate=0.15, max_leaf_nodes=8, min_samples_leaf=40, max_bins=63, l2_regularization=1.0,
            early_stopping=False, random_state=seed,
        )  # fmt: skip
        with threadpool_limits(limits=1):  # a small fit gains nothing by more, and its bits must not depend on them
            uneven = None if np.ptp(weights[outside]) == 0 else weights[outside]
            model.fit(values[outside], side[outside], sample_weight=uneven)
            scores = model.decision_function(values[inside])
        area, variance = area_by_cluster(scores, side[inside], weights[inside], codes[inside])
        areas.append(area)
        variances.append(variance)
        folds.append((model, values[inside], side[inside], weights[inside]))
    n_rows = int((side == 0).sum()), int((side == 1).sum())
    if not areas:
        return Separation(0.5, 0.0, 1.0, n_rows, ())
    smallest = 0.5 / len(side)  # an area of 0 or 1 has no logit
    n_clusters = min(len(np.unique(part)) for part in clusters)
    return Separation(
        area=float(np.clip(np.mean(areas), smallest, 1.0 - smallest)),
        # What differs between the halves by chance is looked for in either by the pattern of the other one: their areas
        # are about one number, seen twice.
        standard_error=float(np.mean(np.sqrt(variances))),
        freedom=max(1.0, n_clusters / N_FOLDS - 1.0),
        rows=n_rows,
        folds=tuple(folds),
    )


def area_by_cluster(
    scores: NDArray[np.float64], side: NDArray[np.int64], weights: NDArray[np.float64], clusters: NDArray[np.int64]
) -> tuple[float, float]:
    """Chance that a live row's score exceeds a reference row's, ties by half; and its variance by clusters.

    Args:
        scores, side, weights, clusters: (n,) the clusters numbered for each side by itself; side is 1 for live.
    """
    parts = [(scores[side == s], weights[side == s], clusters[side == s]) for s in (0, 1)]
    placements = _below(parts[1][0], *parts[0][:2]), 1.0 - _below(parts[0][0], *parts[1][:2])
    area = float(np.average(placements[0], weights=parts[1][1]))
    variance = 0.0
    for placed, (_, own, codes) in zip(placements, (parts[1], parts[0]), strict=True):
        sums = np.bincount(codes, own * (placed - area))
        n = len(np.unique(codes))
        variance += float((sums**2).sum()) / float(own.sum()) ** 2 * n / max(1, n - 1)
    return area, variance


def shares_of_columns(found: Separation, names: Sequence[str], *, seed: int) -> tuple[tuple[str, float], ...]:
    """The columns without which the area falls most towards .5, each with the share of it that is lost.

    A column is taken away by shuffling its values among all rows. What two columns tell only together is lost with
    either, so the shares may add up to more than 1.
    """
    lost: dict[str, float] = {}
    rng = np.random.default_rng([seed, 5])
    for name in dict.fromkeys(names):
        own = np.array([other == name for other in names])
        areas = []
        for model, values, side, weights in found.folds:
            shuffled = values.copy()
            shuffled[:, own] = values[rng.permutation(len(values))][:, own]
            scores = model.decision_function(shuffled)
            areas.append(area_by_cluster(scores, side, weights, np.zeros(len(side), dtype=np.int64))[0])
        lost[name] = float(np.clip((found.area - np.mean(areas)) / max(found.area - 0.5, 1e-9), 0.0, 1.0))
    ranked = sorted(lost.items(), key=lambda item: -item[1])[:_MOST_NAMED]
    return tuple((name, share) for name, share in ranked if share > 0.0)


def _deal(clusters: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(rows,) fold of each row: clusters stay whole."""
    numbers, dense = np.unique(clusters, return_inverse=True)
    return np.asarray((np.random.default_rng([seed, 6]).permutation(len(numbers)) % N_FOLDS)[dense])


def _below(
    scores: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) share of the others' weight below each score, what ties with it by half."""
    order = np.argsort(others, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    ordered = others[order]
    low, high = np.searchsorted(ordered, scores, side="left"), np.searchsorted(ordered, scores, side="right")
    return np.asarray((total[low] + total[high]) / 2.0 / total[-1])
