"""From what many logs of one cell showed to the rows of docs/calibration.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

from tests.benchmarks.rows import table

SLACK = 1.5
"""A level is held if the upper limit of what was observed is at most this many times the level."""

DRIFT = "drift: largest standardized PSI"


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One error rate of one method in one world, against the level that it states."""

    work: str
    """What was counted."""
    world: str
    method: str
    kind: Literal["promise", "comparison"]
    """A promise is what a user relies on; a comparison explains it, or shows what another method would do."""
    level: float
    """Stated error rate. For power, the share of better candidates that should pass."""
    observed: float
    upper: float
    """One-sided 95 % upper limit of the rate (Clopper and Pearson 1934)."""
    n: int
    met: bool
    """upper at most `SLACK` times level; for power, observed at least level."""


def upper_limit(n_found: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper limit of a rate of which `n_found` in `n` were seen; 1 where nothing was seen at all.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    return 1.0 if n_found >= n else float(stats.beta.ppf(confidence, n_found + 1, n - n_found))


def gate_rows(cell: Any, outcomes: Sequence[dict[str, Any]]) -> list[CalibrationRow]:
    """Rows of a cell whose candidate lies exactly at the margin, or is better.

    False passes are stated over all logs, and over those that no other check refused; the rest compares.
    """
    if not outcomes:
        return []
    open_ones = [o for o in outcomes if not o["refused"]]
    rows = list(_coverage(cell, outcomes))
    if getattr(cell, "candidate", "") == "better" or getattr(cell, "at_margin", True) is False:
        passed = [o["passed"] for o in outcomes]
        share = sum(passed) / len(passed)
        power = CalibrationRow(
            work="power: a better candidate passes", world=cell.world, method=cell.method, kind="comparison", level=0.8,
            observed=_rounded(share), upper=_rounded(upper_limit(sum(passed), len(passed))), n=len(passed),
            met=share >= 0.8,
        )  # fmt: skip
        return [power, *rows]
    found = [_row(cell, "false pass, over all logs", cell.method, "promise", [o["passed"] for o in outcomes])]
    if open_ones:
        passes = [o["passed"] for o in open_ones]
        found.append(_row(cell, "false pass, over logs that no other check refused", cell.method, "promise", passes))
    for key, method in {
        "bound_passes": "the lower bound alone, where overlap admits one",
        "model_passes": "the direct method's lower bound alone",
    }.items():
        passes = [o[key] for o in outcomes if o[key] is not None]
        if passes:
            found.append(_row(cell, "false pass, over logs with such a bound", method, "comparison", passes))
    return [*found, *rows]


def _coverage(cell: Any, outcomes: Sequence[dict[str, Any]]) -> Iterator[CalibrationRow]:
    missed = [not o["covered"] for o in outcomes if o["covered"] is not None]
    if missed:
        work = "coverage: the 95 % interval misses the true difference"
        yield _row(cell, work, cell.method, "comparison", missed, level=0.05)


def drift_rows(cell: Any, outcomes: Sequence[dict[str, Any]]) -> list[CalibrationRow]:
    """The rate of alarms: false ones, or with a shift the power."""
    alarmed = [o["alarmed"] for o in outcomes]
    if not alarmed:
        return []
    if cell.shift:
        share = sum(alarmed) / len(alarmed)
        return [
            CalibrationRow(
                work="power: a shifted night alarms", world=cell.world, method=DRIFT, kind="comparison", level=0.8,
                observed=_rounded(share), upper=_rounded(upper_limit(sum(alarmed), len(alarmed))), n=len(alarmed),
                met=share >= 0.8,
            )
        ]  # fmt: skip
    kind: Literal["promise", "comparison"] = "promise" if cell.promised else "comparison"
    return [_row(cell, "false alarm of an unchanged night", DRIFT, kind, alarmed, level=cell.false_alarm_rate)]


def _row(
    cell: Any,
    work: str,
    method: str,
    kind: Literal["promise", "comparison"],
    errors: Sequence[bool],
    *,
    level: float | None = None,
) -> CalibrationRow:
    stated = cell.alpha if level is None else level
    upper = upper_limit(sum(errors), len(errors))
    return CalibrationRow(
        work=work, world=cell.world, method=method, kind=kind, level=stated,
        observed=_rounded(sum(errors) / len(errors)), upper=_rounded(upper), n=len(errors), met=upper <= SLACK * stated,
    )  # fmt: skip


def calibration_table(rows: Sequence[CalibrationRow]) -> str:
    """The table of `make calibrate`."""
    cells = [
        [r.world, r.work, r.method, r.kind, f"{r.level:g}", f"{r.observed:g}", f"{r.upper:g}", str(r.n),
         "yes" if r.met else "NO"]
        for r in rows
    ]  # fmt: skip
    return table(cells, ["world", "counted", "method", "kind", "level", "observed", "upper", "n", "met"])


def promises_in_words(rows: Sequence[CalibrationRow]) -> str:
    """How many promises are held, how many broken beyond chance, and how many need more logs to tell."""
    promises = [row for row in rows if row.kind == "promise"]
    held = sum(row.met for row in promises)
    broken = [row for row in promises if not row.met and _lower_limit(row) > row.level]
    words = f"{held} promises are held, {len(promises) - held} are not: "
    words += f"{len(broken)} of these err more often than stated, {len(promises) - held - len(broken)} need more logs."
    return "\n  ".join([words, *(f"{row.world}; {row.work}: {row.observed:g} for {row.level:g}" for row in broken)])


def _lower_limit(row: CalibrationRow) -> float:
    """One-sided 95 % lower limit of the rate."""
    n_found = round(row.observed * row.n)
    return float(stats.beta.ppf(0.05, n_found, row.n - n_found + 1)) if n_found else 0.0


def _rounded(value: float) -> float:
    return round(value, 4)
