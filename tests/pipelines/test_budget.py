"""A training stops before its budget is exceeded, keeps what it learned, and says how to go on."""

from __future__ import annotations

import json
import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipelines.metrics import budget as budget_module
from pipelines.metrics import usage
from pipelines.metrics.budget import BudgetSpentError, TrainingBudget
from pipelines.metrics.config import CostConfig
from pipelines.metrics.usage import Meter, Usage, UsageLog
from pipelines.nights import read_nights
from pipelines.running import run_night
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run

HOUR = 3600.0


class Counting(Meter):
    """A meter whose CPU seconds are set by the test."""

    def __init__(self, cpu_s: float = 0.0) -> None:
        super().__init__()
        self.cpu_s = cpu_s

    def read(self) -> Usage:
        return Usage(wall_s=self.cpu_s, cpu_s=self.cpu_s, peak_bytes=0, read_bytes=0, written_bytes=0)


@pytest.fixture(autouse=True)
def always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_LOOK_EVERY_S", 0.0)


def budget_of(folder: Path, meter: Meter, *, seed: int = 0, **config: Any) -> TrainingBudget:
    prices = CostConfig(cpu_hour=HOUR, **config)  # one CPU second costs 1
    (folder / "snapshot").mkdir(exist_ok=True)
    return TrainingBudget(
        prices,
        UsageLog(folder),
        folder=folder / "snapshot",
        settings={"seed": seed},
        n_updates=100,
        meter=meter,
    )


def write_line(folder: Path, stage: str, cpu_s: float, **changes: Any) -> None:
    """A stage of this month in the log, as if it had taken so many CPU seconds."""
    log = UsageLog(folder)
    with log.stage(stage, lambda: "2024-05-01"):
        pass
    path = sorted(folder.glob("usage-*.jsonl"))[-1]
    *before, last = path.read_text().splitlines()
    line = {**json.loads(last), "cpu_s": cpu_s, "wall_s": cpu_s, "peak_bytes": 0, "read_bytes": 0, "written_bytes": 0}
    path.write_text("".join(f"{text}\n" for text in (*before, json.dumps({**line, **changes}))))


def spend(budget: TrainingBudget, meter: Counting, *, per_update: float) -> int:
    """Updates until the budget says no."""
    for step in range(100):
        budget.may_update(step)
        meter.cpu_s += per_update
    return 100


def test_training_ends_below_its_budget_and_near_it(tmp_path: Path) -> None:
    meter = Counting()
    budget = budget_of(tmp_path, meter, training_budget=20.0)

    with pytest.raises(BudgetSpentError) as error:
        spend(budget, meter, per_update=1.0)

    assert 17 <= meter.cpu_s <= 20
    assert f"stopped after {budget._step} of 100 updates before it exceeded [cost] training_budget = 20 EUR" in str(
        error.value
    )
    assert "offline-dqn train" in str(error.value)


def test_without_a_budget_nothing_is_looked_at(tmp_path: Path) -> None:
    meter = Counting()

    assert spend(budget_of(tmp_path, meter), meter, per_update=1e9) == 100
    assert not (tmp_path / "snapshot" / "spent.json").exists()


def test_what_choosing_took_the_last_time_is_kept_back(tmp_path: Path) -> None:
    write_line(tmp_path, "choose", 8.0)
    meter = Counting()

    with pytest.raises(BudgetSpentError, match=r"8 EUR of it kept back for choosing"):
        spend(budget_of(tmp_path, meter, training_budget=20.0), meter, per_update=1.0)

    assert 9 <= meter.cpu_s <= 12


def test_an_overrun_that_the_last_training_tells_of_is_refused_before_it_begins(tmp_path: Path) -> None:
    first = {"wall_s": 2.0, "cpu_s": 2.0, "peak_bytes": 0, "read_bytes": 0, "written_bytes": 0}
    write_line(tmp_path, "train", 12.0, n_updates=50, first=first)  # 2 to begin with, and 0.2 for each update
    write_line(tmp_path, "choose", 3.0)

    budget_of(tmp_path, Counting(), training_budget=25.0).check_projection()  # 2 + 100 * 0.2 + 3
    with pytest.raises(
        BudgetSpentError, match=r"not begun: 100 updates .* would cost about 25 EUR, .* 24.9 EUR is left"
    ):
        budget_of(tmp_path, Counting(), training_budget=24.9).check_projection()


