"""Whether the live window differs from the reference jointly, in a way that no single column need show.

Two tests on features, action and reward of a bounded number of rows, each with half of the rate: a classifier that is
to tell live rows from the reference's, and the distance of the windows in what two columns do together. As for single
columns, what is to be expected of an unchanged night comes from the reference's own nights, each against the others,
and before there are enough of them from clusters, which know nothing of shocks that a night shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drift.config import DriftConfig
from drift.detection import JOINT_SHARE
from drift.findings import joint_clause
from drift.joint_rows import JointRows, Side, joint_rows, ranked
from drift.mean_discrepancy import embed
from drift.records import DriftReport, JointDrift, Status
from drift.separation import Separation, separate, shares_of_columns
from drift.windows import DriftWindow

MOST_ROWS = 40_000
"""Of each window."""

MOST_FITTED = (4_000, 8_000)
"""Of the live and the reference's rows that a classifier sees: there is one for every night."""

FEWEST_WINDOWS, MOST_WINDOWS = 7, 21
"""Windows of the live one's length that the reference must hold for a null of nights, and for which one is fitted."""

_FEWEST_CLUSTERS = 10
_TINY = 1e-12
_OPTIMISTIC = "optimistic: the reference holds too few nights to know what a night's episodes share"


def with_joint(report: DriftReport, reference: DriftWindow, live: DriftWindow, config: DriftConfig) -> DriftReport:
    """The report with the joint tests, which alarm at their share of the false-alarm rate.

    Args:
        report: of all columns.
        reference: in which the features belong together row by row, weighted to what acted in the live window.
    """
    tests = joint_drift(reference, live, config, JOINT_SHARE * config.false_alarm_rate)
    found = [joint_clause(test) for test in tests if test.drifted]
    status: Status = report.status
    if status != "drifted" and any(test.status != "not enough data" for test in tests):
        status = "drifted" if found else "stable"
    words = [f"{clause[:1].upper()}{clause[1:]}." for clause in found]
    return replace(report, joint=tests, status=status, sentence=" ".join([report.sentence, *words]))


def joint_drift(
    reference: DriftWindow, live: DriftWindow, config: DriftConfig, rate: float
) -> tuple[JointDrift, JointDrift]:
    """The classifier's test and the maximum mean discrepancy, which share the rate: each alarms at half of it.

    Where the reference holds `config.min_nights` nights, and seven windows as long as the live one, each such window
    is tested against the rest in the same way, and the live one must lie beyond the prediction interval of Student's t
    for one value more, on the log scale: the values of nights with shocks of their own lean to the right even there a
    little, on others (logit, cube root) enough to alarm twice as often as promised. Before that the spread comes from
    clusters.

    An alarm must matter, too: as much as a normal column whose mean moves so that its PSI is `config.min_psi`, or a
    pair of columns whose products move by as large a part of their standard deviation.

    Args:
        reference: may be weighted; live: may not.
        rate: share of unchanged nights in which either test may alarm.

    Raises:
        ValueError: the live window is weighted.

    Source: Lopez-Paz and Oquab 2017 (arXiv:1610.06545) for the classifier; Gretton et al. 2012 for the distance.
    """
    if live.weights is not None:
        raise ValueError("only the reference is weighted (to the policy that acted in the live window)")
    problem = _too_little(reference, live, config)
    if problem:
        return _unjudged("classifier", problem), _unjudged("mmd", problem)
    try:
        rows = joint_rows(reference, live, most_rows=MOST_ROWS, seed=config.seed)
    except ValueError as error:
        return _unjudged("classifier", str(error)), _unjudged("mmd", str(error))
    drawn = min(len(np.unique(side.cluster_of_cell)) for side in (rows.reference, rows.live))
    if drawn < _FEWEST_CLUSTERS:
        problem = (
            f"the rows drawn of a window are of {drawn} clusters, and it takes {_FEWEST_CLUSTERS} to tell any apart"
        )
        return _unjudged("classifier", problem), _unjudged("mmd", problem)
    enough_nights = reference.n_nights >= config.min_nights
    windows = _windows(rows.reference, rows.live.n_nights) if enough_nights else []
    if len(windows) < FEWEST_WINDOWS:
        windows = []
    # As many cells in either, or the live window would be less noisy than those it is compared with.
    n_cells = len(rows.live.night_of_cell)
    if windows:
        n_cells = min(n_cells, int(np.median([window.sum() for window in windows])))
    return _classifier(rows, windows, n_cells, config, rate / 2), _discrepancy(rows, windows, n_cells, config, rate / 2)


