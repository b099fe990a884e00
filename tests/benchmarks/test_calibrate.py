"""The harness of `make calibrate`, and a slice of it that grossly wrong bounds would fail."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.engine_config import EngineConfig
from reports.calibration_line import CalibratedWorld
from tests.benchmarks import calibrate, gate_cells, gate_release, learned_cells
from tests.benchmarks.calibrated_code import ROOT, code_behind
from tests.benchmarks.calibration_files import calibrated_worlds, calibration_page, write_calibration
from tests.benchmarks.calibration_rows import CalibrationRow, drift_rows, gate_rows, promises_in_words, upper_limit
from tests.benchmarks.drift_cells import DriftCell
from tests.benchmarks.gate_release import GateCell
from tests.benchmarks.gate_worlds import Conditions, draw_log, gate_world, shifted
from tests.benchmarks.tables import soft_around
from tests.drift.worlds import Change

KEYS = {"work", "world", "method", "kind", "level", "observed", "upper", "n", "met"}
TINY = GateCell(
    table="one step", conditions=Conditions(horizon=1, n_episodes=120, noise=0.5), logger=1.0, direction="equal",
    shift=0.5,
)  # fmt: skip


def test_upper_limit_is_exact_for_no_errors() -> None:
    # 0 in n: (1 - p)^n = .05.
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_limit(3, 3) == 1.0


def outcome(**changes: object) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "passed": False, "refused_by": [], "gain": 0.0, "margin": 0.0, "deciding": "dr", "difference": 0.1,
        "interval": (-0.2, 0.4), "bound": -0.1, "level": 0.95, "mean_length": 1.0, "overlap": 0.5,
        "estimates": {"is": {"error": 0.2, "covers": True}}, "other_bounds": {"direct - on_policy": 0.1},
    }  # fmt: skip
    return usual | changes


def test_false_passes_are_stated_over_all_logs_and_over_those_not_refused() -> None:
    refused = outcome(refused_by=["agreement of estimators"], interval=None, difference=None)
    outcomes = [outcome()] * 90 + [outcome(passed=True)] * 10 + [refused] * 900
    every, unrefused = (row for row in gate_rows(TINY, outcomes) if row.kind == "promise")
    assert (every.observed, every.n, every.met) == (0.01, 1000, True)
    assert (every.refused, every.refused_by) == (0.9, {"agreement of estimators": 0.9})
    assert (unrefused.observed, unrefused.n, unrefused.met) == (0.1, 100, False)
    assert "1 promises are held, 1 are not: 1 of these err more often" in promises_in_words([every, unrefused])


def test_too_few_logs_are_told_from_a_broken_promise() -> None:
    rows = gate_rows(TINY, [outcome()] * 20)
    assert promises_in_words(rows).endswith("0 of these err more often than stated, 2 need more logs.")


def test_a_limit_promises_nothing() -> None:
    rows = gate_rows(replace(TINY, limit=True), [outcome(passed=True)] * 20)
    assert {row.kind for row in rows} == {"comparison"}
    assert not rows[0].met


def test_better_candidates_ask_for_power_and_worse_ones_count_as_false_passes() -> None:
    better = [outcome(passed=True, gain=0.5)] * 7 + [outcome(gain=0.5)] * 3
    rows = {row.work: row for row in gate_rows(TINY, [*better, *[outcome(gain=-0.5, passed=True)] * 2])}
    assert rows["power: a better candidate passes"].observed == 0.7
    assert not rows["power: a better candidate passes"].met
    assert rows["false pass, over all logs that are worse"].observed == 1.0


def test_estimators_are_stated_with_bias_error_and_both_coverages() -> None:
    first = outcome(estimates={"is": {"error": 0.2, "covers": True}})
    second = outcome(estimates={"is": {"error": -0.4, "covers": False}}, level=0.9)
    row = next(row for row in gate_rows(TINY, [first, second]) if row.method == "is")
    assert row.bias == -0.1
    assert row.rmse == pytest.approx(np.sqrt(0.1), abs=1e-4)
    assert (row.coverage_90, row.coverage_95, row.n) == (0.0, 1.0, 1)


def test_drift_rows_tell_false_alarms_from_power() -> None:
    alarms = [{"alarmed": True}] * 9 + [{"alarmed": False}]
    null = DriftCell(world="any", reference_nights=7)
    shifted_night = DriftCell(world="a", reference_nights=7, change=Change(shift=1))
    assert [(row.kind, row.met) for row in drift_rows(null, alarms)] == [("promise", False)]
    assert [(row.kind, row.met) for row in drift_rows(shifted_night, alarms)] == [("comparison", True)]


def test_equal_candidates_are_worth_as_much_and_differ() -> None:
    for cell in gate_cells.CELLS:
        if cell.direction == "equal":
            release = gate_release.release_of(cell)
            value = release.world.table.value(release.candidate, cell.conditions.horizon)
            assert value == pytest.approx(release.log_value, abs=1e-9), cell.world
            assert abs(release.candidate - release.logger).max() > 0.05, cell.world


@pytest.mark.parametrize("name", ["5 steps", "CliffWalking", "hidden", "endless"])
def test_mean_return_of_many_episodes_is_the_exact_value(name: str) -> None:
    world, horizon = gate_world(name), 30
    logger = soft_around(world.best_policy(), world.table.available, 0.5)
    conditions = Conditions(
        horizon=horizon, n_episodes=20_000, n_others=0.0, noise=0.3, shock=0.2, cluster_size=2, disaster=5.0
    )
    for policy in (logger, shifted(world, logger, "worse", 0.3, conditions)):
        log = draw_log(world, policy, conditions, np.random.default_rng(3))
        discounted = world.table.gamma**log.step_in_episode * log.rewards
        returns = np.add.reduceat(discounted, log.offsets[:-1])
        error = returns.std() / np.sqrt(len(returns) / 2)
        assert returns.mean() == pytest.approx(world.table.value(policy, horizon), abs=4 * error)


def test_a_finite_horizon_counts_its_steps_only() -> None:
    table = gate_world("5 steps").table
    policy = soft_around(table.best_policy(), table.available, 0.5)
    assert table.value(policy, 1) == pytest.approx(float(table.start @ (policy * table.mean_reward).sum(axis=1)))
    assert table.value(policy, 500) == pytest.approx(table.value(policy))


def test_calibration_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    judge = GateCell.__call__

    def counted(self: GateCell, seed: int) -> dict[str, Any]:
        judged.append(seed)
        return judge(self, seed)

    monkeypatch.setattr(GateCell, "__call__", counted)
    cell = calibrate.Cell("gate", 0, TINY)
    calibrate.calibrate([cell], 2, tmp_path, n_workers=1)
    kept = next(tmp_path.glob("*.jsonl"))
    kept.write_text(kept.read_text() + '{"seed": 2, "pas')  # killed while it wrote
    rows = calibrate.calibrate([cell], 3, tmp_path, n_workers=1)
    assert judged == [0, 1, 2]
    assert {row.n for row in rows if row.work.endswith("over all logs")} == {3}
    assert all(set(vars(row)) > KEYS for row in rows)
    assert json.loads(kept.read_text().splitlines()[2])["seed"] == 2
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_an_engine_judges_the_same_logs_to_the_same_rows(tmp_path: Path) -> None:
    cell = calibrate.Cell("gate", 0, TINY)
    alone = calibrate.calibrate([cell], 3, tmp_path / "alone", n_workers=1)
    spread = calibrate.calibrate([cell], 3, tmp_path / "spread", engine=EngineConfig(kind="threads", workers=2))
    assert spread == alone
    kept = [next((tmp_path / where).glob("*.jsonl")).read_text() for where in ("alone", "spread")]
    assert kept[0] == kept[1]


def test_cells_are_found_by_their_title() -> None:
    found = calibrate.cells("gate", "taxi")
    assert 0 < len(found) < len(gate_cells.CELLS)
    assert all("Taxi" in cell.title for cell in found)


def test_what_a_verdict_rests_on_is_found_and_what_only_shows_it_is_not() -> None:
    behind = {path.stem for path in code_behind("tests.benchmarks.gate_release")}
    assert {"assessment", "crossfit", "estimators", "gate", "intervals", "trial", "fqe", "gate_worlds"} <= behind
    assert not behind & {"render", "charts", "pictures", "glossary", "calibration_line", "gate_cells", "learner"}
    assert "detection" in {path.stem for path in code_behind("tests.benchmarks.drift_cells")}


def test_files_hold_every_row_what_reports_quote_and_a_page(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    hostile = replace(TINY, note="<script>")
    rows = gate_rows(hostile, [outcome(passed=True)] * 2 + [outcome()] * 98)
    rows += gate_rows(replace(hostile, direction="better"), [outcome(passed=True, gain=0.5)] * 9 + [outcome(gain=0.5)])
    rows += drift_rows(DriftCell(world="any", reference_nights=7), [{"alarmed": False}] * 9)
    write_calibration(tmp_path, rows)
    written = json.loads((tmp_path / "docs" / "calibration.json").read_text())
    assert len(written) == len(rows)
    assert all(set(row) >= KEYS for row in written)
    (world,) = [CalibratedWorld(**row) for row in json.loads((tmp_path / "reports" / "calibration.json").read_text())]
    assert (world.false_pass, world.n_logs, world.power, world.estimator) == (0.02, 100, 0.9, "dr")
    page = (tmp_path / "docs" / "calibration.md").read_text()
    assert "| equal: up to 50% moved, half of the states for the better | 0 | false pass | 5% | 2.0% " in page
    for name in ("calibration-false-passes.svg", "calibration-power.svg"):
        picture = (tmp_path / "docs" / name).read_text()
        assert name in page
        assert "<script>" not in picture
        assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_a_part_is_added_where_it_belongs_and_the_rows_of_other_cells_stay(tmp_path: Path) -> None:
    first, second, new = (DriftCell(world=world, reference_nights=7) for world in ("first", "second", "new"))
    for folder in ("docs", "reports"):
        (tmp_path / folder).mkdir()
    rows = [*drift_rows(first, [{"alarmed": False}] * 9), *drift_rows(second, [{"alarmed": False}] * 9)]
    write_calibration(tmp_path, rows)
    part = [*drift_rows(new, [{"alarmed": True}]), *drift_rows(second, [{"alarmed": True}] * 3)]
    assert calibrate.with_others(part, tmp_path, ["first", "new", "second"]) == [rows[0], *part]


def test_what_is_committed_is_of_one_run() -> None:
    """The page and what reports quote, against the rows they were made of."""
    rows = [CalibrationRow(**row) for row in json.loads((ROOT / "docs" / "calibration.json").read_text())]
    assert (ROOT / "docs" / "calibration.md").read_text() == calibration_page(rows)
    assert [asdict(world) for world in calibrated_worlds(rows)] == json.loads(
        (ROOT / "reports" / "calibration.json").read_text()
    )


@pytest.fixture(scope="module")
def slice_of_logs() -> list[dict[str, Any]]:
    """Forty logs of one step with a candidate that is worth exactly as much as the log."""
    cell = replace(TINY, conditions=replace(TINY.conditions, n_episodes=300))
    return [cell(seed) for seed in range(40)]


def test_a_slice_of_the_calibration_has_no_gross_violation(slice_of_logs: list[dict[str, Any]]) -> None:
    # At a true rate of .05 more than 6 of 40 are seen with probability .003.
    assert sum(o["passed"] for o in slice_of_logs) <= 6
    assert sum(o["bound"] > 0 for o in slice_of_logs if o["bound"] is not None) <= 6
    # A gate that trusted the estimate itself would fail that by far.
    assert sum(o["difference"] > 0 for o in slice_of_logs if o["difference"] is not None) > 12
    refused = [o for o in slice_of_logs if o["refused_by"]]
    assert len(refused) < 20, [o["refused_by"] for o in refused]


def test_a_slice_of_the_calibration_has_power() -> None:
    cell = next(c for c in gate_cells.CELLS if c.table == "CliffWalking" and c.power)
    assert sum(cell(seed)["passed"] for seed in range(4)) >= 3


def test_a_learned_candidate_is_judged_by_its_own_true_value() -> None:
    cell = replace(learned_cells.CELLS[0], conditions=replace(learned_cells.CELLS[0].conditions, n_episodes=120))
    found = [cell(seed) for seed in range(3)]
    # The logger explores as much as the candidate around the best policy: nothing can be better.
    assert all(o["gain"] <= 1e-12 for o in found)
    assert not any(o["passed"] for o in found)
