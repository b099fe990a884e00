"""What a candidate changes: how much it departs from what is done today, in which regions, and on which episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.change_records import RegionChange
from reports.estimators import Floats, Ints


def disagreement_with_policy(candidate_probs: Floats, other_probs: Floats) -> Floats:
    """(T,) total variation of two policies on each step: the probability that is moved to other actions, in [0, 1].

    Args:
        candidate_probs, other_probs: (T, A), rows sum to 1.
    """
    return np.asarray(0.5 * np.abs(candidate_probs - other_probs).sum(axis=1))


def disagreement_with_log(candidate_probs: Floats, actions: Ints, behavior_probs: Floats) -> Floats:
    """(T,) how much the probability of the logged action changes, in [0, 1]: at most the total variation.

    Where the log does not say with which probability it acted, the candidate's probability of acting otherwise.

    Args:
        candidate_probs: (T, A).
        actions: (T,) logged.
        behavior_probs: (T,) of the logged action, NaN where unknown.
    """
    taken = candidate_probs[np.arange(len(actions)), actions]
    return np.abs(taken - np.where(np.isnan(behavior_probs), 1.0, behavior_probs))


def changes_by_region(
    regions: Ints,
    words: Sequence[str],
    disagreement: Floats,
    candidate_probs: Floats,
    other: Floats,
    episode_of_step: Ints,
    names: Sequence[str],
) -> tuple[tuple[int, RegionChange], ...]:
    """Every region that was visited, with its number; that with the most disagreement in all first.

    Args:
        regions: (T,) number of each step's region; words: what each region is.
        disagreement: (T,).
        candidate_probs: (T, A).
        other: (T, A) probabilities of the baseline, or 1 for the logged action.
        episode_of_step: (T,).
        names: of the actions.
    """
    total = float(disagreement.sum())
    found = []
    for region in np.unique(regions).tolist():
        inside = regions == region
        amount = float(disagreement[inside].sum())
        change = RegionChange(
            where=words[region],
            n_steps=int(inside.sum()),
            n_episodes=len(np.unique(episode_of_step[inside])),
            disagreement=amount / int(inside.sum()),
            share_of_all=amount / total if total > 0 else 0.0,
            candidate_shares=_by_name(names, candidate_probs[inside].mean(axis=0)),
            other_shares=_by_name(names, other[inside].mean(axis=0)),
        )
        found.append((region, change))
    return tuple(sorted(found, key=lambda pair: -pair[1].share_of_all))


@dataclass(frozen=True)
class Stretch:
    """Steps first to last (of the whole arrays, `last` not included) of one episode around its `peak`."""

    episode: int
    peak: int
    first: int
    last: int


def telling_episodes(
    disagreement: Floats, regions: Ints, ranked: Sequence[int], offsets: Ints, *, n_episodes: int, n_steps: int
) -> tuple[Stretch, ...]:
    """Episodes to look at: for each region in turn the one whose step there departs most, none of them twice.

    Args:
        disagreement: (T,); regions: (T,).
        ranked: numbers of the regions to look at, the most important first; begun anew until there are enough.
        offsets: (N + 1,).
        n_episodes: how many to find; fewer where no step disagrees any more.
        n_steps: longest stretch around the step.
    """
    left = np.where(disagreement > 0, disagreement, -1.0)
    found: list[Stretch] = []
    while len(found) < n_episodes:
        n_before = len(found)
        for region in ranked:
            inside = np.flatnonzero((regions == region) & (left > 0))
            if len(inside) and len(found) < n_episodes:
                peak = int(inside[left[inside].argmax()])
                episode = int(np.searchsorted(offsets, peak, side="right") - 1)
                left[offsets[episode] : offsets[episode + 1]] = -1.0
                found.append(_around(peak, episode, offsets, n_steps))
        if len(found) == n_before:
            break
    return tuple(found)


def _around(peak: int, episode: int, offsets: Ints, n_steps: int) -> Stretch:
    start, end = int(offsets[episode]), int(offsets[episode + 1])
    first = max(start, min(peak - n_steps // 2, end - n_steps))
    return Stretch(episode, peak, first, min(end, first + n_steps))


def _by_name(names: Sequence[str], values: NDArray[Any]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