def _too_little(reference: DriftWindow, live: DriftWindow, config: DriftConfig) -> str:
    wanted = config.min_live_episodes
    if config.seasonality != "none":  # or a weekday would be told from the others
        return f"the joint tests compare nights of all kinds, and seasonality = '{config.seasonality}'"
    for name, window in (("live window", live), ("reference", reference)):
        if window.n_episodes < wanted or not window.n_rows:
            return f"the {name} holds {window.n_episodes} episodes, and it takes {wanted}"
    if reference.effective_episodes < wanted:
        return (
            f"weighted to the acting policy, the reference's {reference.n_episodes} episodes are worth "
            f"{reference.effective_episodes:.1f}, and it takes {wanted}"
        )
    if min(reference.n_clusters, live.n_clusters) < _FEWEST_CLUSTERS:
        fewer = min(reference.n_clusters, live.n_clusters)
        return f"a window holds {fewer} clusters, and it takes {_FEWEST_CLUSTERS} to tell any apart"
    return ""


def _unjudged(method: Any, reason: str) -> JointDrift:
    return JointDrift(method=method, status="not enough data", reason=reason)


def _windows(side: Side, n_nights: int) -> list[NDArray[np.bool_]]:
    """(cells,) which belong to each stretch of so many consecutive nights, the newest night being the last one's."""
    n_windows = side.n_nights // n_nights
    first = side.n_nights - n_windows * n_nights
    stretch = np.where(side.night_of_cell >= first, (side.night_of_cell - first) // n_nights, -1)
    return [stretch == i for i in range(n_windows)]


# --- what the null says of one value more


_Scale = Literal["plain", "log", "cube root"]

_ONTO: dict[_Scale, Callable[[Any], Any]] = {"plain": np.asarray, "log": np.log, "cube root": np.cbrt}
_BACK: dict[_Scale, Callable[[float], float]] = {
    "plain": lambda value: value,
    "log": lambda value: float(np.exp(value)),
    "cube root": lambda value: max(value, 0.0) ** 3,
}


@dataclass(frozen=True)
class _Expected:
    """Of an unchanged window.

    Attributes:
        scale: on which its value is about normal.
        center, spread: of one value more, there.
        freedom: degrees of freedom behind the spread; infinite where it is as good as known.
    """

    scale: _Scale
    center: float
    spread: float
    freedom: float

    def p_value(self, value: float) -> float:
        from scipy.special import stdtr

        return float(stdtr(self.freedom, -(_ONTO[self.scale](value) - self.center) / self.spread))

    def bound(self, rate: float) -> float:
        from scipy.special import stdtrit

        return _BACK[self.scale](self.center + float(stdtrit(self.freedom, 1.0 - rate)) * self.spread)

    @property
    def typical(self) -> float:
        return _BACK[self.scale](self.center)


def _of_values(values: NDArray[np.float64], scale: _Scale, *, freedom: float) -> _Expected:
    """What N values of unchanged windows say of one more."""
    placed = _ONTO[scale](np.maximum(values, _TINY))
    spread = max(float(placed.std(ddof=1)), _TINY) * float(np.sqrt(1.0 + 1.0 / len(placed)))
    return _Expected(scale, float(placed.mean()), spread, freedom)


def _verdict(
    method: Literal["classifier", "mmd"],
    value: float,
    expected: _Expected,
    *,
    matters: float,
    rate: float,
    by_night: bool,
    rows: tuple[int, int],
) -> JointDrift:
    p_value = expected.p_value(max(value, _TINY))
    beyond = p_value <= rate
    threshold = max(expected.bound(rate), matters)
    if method == "classifier" and threshold >= 1.0:  # "stable" would be said of whatever comes
        return _unjudged(method, "the reference's nights differ so much among themselves that nothing could stand out")
    notes = [] if by_night else [_OPTIMISTIC]
    if beyond and value < matters:
        notes.insert(0, f"beyond chance, but below {matters:.3g}, the smallest that matters")
    return JointDrift(
        method=method,
        status="drifted" if beyond and value >= matters else "stable",
        reason="; ".join(notes),
        statistic=value,
        typical=expected.typical,
        threshold=threshold,
        p_value=p_value,
        rows=rows,
    )


# --- the two tests


def _classifier(
    rows: JointRows, windows: Sequence[NDArray[np.bool_]], n_cells: int, config: DriftConfig, rate: float
) -> JointDrift:
    from scipy.special import ndtr

    rows = ranked(rows)
    most_live, most_before = MOST_FITTED
    rng = np.random.default_rng([config.seed, 2])
    live = _thinned(rows.live, _all(rows.live), most_live, n_cells, rng)
    n_cells, n_live = int(live.sum()), int(live[rows.live.cell].sum())
    most_before = min(most_before, max(4 * n_live, 2_000)) if windows else most_before

    def compared(side: Side, now: NDArray[np.bool_], rest: NDArray[np.bool_]) -> Separation:
        before = _thinned(rows.reference, rest, most_before, None, rng)
        return separate(rows.reference, before, side, now, seed=config.seed)

    found = compared(rows.live, live, _all(rows.reference))
    if windows:
        asked = [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, MOST_WINDOWS).astype(int))]
        alone = [_thinned(rows.reference, window, most_live, n_cells, rng) for window in asked]
        areas = [compared(rows.reference, now, ~window).area for now, window in zip(alone, asked, strict=True)]
        expected = _of_values(np.array(areas), "log", freedom=len(areas) - 1.0)
    else:
        expected = _Expected("plain", 0.5, max(found.standard_error, _TINY), found.freedom)
    matters = float(ndtr(np.sqrt(config.min_psi / 2.0)))  # of two normals whose means lie sqrt(min_psi) apart
    record = _verdict(
        "classifier", found.area, expected, matters=matters, rate=rate, by_night=bool(windows), rows=found.rows
    )
    return replace(record, columns=shares_of_columns(found, rows.names, seed=config.seed)) if record.drifted else record


