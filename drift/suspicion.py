"""A shift that few groups of live episodes bring alone: poisoned logs, one broken source, a policy version of its own.

A changed world changes every source and most episodes. For each drifted column the groups are left out that bring its
PSI down most; the shift is confined to them if they hold a small share of the live episodes and the rest is like the
reference. Chance finds such groups too: any few can be left out to make a shift look smaller. So

* sources and policy versions must bring it down further than groups of the same sizes do that are dealt by chance; a
  shift of all does not care how episodes are dealt. Sources also differ when nothing has changed, and the one that
  always was the highest hides a rise of all once it is left out. So a group that the reference has too is left out on
  both sides, and one that it has not must stand far apart from all groups that stay;
* episodes by themselves cannot be dealt, so they are not chosen by what leaving them out does: left out are those that
  the reference hardly holds, by their values or by the mix of their bins. A shift of all moves the rest as well. This
  is asked of what was logged alone: what a model did not expect is far out in few episodes whatever has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.binning import histogram, histograms_by_unit
from drift.cells import dense
from drift.comparison import ColumnBins, column_bins
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.records import ColumnDrift, DriftReport, Suspicion
from drift.reference import scalars
from drift.which_reference import reference_of, scalar_of
from drift.windows import DriftColumn, DriftWindow

LARGEST_SHARE = 0.2
"""Of the live episodes, that a shift may be confined to: more than that is how the world is now."""

EXPLAINED = 0.75
"""Share of a column's PSI, beyond that of an unchanged night, that must go with the groups that are left out."""

CHANCE = 0.01
"""Rate at which groups dealt by chance may explain as much."""

N_DEALS = 299
"""Deals by chance that a grouping is compared with."""

OUTLYING = 0.01
"""Share of the reference's episodes, on either side, beyond which a live episode is one that it hardly holds."""

MOST_COLUMNS = 12
"""Drifted columns that are looked into, the largest PSI first."""

LOGGED = frozenset({"feature", "action", "reward"})
"""Roles of the columns that a log holds itself."""

MOST_NAMED = 5

GroupKind = Literal["few sources", "one policy version"]
APART = 3.0
"""How many times as far from the rest as any group that stays one must be that is left out and new to the reference."""

_KINDS: dict[GroupKind, str] = {"few sources": "source", "one policy version": "policy version"}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Grouping:
    """Live episodes by where they come from.

    Attributes:
        live: (N,) label of each live episode.
        references: (N,) the same of each reference window; None where it is not known.
    """

    kind: GroupKind
    live: NDArray[np.str_]
    references: tuple[NDArray[np.str_] | None, ...]


@dataclass(frozen=True)
class _Confined:
    """A shift of one column that goes with some live episodes: (N,) bool `members`, and the PSI of the rest."""

    kind: Literal["few sources", "one policy version", "few episodes"]
    column: ColumnDrift
    where: tuple[str, ...]
    members: NDArray[np.bool_]
    psi_of_rest: float


def confined_shifts(
    references: DriftWindow | Sequence[DriftWindow],
    live: DriftWindow,
    report: DriftReport,
    config: DriftConfig,
    *,
    groups: Sequence[Grouping],
    episodes: NDArray[np.str_],
    rng: np.random.Generator,
) -> tuple[Suspicion, ...]:
    """The drifted columns whose shift is confined to a small share of the live episodes, those together that share it.

    Args:
        references, live: the windows that were compared.
        report: their comparison.
        groups: what the shift may be confined to, the likeliest first.
        episodes: (N,) names of the live episodes.
        rng: deals groups by chance.

    Raises:
        ValueError: the labels are not one for each live episode.
    """
    windows = [references] if isinstance(references, DriftWindow) else list(references)
    given = [(len(episodes), live), *((len(group.live), live) for group in groups)]
    given += [
        (len(labels), window)
        for group in groups
        for labels, window in zip(group.references, windows, strict=True)
        if labels is not None
    ]
    wrong = [f"{n} for {window.n_episodes} episodes" for n, window in given if n != window.n_episodes]
    if wrong:
        raise ValueError(f"wants one label per episode, found {', '.join(wrong)}")
    now = scalars(live.columns)
    found: list[_Confined] = []
    for column in report.drifted_columns[:MOST_COLUMNS]:
        place = reference_of(column.name, windows)
        before = None if place is None else scalar_of(column.name, windows[place])
        if place is None or before is None:
            raise ValueError(f"column '{column.name}' drifted, and no reference has it")
        sides = _Sides.of(column, windows[place], before, live, now[column.name], config)
        confined = _few_groups(sides, groups, place, rng)
        if confined is None and column.role in LOGGED:
            confined = _few_episodes(sides, episodes)
        if confined is not None:
            found.append(confined)
    return tuple(_told(found, report, live))


