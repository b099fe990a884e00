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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from drift.config import DriftConfig
from drift.few_episodes import few_episodes
from drift.few_groups import Grouping, GroupKind, few_groups
from drift.hours import in_same_hours
from drift.records import DriftReport, Suspicion
from drift.reference import scalars
from drift.sides import Confined, Sides
from drift.which_reference import reference_of, scalar_of
from drift.windows import DriftWindow

MOST_COLUMNS = 12
"""Drifted columns that are looked into, the largest PSI first."""

LOGGED = frozenset({"feature", "action", "reward"})
"""Roles of the columns that a log holds itself."""

MOST_NAMED = 5

_KINDS: dict[GroupKind, str] = {"few sources": "source", "one policy version": "policy version"}


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
    same = in_same_hours(windows, live, live, config)
    if not same.kept.all():  # what was compared is what may be suspicious
        live, episodes = same.live, episodes[same.kept]
        groups = [replace(group, live=group.live[same.kept]) for group in groups]
    now = scalars(live.columns)
    found: list[Confined] = []
    for column in report.drifted_columns[:MOST_COLUMNS]:
        place = reference_of(column.name, windows)
        before = None if place is None else scalar_of(column.name, windows[place])
        if place is None or before is None:
            raise ValueError(f"column '{column.name}' drifted, and no reference has it")
        sides = Sides.of(column, windows[place], before, live, now[column.name], config)
        confined = few_groups(sides, groups, place, rng)
        if confined is None and column.role in LOGGED:
            confined = few_episodes(sides, episodes)
        if confined is not None:
            found.append(confined)
    return tuple(_told(found, report, live))


def _told(found: Sequence[Confined], report: DriftReport, live: DriftWindow) -> list[Suspicion]:
    """One suspicion for all columns that shift with mostly the same episodes, told of the largest PSI."""
    told: list[tuple[Confined, list[str]]] = []
    for one in found:
        for first, others in told:
            both = np.count_nonzero(first.members & one.members)
            if first.kind == one.kind and 2 * both >= np.count_nonzero(first.members | one.members):
                others.append(one.column.name)
                break
        else:
            told.append((one, []))
    return [_suspicion(first, others, report, live) for first, others in told]


def _suspicion(one: Confined, others: Sequence[str], report: DriftReport, live: DriftWindow) -> Suspicion:
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
