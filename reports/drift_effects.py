"""What a drifted feature does to the champion: live episodes as they are, beside the same with the feature put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.contract import ImageFeature
from datasets.observations import MISSING_CODE, Observations
from datasets.replay import Replay
from drift.records import ColumnDrift, DriftEffect
from drift.which_reference import reference_of, scalar_of
from drift.windows import DriftColumn, DriftWindow
from offline_dqn.policy import Policy
from offline_dqn.shield import shielded_probs
from reports.estimators import Floats, Ints
from reports.formatting import number, share

MOST_COLUMNS = 8
MOST_STEPS = 20_000
"""Of the live episodes, drawn whole."""

_FEATURE = "observation."
_ENOUGH = 0.1
"""Of the champion's probability of an action, that the log must give it for the two to overlap."""
_HARDLY = 0.005


def drift_effects(
    policy: Policy,
    live: Replay,
    references: Sequence[DriftWindow],
    drifted: Sequence[ColumnDrift],
    *,
    seed: int,
) -> tuple[DriftEffect, ...]:
    """Of the drifted features, the furthest out first, at most eight: the largest change of action shares first.

    A numeric feature's live values take those of the reference that have the same rank; labels are drawn anew for as
    few rows as make the shares those of the reference. Other features stay as they are, so what is shown is the part
    of this one alone. Of an image, and of a vector's norm, nothing can be put back.

    Args:
        policy: the champion, along the live episodes' actions.
        live: the newest nights.
        references: as in `measure_drift`: a feature is put back to the one that it is compared with, with its weights.
        drifted: columns that drifted, the furthest first.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    live = _some_episodes(live, rng)
    if not live.n_steps:
        return ()
    before = _Seen.of(policy, live, live.observations)
    effects: list[DriftEffect] = []
    for column in drifted:
        if len(effects) == MOST_COLUMNS:
            break
        place = reference_of(column.name, references)
        if column.role != "feature" or place is None:
            continue
        window = references[place]
        known = scalar_of(column.name, window)
        assert known is not None  # else it would have no place
        observations = _put_back(live, column.name, known, window.weights_of(known), rng)
        if observations is not None:
            effects.append(_effect(column.name, live, before, _Seen.of(policy, live, observations)))
    return tuple(sorted(effects, key=lambda effect: -effect.share_change))


@dataclass(frozen=True)
class _Seen:
    """The champion on some observations: (T, A) probabilities; mean value of the first steps; overlap with the log."""

    probs: Floats
    value: float | None
    overlap: float | None

    @classmethod
    def of(cls, policy: Policy, live: Replay, observations: Observations) -> _Seen:
        rows = np.arange(live.n_steps)
        # What the world allows stays as it was; what the shield forbids follows the observations.
        changed = replace(live, observations=observations)
        seen = observations.take(rows)
        probs = shielded_probs(policy, live.contract, seen, changed.permitted[rows])
        first = live.offsets[:-1]
        q = policy.q_values(seen.take(first))
        value = None
        if q is not None:
            known = probs[first] > 0.0
            value = float(np.where(known, probs[first] * np.where(known, q, 0.0), 0.0).sum(axis=1).mean())
        return cls(probs, value, _overlap(probs, live.actions, live.behavior_prob))


def _overlap(probs: Floats, actions: Ints, behavior_prob: Floats) -> float | None:
    """Share of decisions in which the log gives the champion's likeliest action at least a tenth of its probability.

    The log shows the probability of the action taken alone: a step in which that is the likeliest one stands for 1 / p
    steps like it.
    """
    known = behavior_prob > 0
    if not known.any():
        return None
    likeliest = probs[known].argmax(axis=1)
    p, wanted = behavior_prob[known], _ENOUGH * probs[known].max(axis=1)
    found = np.where((actions[known] == likeliest) & (p >= wanted), 1.0 / p, 0.0)
    return float(min(1.0, found.mean()))


def _effect(name: str, live: Replay, now: _Seen, back: _Seen) -> DriftEffect:
    shares, old_shares = now.probs.mean(axis=0), back.probs.mean(axis=0)
    change = float(np.abs(shares - old_shares).sum() / 2.0)
    value = None if now.value is None or back.value is None else now.value - back.value
    overlap = None if now.overlap is None or back.overlap is None else now.overlap - back.overlap
    most = int(np.abs(shares - old_shares).argmax())
    action = live.contract.actions.names[most]
    parts = [
        f"{name} makes the champion take '{action}' in {share(shares[most])} instead of {share(old_shares[most])} of "
        "decisions"
        if change >= _HARDLY
        else f"{name} hardly changes what the champion does"
    ]
    if value is not None:
        parts.append(f"its estimated value {'falls' if value < 0 else 'rises'} by {number(abs(value))}")
    if overlap is not None and abs(overlap) >= _HARDLY:
        parts.append(f"the share of its decisions that the log supports goes {_by(overlap)}")
    listed = ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return DriftEffect(
        column=name,
        share_change=change,
        value_change=value,
        overlap_change=overlap,
        sentence=f"{listed}.",
    )


def _by(change: float) -> str:
    return f"{'up' if change > 0 else 'down'} by {share(abs(change))}"


def _some_episodes(live: Replay, rng: np.random.Generator) -> Replay:
    if live.n_steps <= MOST_STEPS:
        return live
    order = rng.permutation(live.n_episodes)
    kept = np.zeros(live.n_episodes, dtype=bool)
    kept[order[np.cumsum(live.lengths[order]) <= max(MOST_STEPS, int(live.lengths[order[0]]))]] = True
    return live.subset(kept)


def _put_back(
    live: Replay, name: str, reference: DriftColumn, weights: Floats | None, rng: np.random.Generator
) -> Observations | None:
    """The live observations with one feature as the reference has it; None where it cannot be put back."""
    feature, _, component = name.removeprefix(_FEATURE).partition("[")
    if feature not in live.contract.features or isinstance(live.contract.features[feature], ImageFeature):
        return None
    columns, vocabularies = dict(live.observations.columns), dict(live.observations.vocabularies)
    weights = np.ones(len(reference.values)) if weights is None else weights
    old = columns[feature]
    if reference.kind == "categorical":
        codes, vocabularies[feature] = relabelled(
            old, vocabularies[feature], reference.values, reference.vocabulary, weights, rng
        )
        columns[feature] = codes.astype(old.dtype)
    elif reference.kind == "boolean":
        known = ("0", "1")
        codes, _ = relabelled(_codes(old), known, _codes(reference.values), known, weights, rng)
        columns[feature] = np.where(codes == MISSING_CODE, np.nan, codes.astype(np.float64))
    elif component:
        i = int(component.removesuffix("]"))
        changed = np.array(old)
        changed[:, i] = requantiled(old[:, i], reference.values, weights, rng)
        columns[feature] = changed
    else:
        columns[feature] = requantiled(old, reference.values, weights, rng)
    return Observations(columns, vocabularies)


def _codes(values: Floats) -> Ints:
    return np.where(np.isnan(values), MISSING_CODE, np.nan_to_num(values)).astype(np.int64)


def requantiled(values: Floats, reference: Floats, weights: Floats, rng: np.random.Generator) -> Floats:
    """(n,) values with the distribution of (m,) weighted reference values, each at the rank it had; ties by chance.

    As many are missing as in the reference: those that are too many take a value by chance, those that are too few are
    chosen by chance.
    """
    seen = ~np.isnan(reference) & (weights > 0)
    if not seen.any():
        return values
    order = np.argsort(reference[seen], kind="stable")
    ordered, mass = reference[seen][order], np.cumsum(weights[seen][order])
    n_missing = round(len(values) * (1.0 - float(mass[-1]) / float(weights.sum())))
    missing = np.isnan(values)
    found = np.array(values, dtype=np.float64)
    ranked = np.flatnonzero(~missing)
    ranked = ranked[np.lexsort((rng.random(len(ranked)), values[ranked]))]
    places = np.empty(len(values))
    places[ranked] = (np.arange(len(ranked)) + 0.5) / max(1, len(ranked))
    if missing.sum() > n_missing:
        filled = rng.permutation(np.flatnonzero(missing))[n_missing:]
        places[filled] = rng.random(len(filled))
        missing[filled] = False
    elif missing.sum() < n_missing:
        missing[rng.permutation(ranked)[: n_missing - int(missing.sum())]] = True
    known = np.flatnonzero(~missing)
    at = np.searchsorted(mass, places[known] * mass[-1]).clip(max=len(ordered) - 1)
    found[known] = ordered[at]
    found[missing] = np.nan
    return found


def relabelled(
    codes: Ints,
    vocabulary: tuple[str, ...],
    reference: Ints,
    reference_vocabulary: tuple[str, ...],
    weights: Floats,
    rng: np.random.Generator,
) -> tuple[Ints, tuple[str, ...]]:
    """(n,) codes with the label shares of the weighted reference, as few rows changed as that takes, by chance.

    Returns:
        The codes, -1 where missing, and their vocabulary: the given one with the reference's labels added to it.
    """
    joint = (*vocabulary, *(label for label in reference_vocabulary if label not in vocabulary))
    place = {label: i for i, label in enumerate(joint)}
    onto = np.array([*(place[label] for label in reference_vocabulary), MISSING_CODE], dtype=np.int64)
    shares = np.bincount(onto[reference] + 1, weights, minlength=len(joint) + 1)
    if not shares.sum():
        return codes, joint
    exact = len(codes) * shares / shares.sum()
    wanted = np.floor(exact).astype(np.int64)
    short = len(codes) - int(wanted.sum())
    wanted[np.argsort(wanted - exact, kind="stable")[:short]] += 1
    found = np.array(codes, dtype=np.int64)
    have = np.bincount(found + 1, minlength=len(joint) + 1)
    order = rng.permutation(len(found))
    slots = found[order] + 1
    rank = np.empty(len(slots), dtype=np.int64)
    by_slot = np.argsort(slots, kind="stable")
    rank[by_slot] = np.arange(len(slots)) - np.searchsorted(slots[by_slot], slots[by_slot])
    surplus = order[rank >= wanted[slots]]
    lacking = np.repeat(np.arange(len(wanted)), np.maximum(wanted - have, 0))
    found[surplus] = rng.permutation(lacking) - 1
    return found, joint
