from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from drift.config import DriftConfig
from drift.counting import Block
from drift.row_comparison import NO_VERDICT, RowComparison, Rows, compare_rows
from drift.row_verdicts import judged_as_independent
from drift.windows import DriftColumn, DriftDataError, scalar_columns

FLOOR, MIN_PSI = DriftConfig().floor, DriftConfig().min_psi
REFERENCE, LIVE = (16, 18, 16, 14, 12, 12), (16, 16, 16, 16, 16, 8)


def side(**columns: DriftColumn) -> Rows:
    def blocks(leave_out: frozenset[str]) -> Iterable[Block]:
        yield Block({name: column for name, column in columns.items() if name not in leave_out})

    return blocks


def compared(before: DriftColumn, now: DriftColumn, *, n_bins: int = 10) -> RowComparison:
    return compare_rows(side(x=before), side(x=now), n_bins=n_bins, floor=FLOOR)


def numeric(values: object) -> DriftColumn:
    return DriftColumn("numeric", np.asarray(values, dtype=np.float64))


def psi(reference: NDArray[np.float64], live: NDArray[np.float64]) -> float:
    found = compared(numeric(reference), numeric(live)).columns[0].psi
    assert found is not None
    return found


def test_golden_counts_as_labels() -> None:
    # Six labels with counts of 88 each. KL(live || reference) = .0183087046, the reverse .0189096770 (sums over the
    # bins of p ln(p / q)); the empty slots of unseen and missing labels, raised to the floor, move the fourth digit.
    labels = tuple("abcdef")
    before, now = (DriftColumn("categorical", np.repeat(np.arange(6), counts), labels) for counts in (REFERENCE, LIVE))
    (column,) = compared(before, now, n_bins=6).columns
    assert column.kl == pytest.approx(0.0183087046, rel=5e-4)
    assert column.kl_reverse == pytest.approx(0.0189096770, rel=5e-4)
    assert column.psi == pytest.approx(0.0372183816, rel=5e-4)
    assert column.psi == pytest.approx((column.kl or 0.0) + (column.kl_reverse or 0.0), abs=1e-15)


def test_half_a_standard_deviation_is_a_psi_of_about_a_quarter() -> None:
    rng = np.random.default_rng(0)
    reference, live = rng.standard_normal(200_000), rng.standard_normal(200_000) + 0.5
    found = compared(numeric(reference), numeric(live))
    column = found.columns[0]
    assert 0.23 <= (column.psi or 0.0) <= 0.25
    assert found.reference_sample < found.reference_rows  # a sample, of which Wasserstein is within a few percent
    assert column.wasserstein == pytest.approx(0.5, abs=0.03)
    assert sum(column.reference_probs) == pytest.approx(1.0)


