"""The files that `make bench` and `make calibrate` write, on sizes too small to say anything about speed or error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import calibrate, gate_cells
from tests.benchmarks.calibration_rows import drift_rows, gate_rows, promises_in_words, upper_limit
from tests.benchmarks.drift_cells import DriftCell
from tests.benchmarks.gate_cells import GateCell
from tests.benchmarks.rows import bench_row, benchmark_table, write_benchmarks
from tests.benchmarks.statistics_work import drift_rows as drift_benchmark
from tests.benchmarks.statistics_work import estimator_rows

BENCH_KEYS = {"work", "ours", "peer", "peer_version", "unit", "ratio", "goal", "met", "machine"}
CALIBRATION_KEYS = {"work", "world", "method", "kind", "level", "observed", "upper", "n", "met"}


def test_benchmark_file_has_a_row_per_measurement_and_all_keys(tmp_path: Path) -> None:
    rows = [*drift_benchmark(n_rows=2_000, n_features=2), *estimator_rows(n_episodes=50, horizon=4, n_replicates=80)]
    write_benchmarks(tmp_path / "docs" / "benchmarks.json", rows)
    written = json.loads((tmp_path / "docs" / "benchmarks.json").read_text())
    assert [row["work"].split()[0].rstrip(":") for row in written] == ["estimators", "estimators", "drift"]
    assert all(set(row) == BENCH_KEYS for row in written)
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.02) for row in written)
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


def test_upper_limit_is_exact_for_no_errors() -> None:
    # 0 in n: (1 - p)^n = .05.
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_limit(3, 3) == 1.0


def outcome(**changes: object) -> dict[str, object]:
    usual = {"passed": False, "refused": False, "covered": True, "bound_passes": False, "model_passes": True}
    return usual | changes


def test_false_passes_are_stated_over_all_logs_and_over_those_not_refused() -> None:
    cell = GateCell(world="any", candidate="equal", n_episodes=10)
    outcomes = [outcome()] * 90 + [outcome(passed=True)] * 10 + [outcome(refused=True, covered=None)] * 900
    every, unrefused = (row for row in gate_rows(cell, outcomes) if row.kind == "promise")
    assert (every.observed, every.n, every.met) == (0.01, 1000, True)
    assert (unrefused.observed, unrefused.n, unrefused.met) == (0.1, 100, False)
    assert "1 promises are held, 1 are not: 1 of these err more often" in promises_in_words([every, unrefused])


def test_too_few_logs_are_told_from_a_broken_promise() -> None:
    cell = GateCell(world="any", candidate="equal", n_episodes=10)
    rows = gate_rows(cell, [outcome()] * 20)
    assert promises_in_words(rows).endswith("0 of these err more often than stated, 2 need more logs.")


def test_equal_candidate_is_worth_as_much_and_differs_in_every_state() -> None:
    for cell in gate_cells.CELLS:
        world, behavior, candidate, _ = gate_cells._policies(cell)
        if cell.candidate == "equal":
            assert world.value(candidate) == pytest.approx(world.value(behavior), abs=1e-9)
            assert abs(candidate - behavior).min() > 0.01


def test_drift_rows_tell_false_alarms_from_power() -> None:
    alarms = [{"alarmed": True}] * 9 + [{"alarmed": False}]
    null, shifted = DriftCell(world="any", reference_nights=7), DriftCell(world="any", reference_nights=7, shift=1.0)
    assert [(row.kind, row.met) for row in drift_rows(null, alarms)] == [("promise", False)]
    assert [(row.kind, row.met) for row in drift_rows(shifted, alarms)] == [("comparison", True)]


def test_calibration_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    judge = GateCell.__call__

    def counted(self: GateCell, seed: int) -> dict[str, object]:
        judged.append(seed)
        return judge(self, seed)

    monkeypatch.setattr(GateCell, "__call__", counted)
    cell = calibrate.Cell("gate", 0, GateCell(world="tiny", candidate="equal", n_episodes=120, one_step=True))
    calibrate.calibrate([cell], 2, tmp_path, n_workers=1)
    kept = next(tmp_path.glob("*.jsonl"))
    kept.write_text(kept.read_text() + '{"seed": 2, "pas')  # killed while it wrote
    rows = calibrate.calibrate([cell], 3, tmp_path, n_workers=1)
    assert judged == [0, 1, 2]
    assert {row.n for row in rows if row.work.endswith("over all logs")} == {3}
    assert all(set(vars(row)) == CALIBRATION_KEYS for row in rows)
    assert (tmp_path / ".gitignore").read_text() == "*\n"