def test_a_training_that_goes_on_counts_what_its_earlier_attempts_cost(tmp_path: Path) -> None:
    meter = Counting()
    with pytest.raises(BudgetSpentError):
        spend(budget_of(tmp_path, meter, training_budget=20.0), meter, per_update=1.0)
    spent = meter.cpu_s

    again = Counting()
    with pytest.raises(BudgetSpentError):
        spend(budget_of(tmp_path, again, training_budget=20.0), again, per_update=0.5)
    assert spent + again.cpu_s <= 20

    other = Counting()  # with other settings it is another training
    with pytest.raises(BudgetSpentError):
        spend(budget_of(tmp_path, other, training_budget=20.0, seed=1), other, per_update=1.0)
    assert other.cpu_s >= 17


def test_the_month_counts_every_stage(tmp_path: Path) -> None:
    write_line(tmp_path, "ingest", 90.0)
    meter = Counting()

    with pytest.raises(BudgetSpentError, match=r"\[cost\] month_budget = 100 EUR"):
        spend(budget_of(tmp_path, meter, training_budget=50.0, month_budget=100.0), meter, per_update=1.0)

    assert 7 <= meter.cpu_s <= 10


def test_choosing_is_charged_to_the_same_budget(tmp_path: Path) -> None:
    meter, choice = Counting(15.0), Counting()
    budget = budget_of(tmp_path, meter, training_budget=20.0)
    budget.finished(100)
    budget.choose_by(choice)
    budget.may_judge()
    choice.cpu_s = 2.5
    with pytest.raises(BudgetSpentError, match="while choosing, with all 100 updates done"):
        budget.may_judge()  # as much again, and half as much, would be 6.25 of the 5 that were left


def priced(workspace: Workspace, cost: str, train_changes: str = "") -> Workspace:
    path = workspace.root / "offline_dqn.toml"
    text = path.read_text().replace("[train]\n", f"[train]\n{train_changes}\n")
    path.write_text(f"{re.sub(r'(?s)# budget.*', '', text)}\n# budget\n[cost]\n{cost}\n")
    return open_workspace(workspace.root)


def test_a_stopped_training_goes_on_once_the_budget_is_raised(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(workspace.metrics_path)  # no training that tells what this one costs
    looks = count()
    monkeypatch.setattr(usage, "_cpu_seconds", lambda: 0.01 * next(looks))  # of the clock, so many a second are no fact
    poor = priced(workspace, f"cpu_hour = {HOUR}\ntraining_budget = 1.0", "seed = 7")
    with pytest.raises(BudgetSpentError, match=r"after \d+ of 800 updates"):
        train(poor)
    line = UsageLog(poor.metrics_path).last("train", trained=True)
    assert line is not None
    assert line.ended == "stopped"
    assert line.cost(poor.config.cost) <= 1.05  # the lines that are written at the end look too
    assert line.n_updates is not None
    assert 80 <= line.n_updates <= 100  # each costs a look

    said = run(poor, "train")
    assert said.code == 1
    assert "The training was not begun: [cost] training_budget = 1 EUR is spent." in said.err

    rich = priced(poor, f"cpu_hour = {HOUR}\ntraining_budget = 1000")
    outcome = train(rich)
    again = UsageLog(rich.metrics_path).last("train")
    assert again is not None
    assert again.n_updates == 800 - line.n_updates  # from the checkpoint on
    assert outcome.release == 2


@pytest.mark.usefixtures("prefect_server")
def test_a_night_whose_training_is_too_dear_ends_well_and_says_why(workspace: Workspace) -> None:
    write_line(workspace.metrics_path, "train", 100.0, n_updates=100)
    dear = priced(workspace, f"cpu_hour = {HOUR}\ntraining_budget = 10", "seed = 9")

    record = run_night(dear, force_train=True)

    assert (record.release, record.gate) == (None, "not trained")
    assert record.reason.startswith("The training was not begun: 800 updates and the choice among their candidates")
    assert read_nights(dear.nights_path)[-1].gate == "not trained"
    assert dear.registry.champion() == 1
    rows = dear.query("SELECT metric FROM metrics WHERE reason LIKE 'a budget ended the training%'").rows
    assert {metric for (metric,) in rows} == {"training_convergence", "replay_coverage"}
