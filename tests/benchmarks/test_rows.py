"""The file that `make bench` writes, on sizes too small to say anything about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.drift_work import many_rows
from tests.benchmarks.rows import bench_row, benchmark_table, write_benchmarks
from tests.benchmarks.statistics_work import estimator_rows

BENCH_KEYS = {"work", "ours", "peer", "peer_version", "unit", "ratio", "goal", "met", "machine"}


def test_benchmark_file_has_a_row_per_measurement_and_all_keys(tmp_path: Path) -> None:
    rows = [*many_rows(tmp_path, 2_000), *estimator_rows(n_episodes=50, horizon=4, n_replicates=80)]
    write_benchmarks(tmp_path / "docs" / "benchmarks.json", rows)
    written = json.loads((tmp_path / "docs" / "benchmarks.json").read_text())
    assert [row["work"].split()[0].rstrip(":") for row in written] == ["estimators", "estimators", "drift", "drift"]
    assert all(set(row) == BENCH_KEYS for row in written)
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.02) for row in written if row["peer"])
    assert [row["met"] for row in written] == [None, None, True, None]  # of four, only the peak memory has a goal
    assert "ours / peer" in benchmark_table(rows).splitlines()[0]


def test_a_group_measured_alone_replaces_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    write_benchmarks(
        path, [bench_row("idle night", 9.0, None, "", "s", largest=20), bench_row("query", 2, 1, "p", "s")]
    )
    write_benchmarks(path, [bench_row("idle night", 30.0, None, "", "s", largest=20)])
    assert [(row["work"], row["ours"]) for row in json.loads(path.read_text())] == [
        ("query", 2.0),
        ("idle night", 30.0),
    ]


def test_goals_are_met_or_missed_by_ratio_or_by_value() -> None:
    assert bench_row("query", 1.05, 1.0, "p", "s", largest_ratio=1.1).met is True
    assert bench_row("query", 1.2, 1.0, "p", "s", largest_ratio=1.1).met is False
    assert bench_row("idle night", 21.0, None, "", "s", largest=20).met is False
    without_goal = bench_row("drift", 1.0, 2.0, "p", "s")
    assert (without_goal.goal, without_goal.met) == (None, None)


def test_unknown_work_is_refused() -> None:
    with pytest.raises(ValueError, match="work begins with one of ingest, suite"):
        bench_row("speed", 1.0, None, "", "s")