def _discrepancy(
    rows: JointRows, windows: Sequence[NDArray[np.bool_]], n_cells: int, config: DriftConfig, rate: float
) -> JointDrift:
    try:
        embedded = embed(rows, seed=config.seed)
    except ValueError as error:
        return _unjudged("mmd", str(error))
    reference, live = embedded.reference, embedded.live
    rng = np.random.default_rng([config.seed, 3])
    chosen = _thinned(rows.live, _all(rows.live), MOST_ROWS, n_cells, rng)
    value = _squared(live.mean(chosen) - reference.mean())
    if windows:
        distances = []
        for window in windows:
            alone = _thinned(rows.reference, window, MOST_ROWS, n_cells, rng)
            distances.append(_squared(reference.mean(alone) - reference.mean(~window)))
        expected = _of_values(np.array(distances), "log", freedom=len(distances) - 1.0)
    else:
        draws = reference.bootstrapped(rng) - live.bootstrapped(rng)
        expected = _of_values((np.abs(draws) ** 2).mean(axis=1), "cube root", freedom=np.inf)
    n_rows = rows.reference.n_rows, int(chosen[rows.live.cell].sum())
    matters = config.min_psi * embedded.matters
    return _verdict("mmd", value, expected, matters=matters, rate=rate, by_night=bool(windows), rows=n_rows)


def _all(side: Side) -> NDArray[np.bool_]:
    return np.ones(len(side.night_of_cell), dtype=bool)


def _squared(difference: NDArray[np.complex128]) -> float:
    return float((np.abs(difference) ** 2).mean())


def _thinned(
    side: Side, cells: NDArray[np.bool_], most_rows: int, most_cells: int | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(cells,) some of the given cells by chance: at most so many, with at most so many rows, and at least one."""
    chosen = rng.permutation(np.flatnonzero(cells))[:most_cells]
    sizes = np.bincount(side.cell, minlength=len(cells))[chosen]
    kept = np.zeros(len(cells), dtype=bool)
    kept[chosen[np.cumsum(sizes) <= max(most_rows, int(sizes[:1].sum()))]] = True
    return kept
