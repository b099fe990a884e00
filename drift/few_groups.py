"""Whether a shift is confined to few sources, or to one policy version, more than groups dealt by chance are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.binning import histograms_by_unit
from drift.cells import dense
from drift.sides import LARGEST_SHARE, Confined, Floats, Ints, Sides

CHANCE = 0.01
"""Rate at which groups dealt by chance may explain as much."""

N_DEALS = 299
"""Deals by chance that a grouping is compared with."""

APART = 3.0
"""How many times as far from the rest as any group that stays one must be that is left out and new to the reference."""

GroupKind = Literal["few sources", "one policy version"]


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
class _Parts:
    """A column by B blocks, each a cluster's part of a group: what is dealt by chance, as its episodes depend on each
    other. (B, K) counts, (B,) episodes, (G, K) share of the reference that is of each group."""

    sides: Sides
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


def few_groups(sides: Sides, groups: Sequence[Grouping], place: int, rng: np.random.Generator) -> Confined | None:
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
            return Confined(group.kind, sides.column, where, np.isin(codes, left_out), psi)
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
