"""Backtest and placebo by command, on one-step logs in which two versions act in the same nights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.workspace import Workspace, open_workspace, write_workspace
from tests.pipelines.conftest import Run, edit

CONTRACT = """
name = "routes"
gamma = 1.0
[features.load]
type = "numeric"
exogenous = true
[actions]
names = ["left", "right"]
[reward]
min = -1.0
max = 2.0
[behavior]
propensity = "logged"
[episodes]
kind = "one_step"
cluster = "user"
"""

SETTINGS = """
[ingest]
as_of = "newest"
[snapshot]
train_share = 0.45
select_share = 0.05
[evaluate]
n_replicates = 2000
n_folds = 2
placebo_halves = 1000
[gate]
alpha = 0.05
"""


def write_log(
    path: Path, version: str, right: float, n: int, *, nights: Sequence[int], seed: int, **more: object
) -> None:
    """`n` decisions that go right with probability `right`; right earns .4 more, with noise."""
    rng = np.random.default_rng(seed)
    with path.open("w") as lines:
        for i in range(n):
            action = rng.random() < right
            row = {
                "timestamp": f"2024-05-{nights[i % len(nights)]:02}T{i % 24:02}:{i // 24 % 60:02}:00Z",
                "load": round(float(rng.normal()), 3),
                "action": "right" if action else "left",
                "reward": float(np.clip(0.3 + 0.4 * action + 0.2 * rng.normal(), -1, 2)),
                "behavior_prob": right if action else 1 - right,
                "policy_version": version,
                "user": f"{version}-{i}",
            }
            lines.write(json.dumps(row | more) + "\n")


@pytest.fixture
def routes(tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    write_workspace(root, "blank")
    (root / "contract.toml").write_text(CONTRACT)
    (root / "offline_dqn.toml").write_text(SETTINGS)
    return open_workspace(root)


def test_backtest_of_files_estimates_each_version_and_takes_nothing_in(
    run: Run, routes: Workspace, tmp_path: Path
) -> None:
    for version, right, seed in (("old", 0.5, 0), ("new", 0.7, 1)):
        write_log(tmp_path / f"{version}.jsonl", version, right, 1000, nights=range(1, 16), seed=seed)
    files = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]

    found = run(routes, "backtest", *files, "--json").json
    truth = {"old": 0.5, "new": 0.58}
    for pair in found["backtest"]["pairs"]:
        (estimate,) = (e for e in pair["estimates"] if e["estimator"] == pair["deciding_estimator"])
        assert pair["earned"] == pytest.approx(truth[pair["version"]], abs=0.05)
        assert estimate["value"] == pytest.approx(truth[pair["version"]], abs=0.05)
        assert 400 < pair["n_episodes"] < 600, "half of 1,000: `gate` is left to the gate"
    assert [(p["unit"], p["verdict"] != "too often") for p in found["placebos"]] == [("cluster", True), ("night", True)]
    assert not (routes.root / "lake").exists() or routes.query("SELECT count(*) FROM steps").rows == ((0,),)


def test_the_lake_is_backtested_without_paths(run: Run, routes: Workspace) -> None:
    write_log(routes.logs_path / "a.jsonl", "a", 0.5, 800, nights=(1, 2), seed=4)
    write_log(routes.logs_path / "b.jsonl", "b", 0.6, 800, nights=(2, 3), seed=5)
    assert run(routes, "ingest").code == 0

    shown = run(routes, "backtest")
    assert shown.code == 0, shown.out
    assert "2 of 2 judged estimates are covered" in shown.out
    assert "dr, modelled" in shown.out


def test_a_miss_is_a_negative_verdict(run: Run, routes: Workspace, tmp_path: Path) -> None:
    """The old version was logged where "right" earned nothing more: its episodes cannot tell of the new one's world."""
    write_log(tmp_path / "old.jsonl", "old", 0.5, 600, nights=(1,), seed=0)
    write_log(tmp_path / "new.jsonl", "new", 0.7, 600, nights=(1,), seed=1, reward=1.5)
    shown = run(routes, "backtest", tmp_path / "old.jsonl", tmp_path / "new.jsonl")

    assert shown.code == 3
    assert "missed" in shown.out


def test_one_version_says_that_there_is_no_other(run: Run, routes: Workspace, tmp_path: Path) -> None:
    write_log(tmp_path / "old.jsonl", "old", 0.5, 300, nights=(1,), seed=0)
    shown = run(routes, "backtest", tmp_path / "old.jsonl")

    assert shown.code == 0
    assert "version 'old' wrote all there is (" in shown.out
    assert "1 night, and it takes 14 to deal halves of them" in shown.out


def test_a_log_without_probabilities_is_not_estimated(run: Run, routes: Workspace, tmp_path: Path) -> None:
    edit(routes.root / "contract.toml", 'propensity = "logged"', 'propensity = "estimated"')
    for version, seed in (("old", 0), ("new", 1)):
        write_log(tmp_path / f"{version}.jsonl", version, 1.0, 300, nights=(1,), seed=seed, behavior_prob=None)
    shown = run(routes, "backtest", tmp_path / "old.jsonl", tmp_path / "new.jsonl")

    assert shown.code == 0
    assert "hold 1 different actions, and at least two" in shown.out, "who always goes right cannot be modelled"


def test_without_an_episode_it_fails_and_says_what_to_do(run: Run, routes: Workspace) -> None:
    failed = run(routes, "backtest")

    assert failed.code == 1
    assert "No episode is complete and undamaged" in failed.err


def test_latest_nights_that_judge_are_left_out(run: Run, routes: Workspace, tmp_path: Path) -> None:
    edit(
        routes.root / "offline_dqn.toml",
        "train_share = 0.45",
        'gate = "latest_nights"\ngate_nights = 5\ntrain_share = 0.45',
    )
    for version, seed in (("old", 0), ("new", 1)):
        write_log(tmp_path / f"{version}.jsonl", version, 0.5, 300, nights=range(1, 16), seed=seed)
    pairs = run(routes, "backtest", tmp_path / "old.jsonl", tmp_path / "new.jsonl", "--json").json["backtest"]["pairs"]

    assert [(p["n_nights"], p["n_episodes"]) for p in pairs] == [(10, 200), (10, 200)]