_COLUMNS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "half of it zero": lambda rng, n: np.maximum(rng.standard_normal(n), 0.0),
    "rounded to few values": lambda rng, n: rng.standard_normal(n).round(0),
    "two values": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "constant": lambda _, n: np.full(n, 5.0),
    "heavy tail": lambda rng, n: rng.standard_cauchy(n),
    "some missing": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.exponential(size=n)),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(_COLUMNS)),
    st.floats(-1.0, 1.0),
    st.sampled_from([500.0, -500.0, 1e300, -1e300, 1.7976931348623157e308, 5e-324]) | st.floats(-1e18, 1e18),
    st.integers(0, 2**32 - 1),
)
def test_one_outlier_of_10_000_rows_changes_psi_by_at_most_a_percent(
    column: str, shift: float, outlier: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    reference, live = _COLUMNS[column](rng, 10_000), _COLUMNS[column](rng, 10_000) + shift
    spoiled = live.copy()
    spoiled[rng.integers(10_000)] = outlier
    before, after = psi(reference, live), psi(reference, spoiled)
    # Of itself; below the smallest PSI that matters, of that: a PSI of nothing but noise has no percent.
    assert abs(after - before) <= 0.01 * max(before, MIN_PSI)


def test_an_outlier_in_a_vector_leaves_its_norm_finite() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((1_000, 3))
    spoiled = vectors.copy()
    spoiled[7] = 1e300
    before, now = (scalar_columns("v", DriftColumn("vector", values)) for values in (vectors, spoiled))
    found = compare_rows(side(**before), side(**now), n_bins=10, floor=FLOOR)
    assert [column.name for column in found.columns] == ["v.norm", "v[0]", "v[1]", "v[2]"]
    assert all(np.isfinite(column.psi or 0.0) and np.isfinite(column.wasserstein or 0.0) for column in found.columns)


def test_without_independence_nothing_is_judged() -> None:
    (column,) = compared(numeric(np.arange(100.0)), numeric(np.arange(100.0) + 50)).columns
    assert (column.status, column.reason, column.threshold) == ("not enough data", NO_VERDICT, None)


def test_the_threshold_is_the_chi_square_quantile_over_both_sizes() -> None:
    rng = np.random.default_rng(2)
    before, now = numeric(rng.standard_normal(2_000)), numeric(rng.standard_normal(500) + 0.4)
    found = judged_as_independent(compared(before, now), rate=0.01, min_psi=MIN_PSI)
    # Ten bins; the slot of missing values is empty on both sides and has no say.
    assert found.columns[0].threshold == pytest.approx((1 / 2_000 + 1 / 500) * stats.chi2.isf(0.01, 9))
    assert found.columns[0].status == "drifted"
    small = judged_as_independent(compared(before, now), rate=0.01, min_psi=0.9).columns[0]
    assert (small.status, small.reason) == ("stable", "beyond chance, but PSI is below 0.9")


def test_of_equal_populations_about_the_promised_share_drifts() -> None:
    # Four columns, ties, a rare label and missing values among them; 300 pairs at 10 % and sizes of 400 and 250.
    rng = np.random.default_rng(3)

    def drawn(n: int) -> Rows:
        return side(
            queue=numeric(np.maximum(rng.standard_normal(n), 0.0)),
            few=numeric(rng.choice([0.0, 1.0, 2.0, 50.0], n, p=[0.9, 0.08, 0.015, 0.005])),
            zone=DriftColumn("categorical", rng.choice(4, n, p=[0.6, 0.3, 0.09, 0.01]), tuple("abcd")),
            late=numeric(np.where(rng.random(n) < 0.01, np.nan, rng.exponential(size=n))),
        )

    alarms = 0
    for _ in range(300):
        found = compare_rows(drawn(400), drawn(250), n_bins=8, floor=FLOOR)
        alarms += bool(judged_as_independent(found, rate=0.1, min_psi=0.0).drifted)
    assert 12 <= alarms <= 48  # 30 expected, standard deviation 5.2


def test_bins_with_few_rows_do_not_alarm_by_themselves() -> None:
    # Three rows in a bin that the reference leaves empty are a PSI of .16, and no sign of anything.
    before = DriftColumn("categorical", np.repeat([0, 1], 50), ("a", "b", "new"))
    now = DriftColumn("categorical", np.concatenate([np.repeat([0, 1], [49, 48]), [2, 2, 2]]), ("a", "b", "new"))
    (column,) = judged_as_independent(compared(before, now), rate=0.05, min_psi=MIN_PSI).columns
    assert (column.psi or 0.0) > 0.1
    assert column.status == "stable"


def test_identifiers_are_not_compared() -> None:
    ids = DriftColumn("categorical", np.arange(2_000), tuple(map(str, range(2_000))))
    reference, live = side(id=ids, x=numeric(np.arange(2_000.0))), side(x=numeric(np.arange(50.0)))
    found = compare_rows(reference, live, n_bins=10, floor=FLOOR)
    assert [column.psi is None for column in found.columns] == [True, False]
    assert "no label holds more than 0.1 % of the reference" in found.columns[0].reason


def test_a_column_that_is_all_missing_says_so_and_moves() -> None:
    nothing, something = numeric(np.full(50, np.nan)), numeric(np.arange(50.0))
    appeared = compared(nothing, something).columns[0]
    assert appeared.reason == "all missing on the reference"
    assert appeared.psi is not None
    assert appeared.psi > 10
    assert compared(something, nothing).columns[0].reason == "all missing on the live side"
    both = judged_as_independent(compared(nothing, nothing), rate=0.01, min_psi=MIN_PSI).columns[0]
    assert (both.psi, both.status) == (0.0, "not enough data")
    assert both.reason == "all missing on the reference and the live side"


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ([], [1.0] * 20, "The reference is empty"),
        ([1.0] * 20, [], "The live side is empty"),
        ([1.0] * 20, [1.0] * 9, "The live side holds 9 rows for 10 bins; take more rows or fewer bins"),
        ([np.inf, -np.inf] * 10, [1.0] * 20, "x: 20 of 20 rows of the reference"),
        ([1.0] * 20, [np.inf] + [1.0] * 19, "x: 1 of 20 rows of the live side"),
    ],
)
def test_what_cannot_be_compared_is_refused(before: list[float], now: list[float], message: str) -> None:
    with pytest.raises(DriftDataError, match=message):
        compared(numeric(before), numeric(now))