@dataclass(frozen=True)
class _Sides:
    """A drifted column of both windows on its bins.

    Attributes:
        probs: (K,) shares of the reference.
        slots, episode_of_entry: (entries,) of the live side.
        goal: PSI at most which the rest counts as like the reference.
    """

    column: ColumnDrift
    reference: DriftWindow
    before: DriftColumn
    live: DriftWindow
    now: DriftColumn
    bins: ColumnBins
    probs: Floats
    slots: Ints
    episode_of_entry: Ints
    floor: float
    goal: float

    @classmethod
    def of(
        cls,
        column: ColumnDrift,
        reference: DriftWindow,
        before: DriftColumn,
        live: DriftWindow,
        now: DriftColumn,
        config: DriftConfig,
    ) -> _Sides:
        of_cluster, weights = reference.clusters[reference.episodes_of(before)], reference.weights_of(before)
        bins = column_bins(before, groups=of_cluster, weights=weights, n_bins=config.n_bins)
        psi, typical = column.psi or 0.0, column.typical_psi or 0.0
        goal = min(column.allowed(config.min_psi) or config.min_psi, psi - EXPLAINED * (psi - typical))
        probs = np.array(column.reference_probs)
        return cls(
            column, reference, before, live, now, bins, probs, bins.assign(now), live.episodes_of(now), config.floor,
            goal,
        )  # fmt: skip

    def psi(self, counts: Floats, probs: Floats | None = None) -> Floats:
        """PSI of (..., K) live counts against `probs`, by default the reference's; infinite where none is counted."""
        total = counts.sum(axis=-1, keepdims=True)
        shares = counts / np.where(total > 0, total, 1.0)
        psi = psi_of_rows(
            np.broadcast_to(self.probs if probs is None else probs, shares.shape), shares, floor=self.floor
        )
        return np.where(total[..., 0] > 0, psi, np.inf)

    def reference_by(self, labels: NDArray[np.str_], names: NDArray[np.str_]) -> Floats:
        """(G, K) share of the reference that lies in each bin and is of each of the named groups."""
        code = np.searchsorted(names, labels).clip(max=len(names) - 1)
        of_entry = np.where(names[code] == labels, code, len(names))[self.reference.episodes_of(self.before)]
        slots, weights = self.bins.assign(self.before), self.reference.weights_of(self.before)
        by_group = histograms_by_unit(slots, len(self.probs), of_entry, len(names) + 1, weights)
        # In each bin the groups share what the comparison took for the whole bin.
        whole = by_group.sum(axis=0)
        return by_group[:-1] * np.where(whole > 0, self.probs / np.where(whole > 0, whole, 1.0), 0.0)


# --- sources and policy versions


@dataclass(frozen=True)
class _Parts:
    """A column by B blocks, each a cluster's part of a group: what is dealt by chance, as its episodes depend on each
    other. (B, K) counts, (B,) episodes, (G, K) share of the reference that is of each group."""

    sides: _Sides
    by_block: Floats
    sizes: Floats
    of_reference: Floats

    def leave_out(self, group_of_block: Ints, *, on_both_sides: bool) -> tuple[Ints, float, Floats]:
        """The groups that, left out one after the other, bring PSI down most, until the rest is like the reference or
        they hold too many episodes; the PSI of the rest; and (G, K) counts of all."""
        sides, n_groups = self.sides, len(self.of_reference)
        by_group = np.zeros((n_groups, self.by_block.shape[1]))
        np.add.at(by_group, group_of_block, self.by_block)
        size = np.bincount(group_of_block, self.sizes, minlength=n_groups)
        theirs = self.of_reference if on_both_sides else np.zeros_like(self.of_reference)
        rest, known, room = by_group.sum(axis=0), sides.probs, LARGEST_SHARE * self.sizes.sum()
        left_out: list[int] = []
        psi = float(sides.psi(rest))
        while psi > sides.goal:
            fits = (size <= room) & (size > 0)
            fits[left_out] = False
            probs = (known - theirs).clip(min=0.0)
            total = probs.sum(axis=1, keepdims=True)
            fits &= total[:, 0] > 0.5  # else there is no reference left
            without = np.where(fits, sides.psi(rest - by_group, probs / np.where(total > 0, total, 1.0)), np.inf)
            best = int(np.argmin(without))
            if not without[best] < psi:
                break
            psi, room = float(without[best]), room - size[best]
            rest, known = rest - by_group[best], known - theirs[best]
            left_out.append(best)
        return np.array(left_out, dtype=np.int64), psi, by_group


