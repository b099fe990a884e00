"""Averages of 1[A = a] / p: by hand, and the same as the report computes from rows in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from datasets.duck import duck
from datasets.propensities import InverseAverage, inverse_averages
from reports.evaluate_config import PropensityConfig
from reports.propensity import check_propensities
from tests.datasets.builders import tiny

NAMES = ("down", "hold", "up")


def averages(rows: list[dict[str, Any]], contract: Contract | None = None) -> dict[str, InverseAverage] | None:
    """The averages of rows given as episode, action, p and mask."""
    table = pa.table(
        {
            "episode_id": pa.array([r["c"] for r in rows], pa.string()),
            "cluster": pa.array([r["c"] for r in rows], pa.string()),
            "action": pa.array([r["a"] for r in rows], pa.string()),
            "behavior_prob": pa.array([r["p"] for r in rows], pa.float64()),
            "available_actions": pa.array([r.get("m") for r in rows], pa.list_(pa.string())),
        }
    )
    with duck() as connection:
        connection.register("steps", table)
        found = inverse_averages(connection, "steps", contract or tiny())
    return None if found is None else {average.action: average for average in found}


def row(c: str, a: str, p: float | None, m: list[str] | None = None) -> dict[str, Any]:
    return {"c": c, "a": a, "p": p, "m": m}


def test_two_clusters_by_hand() -> None:
    # Terms of 'up': cluster x has 2, 0; cluster y has 4, 0. Mean 6 / 4 = 1.5; cluster sums minus 1.5 * 2 are -1 and 1:
    # error = sqrt(2 / 1 * (1 + 1)) / 4 = 0.5. Two taken rows worth (2 + 4)^2 / (4 + 16) = 1.8 equal ones.
    found = averages([row("x", "up", 0.5), row("x", "hold", 0.5), row("y", "up", 0.25), row("y", "hold", 0.75)])
    assert found is not None
    up = found["up"]
    assert (up.n_available, up.n_taken, up.n_clusters) == (4, 2, 2)
    assert (up.average, up.error, up.n_effective, up.rarest) == pytest.approx((1.5, 0.5, 1.8, 1.5))
    assert found["down"] == InverseAverage("down", 4, 0, 2, 0.0, None, None)


def test_unavailable_rows_do_not_count() -> None:
    both = ["hold", "up"]
    rows = [
        row("x", "up", 0.5, both),
        row("x", "hold", 1.0, ["hold"]),
        row("y", "hold", 0.5, both),
        row("y", "up", 0.5),
    ]
    found = averages(rows)
    assert found is not None
    assert {name: average.n_available for name, average in found.items()} == {"down": 1, "hold": 4, "up": 3}
    assert (found["up"].average, found["hold"].average) == pytest.approx((4 / 3, 3 / 4))


def test_a_deterministic_log_and_one_without_a_choice_say_nothing() -> None:
    assert averages([row("x", "up", 1.0), row("y", "hold", 1.0)]) is None
    assert averages([row("x", "up", 0.5, ["up"])]) is None
    assert averages([row("x", "up", None)]) is None
    assert averages([]) is None


def test_tiny_probability_is_a_number_of_little_weight() -> None:
    found = averages([row("x", "up", 1e-300), row("y", "up", 0.5), row("z", "hold", 0.5)])
    assert found is not None
    assert found["up"].n_effective == pytest.approx(1.0)
    assert np.isfinite(found["up"].error or np.nan)


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from(NAMES),
        st.floats(0.01, 1.0),
        st.one_of(st.none(), st.sets(st.sampled_from(NAMES), min_size=1)),
    ),
    min_size=12,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_it_is_the_average_of_the_report(drawn: list[Any], one_step: bool) -> None:
    rows = [row(c, a, p, sorted({a, *m}) if m is not None else None) for c, a, p, m in drawn]
    found = averages(rows, tiny(episodes={"kind": "one_step"}) if one_step else None)
    if found is None:
        return
    report = check_propensities(
        np.array([r["p"] for r in rows]),
        np.array([NAMES.index(r["a"]) for r in rows]),
        np.array([[r["m"] is None or name in r["m"] for name in NAMES] for r in rows]),
        np.arange(len(rows)) if one_step else np.array([r["c"] for r in rows]),
        NAMES,
        kind="logged",
        config=PropensityConfig(fewest_taken=2),
    )
    for action in report.actions:
        ours = found[action.action]
        assert (ours.n_available, ours.n_taken) == (action.n_available, action.n_taken)
        if action.average is not None:
            assert ours.average == pytest.approx(action.average)
        interval = ours.interval(1 - 0.01 / 3)
        if action.interval is not None and interval is not None:
            assert interval == pytest.approx((action.interval.low, action.interval.high), rel=1e-5)
