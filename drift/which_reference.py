"""Which of several references a column is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from drift.windows import DriftColumn, DriftWindow, scalar_columns


def takes_over(column: DriftColumn, *, known: bool) -> bool:
    """Whether a further reference's column is what live ones are compared with: not where it is exogenous and `known`
    from a reference before."""
    return not (column.exogenous and known)


def reference_of(name: str, windows: Sequence[DriftWindow]) -> int | None:
    """Place of the window that a scalar column is compared with: of an exogenous one the first that has it, of what
    actions move the last; None where none has it."""
    place = None
    for p, window in enumerate(windows):
        column = scalar_of(name, window)
        if column is not None and takes_over(column, known=place is not None):
            place = p
    return place


def scalar_of(name: str, window: DriftWindow) -> DriftColumn | None:
    """A column of the window, or a part of a vector, by the name it is compared under; None where there is none."""
    if name in window.columns:
        return scalar_columns(name, window.columns[name]).get(name)
    for whole, column in window.columns.items():
        if column.kind == "vector" and name.startswith((f"{whole}[", f"{whole}.")):
            part = scalar_columns(whole, column).get(name)
            if part is not None:
                return part
    return None