def _few_groups(sides: _Sides, groups: Sequence[Grouping], place: int, rng: np.random.Generator) -> _Confined | None:
    for group in groups:
        names, codes = np.unique(group.live, return_inverse=True)
        if len(names) < 2:
            continue
        blocks = dense(codes * (int(dense(sides.live.clusters).max()) + 1) + dense(sides.live.clusters))
        n_blocks = int(blocks.max()) + 1
        group_of_block = np.empty(n_blocks, dtype=np.int64)
        group_of_block[blocks] = codes
        by_block = histograms_by_unit(sides.slots, len(sides.probs), blocks[sides.episode_of_entry], n_blocks)
        labels = group.references[place]
        of_reference = np.zeros((len(names), len(sides.probs)))
        if labels is not None:
            of_reference = sides.reference_by(labels, names)
        parts = _Parts(sides, by_block, np.bincount(blocks, minlength=n_blocks).astype(np.float64), of_reference)
        left_out, psi, by_group = parts.leave_out(group_of_block, on_both_sides=True)
        if not len(left_out) or psi > sides.goal or not _stand_apart(parts, left_out, by_group):
            continue
        by_chance = np.array([
            parts.leave_out(rng.permutation(group_of_block), on_both_sides=False)[1] for _ in range(N_DEALS)
        ])  # fmt: skip
        if (1 + np.count_nonzero(by_chance <= sides.goal)) / (1 + N_DEALS) <= CHANCE:
            where = tuple(str(name) or "(none)" for name in names[left_out])
            return _Confined(group.kind, sides.column, where, np.isin(codes, left_out), psi)
    return None


def _stand_apart(parts: _Parts, left_out: Ints, by_group: Floats) -> bool:
    """Whether every group left out that is new to the reference is much further from the rest than any that stays."""
    new = [group for group in left_out if not parts.of_reference[group].any()]
    staying = np.setdiff1d(np.arange(len(by_group)), left_out)
    if not new or len(staying) < 2:  # of a single one that stays the rest consists
        return True
    rest = by_group[staying].sum(axis=0)
    far = parts.sides.psi(by_group, rest / rest.sum())
    return bool(far[new].min() >= APART * far[staying][np.isfinite(far[staying])].max(initial=0.0))


# --- episodes


def _few_episodes(sides: _Sides, episodes: NDArray[np.str_]) -> _Confined | None:
    """Whether the shift goes with the clusters of live episodes that the reference hardly holds."""
    known, known_unit = _units(sides.reference, sides.before, sides.bins.assign(sides.before), len(sides.probs))
    new, new_unit = _units(sides.live, sides.now, sides.slots, len(sides.probs))
    weights = sides.reference.weights_of(sides.before)
    if weights is None:
        weight = np.ones(len(known.mix))
    else:
        entry_units = known_unit[sides.reference.episodes_of(sides.before)]
        n = np.bincount(entry_units, minlength=len(known.mix))
        weight = np.bincount(entry_units, weights, minlength=len(known.mix)) / np.maximum(n, 1)
    live_probs = np.array(sides.column.live_probs)
    # What a bin says for the live window: the terms whose mean over live entries is KL(live || reference).
    terms = np.log(np.maximum(live_probs, sides.floor) / np.maximum(sides.probs, sides.floor))
    tails = [_beyond(known.mix @ terms, new.mix @ terms, weight)]
    if known.mean is not None and new.mean is not None:
        tails += [_beyond(sign * known.mean, sign * new.mean, weight) for sign in (-1.0, 1.0)]
    outlying = np.min(tails, axis=0) <= OUTLYING
    members = outlying[new_unit]
    if not members.any() or members.mean() > LARGEST_SHARE:
        return None
    rest = sides.slots[~members[sides.episode_of_entry]]
    psi = float(sides.psi(histogram(rest, len(sides.probs))))
    if psi > sides.goal:
        return None
    return _Confined("few episodes", sides.column, tuple(episodes[members].tolist()), members, psi)


