"""Which columns of the references and of the live window are compared, and why others cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drift.config import DriftConfig
from drift.reference import Reference, scalars
from drift.which_reference import takes_over
from drift.windows import DriftColumn, DriftWindow


@dataclass(frozen=True)
class Pair:
    """A scalar column in its reference and in the live window; None where a window lacks it."""

    name: str
    reference: int
    before: DriftColumn | None
    now: DriftColumn | None

    def why_not(self, known: Sequence[Reference | None], problems: Sequence[str], live_strata: Any) -> str:
        """Why it cannot be judged; "" if it can."""
        if problems[self.reference]:
            return problems[self.reference]
        if self.before is None or self.now is None:
            return f"only the {'live window' if self.before is None else 'reference'} has this column"
        if not len(self.now.values):
            return "the live window holds no entry of it"
        reference = known[self.reference]
        assert reference is not None  # else there is a problem
        if not reference.has_entries(self.before, live_strata):
            return "the reference holds no entry of it" + (
                "" if reference.config.seasonality == "none" else " on days and in hours like the live ones"
            )
        return reference.too_light(self.before)


def paired_columns(windows: Sequence[DriftWindow], live: DriftWindow) -> dict[str, Pair]:
    """The scalar columns of any window by name, in the references' order."""
    now = scalars(live.columns)
    before: dict[str, tuple[int, DriftColumn]] = {}
    for place, window in enumerate(windows):
        for name, column in scalars(window.columns).items():
            if takes_over(column, known=name in before):
                before[name] = place, column
    for name in before.keys() & now.keys():
        kind, live_kind = before[name][1].kind, now[name].kind
        if kind != live_kind:
            raise ValueError(f"column '{name}' is {kind} in the reference and {live_kind} in live")
    pairs = {name: Pair(name, place, column, now.get(name)) for name, (place, column) in before.items()}
    return pairs | {name: Pair(name, 0, None, column) for name, column in now.items() if name not in before}


def too_little(reference: Reference | None, live: DriftWindow, live_kinds: Any, config: DriftConfig) -> str:
    """Why the windows as a whole cannot be judged; empty if they can."""
    if live.n_episodes < config.min_live_episodes or not live.n_rows:
        return f"the live window holds {live.n_episodes} episodes, and it takes {config.min_live_episodes}"
    if reference is None:
        return f"the reference holds 0 episodes, and it takes {config.min_live_episodes}"
    return reference.too_little(live_kinds)
