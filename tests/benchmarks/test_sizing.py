"""The law by which docs/sizing.md speaks of nights that were not run."""

from __future__ import annotations

import pytest

from tests.benchmarks.sizing import law_of


def test_a_stage_that_keeps_the_law_is_told_exactly() -> None:
    law = law_of({n: 3.0 + 7.0 * n / 1e6 for n in (30_000, 100_000, 300_000, 1_000_000)})
    assert (law.fixed, law.per_million) == (pytest.approx(3.0), pytest.approx(7.0))
    assert law.at(100_000_000) == pytest.approx(703.0)


def test_what_ends_at_a_limit_is_not_drawn_on_beyond_it() -> None:
    # 30 s for each 100 k steps up to 100 k, none from there on.
    law = law_of({30_000: 9.0, 100_000: 30.0, 300_000: 30.0, 1_000_000: 30.0})
    assert law.at(10_000_000) == pytest.approx(30.0)


def test_neither_part_is_negative() -> None:
    law = law_of({100_000: 2.0, 300_000: 1.9, 1_000_000: 1.8})
    assert (law.fixed > 1.8, law.per_million) == (True, 0.0)