@dataclass(frozen=True)
class _Units:
    """Clusters of a night: (U, K) mix of bins, and (U,) mean value, NaN where all is missing; None of labels."""

    mix: Floats
    mean: Floats | None


def _units(window: DriftWindow, column: DriftColumn, slots: Ints, n_slots: int) -> tuple[_Units, Ints]:
    """The units of a window and (N,) the unit of each episode: a cluster's episodes of a night go together."""
    of_episode = dense(window.day_numbers * (int(window.clusters.max()) + 1) + dense(window.clusters))
    n_units = int(of_episode.max()) + 1
    units = of_episode[window.episodes_of(column)]
    counts = histograms_by_unit(slots, n_slots, units, n_units)
    mix = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    if column.kind != "numeric":
        return _Units(mix, None), of_episode
    seen = ~np.isnan(column.values)
    n = np.bincount(units[seen], minlength=n_units)
    total = np.bincount(units[seen], column.values[seen], minlength=n_units)
    return _Units(mix, np.where(n > 0, total / np.maximum(n, 1), np.nan)), of_episode


def _beyond(known: Floats, new: Floats, weight: Floats) -> Floats:
    """(U,) share of the reference's units at or above each live one, one more counted; 1 where either is missing."""
    there = ~np.isnan(known)
    if not there.any():
        return np.ones(len(new))
    order = np.argsort(known[there], kind="stable")
    ordered, above = known[there][order], np.cumsum(weight[there][order][::-1])[::-1]
    place = np.searchsorted(ordered, new - 1e-12 * np.abs(new), side="left")
    one = weight[there].sum() / len(ordered)
    mass = np.append(above, 0.0)[place]
    return np.where(np.isnan(new), 1.0, (mass + one) / (above[0] + one))


# --- words


def _told(found: Sequence[_Confined], report: DriftReport, live: DriftWindow) -> list[Suspicion]:
    """One suspicion for all columns that shift with mostly the same episodes, told of the largest PSI."""
    told: list[tuple[_Confined, list[str]]] = []
    for one in found:
        for first, others in told:
            both = np.count_nonzero(first.members & one.members)
            if first.kind == one.kind and 2 * both >= np.count_nonzero(first.members | one.members):
                others.append(one.column.name)
                break
        else:
            told.append((one, []))
    return [_suspicion(first, others, report, live) for first, others in told]


def _suspicion(one: _Confined, others: Sequence[str], report: DriftReport, live: DriftWindow) -> Suspicion:
    share, n = float(one.members.mean()), int(one.members.sum())
    more = f" and {len(one.where) - MOST_NAMED} more" if len(one.where) > MOST_NAMED else ""
    named = ", ".join(one.where[:MOST_NAMED]) + more
    if one.kind == "few episodes":
        what = f"{n} of {live.n_episodes} live episodes ({share:.1%}) such as the reference hardly holds: {named}"
    else:
        noun = _KINDS[one.kind] + ("s" if len(one.where) > 1 else "")
        what = f"the {noun} {named}, with {n} of {live.n_episodes} live episodes ({share:.1%})"
    also = f" (and of {', '.join(others[:MOST_NAMED])})" if others else ""
    allowed = one.column.allowed(report.min_psi) or report.min_psi
    return Suspicion(
        kind=one.kind,
        column=one.column.name,
        also=tuple(others),
        where=one.where,
        share=share,
        sentence=(
            f"the shift of {one.column.name}{also} is confined to {what}; without them its PSI falls from "
            f"{one.column.psi:.3f} to {one.psi_of_rest:.3f}, where {allowed:.3f} would alarm"
        ),
    )
