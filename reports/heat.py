"""A heatmap of PSI: columns by nights of the calendar, colored by how far beyond what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from reports.change_records import NightDrift
from reports.formatting import counted, number

_STEPS = (1.0, 2.0, 5.0)
"""Times what is allowed from which on a cell has the next darker color."""


@dataclass(frozen=True)
class HeatCell:
    """One night of one column: how far beyond what is allowed (0 within, 3 furthest), its text, and what it means."""

    level: int
    text: str
    said: str


@dataclass(frozen=True)
class HeatNight:
    """Head of a night; where `n_missing` is not 0, of so many nights that are not there, in one narrow place."""

    label: str
    said: str
    n_missing: int = 0


@dataclass(frozen=True)
class Heat:
    """Columns by nights. None stands in the place of a cell where nights are missing from the calendar."""

    nights: tuple[HeatNight, ...]
    rows: tuple[tuple[str, tuple[HeatCell | None, ...]], ...]


def heat(
    columns: Sequence[str],
    nights: Sequence[str],
    n_episodes: Sequence[int],
    psi: Sequence[Sequence[float | None]],
    allowed: Sequence[Sequence[float]],
    bound: str,
) -> Heat:
    """The heatmap of C columns in M nights.

    Args:
        columns: (C,) names; nights: (M,) ISO dates, ascending; n_episodes: (M,).
        psi, allowed: (C, M), in nats; None where a column was not measured.
        bound: what `allowed` is, as it stands behind the number.
    """
    days = [date.fromisoformat(night) for night in nights]
    missing = [0, *((later - day).days - 1 for day, later in pairwise(days))]
    heads: list[HeatNight] = []
    for night, n, gap in zip(nights, n_episodes, missing, strict=True):
        if gap:
            heads.append(HeatNight("", f"{counted(gap, 'night')} not measured", gap))
        heads.append(HeatNight(night[5:], f"{night}: {counted(n, 'episode')}"))
    rows = []
    for name, found, limits in zip(columns, psi, allowed, strict=True):
        cells: list[HeatCell | None] = []
        for night, gap, value, limit in zip(nights, missing, found, limits, strict=True):
            cells += ([None] if gap else []) + [_cell(name, night, value, limit, bound)]
        rows.append((name, tuple(cells)))
    return Heat(tuple(heads), tuple(rows))


def heat_of_gate(drift: NightDrift) -> Heat:
    """Nights of `gate` against what a candidate was fitted on."""
    return heat(drift.columns, drift.nights, drift.n_episodes, drift.psi, drift.allowed, "explained by chance")


def _cell(name: str, night: str, psi: float | None, allowed: float, bound: str) -> HeatCell:
    if psi is None:
        return HeatCell(0, "", f"{name}, {night}: not measured")
    level = sum(psi > times * allowed for times in _STEPS)
    said = f"{name}, {night}: PSI {number(psi, 2)}, {number(allowed, 2)} {bound}"
    return HeatCell(level, number(psi, 2) if level else "", said)
