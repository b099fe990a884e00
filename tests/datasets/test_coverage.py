"""Coverage: regions and counts against counts done by hand, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import coverage
from datasets.contract import Contract
from datasets.coverage import coverage_of, measure_coverage, read_coverage, write_coverage
from datasets.coverage_config import CoverageConfig
from datasets.observations import Observations
from datasets.regions import fit_regions
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.settings import SettingsError
from tests.datasets.builders import tiny

RNG = np.random.default_rng(0)
CONTRACT = tiny(features={"load": None, "cpu": {"unit": "ratio"}})


def replay_of(
    cpu: Any, actions: Any, lengths: Any, split: Any, *, contract: Contract = CONTRACT, available: Any = None
) -> Replay:
    n_steps, n_episodes = len(cpu), len(lengths)
    columns = {
        "cpu": np.asarray(cpu, dtype=np.float64),
        "zone": np.asarray(np.arange(n_steps) % 2, dtype=np.int32),
        "busy": np.ones(n_steps),
    }
    return Replay(
        contract=contract,
        digest="d" * 64,
        observations=Observations(columns, {"zone": ("a", "b")}),
        available=np.ones((n_steps, 3), dtype=bool) if available is None else np.asarray(available),
        actions=np.asarray(actions, dtype=np.int64),
        rewards=np.zeros(n_steps),
        terminated=np.zeros(n_steps, dtype=bool),
        truncated=np.zeros(n_steps, dtype=bool),
        next_row=np.full(n_steps, -1),
        behavior_prob=np.full(n_steps, 0.5),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        episode_ids=np.array([f"e{i}" for i in range(n_episodes)], dtype=object),
        clusters=np.arange(n_episodes),
        nights=np.zeros(n_episodes, dtype="datetime64[D]"),
        policy_versions=np.array([""] * n_episodes, dtype=object),
        split=np.asarray(split, dtype=np.int8),
    )


def two_worlds(n: int = 400) -> Replay:
    """Half of the steps at cpu .1, where every action is logged; half at .9, where only `hold` is."""
    low = np.arange(n) % 2 == 0
    return replay_of(
        np.where(low, 0.1, 0.9) + RNG.normal(0, 1e-6, n),
        np.where(low, np.arange(n) // 2 % 3, 1),
        [4] * (n // 4),
        [TRAIN] * (n // 4),
    )


GRID = CoverageConfig(method="grid", features=("cpu",), bins=2, thin_below=30)


def test_thin_regions_are_named_with_their_actions_in_units_of_the_features() -> None:
    found = measure_coverage(two_worlds(), GRID)

    assert found.regions == ("cpu below 0.5", "cpu from 0.5")
    assert found.n_steps[TRAIN].tolist() == [[67, 67, 66], [0, 200, 0]]
    assert found.thin.tolist() == [[False, False, False], [True, False, True]]
    assert found.covered_share == pytest.approx(4 / 6)
    assert found.thin_step_share(TRAIN) == 0.5
    assert found.thin_step_share(GATE) is None
    assert [r["thin"] for r in found.to_json()["regions"]] == [[], ["down", "up"]]


def test_an_action_that_was_never_available_in_a_region_is_not_thin_there() -> None:
    replay = two_worlds()
    available = np.ones((replay.n_steps, 3), dtype=bool)
    available[1::2, 0] = False
    found = measure_coverage(
        replay_of(replay.observations.columns["cpu"], replay.actions, [4] * 100, [TRAIN] * 100, available=available),
        GRID,
    )

    assert found.thin.tolist() == [[False, False, False], [False, False, True]]
    assert found.covered_share == pytest.approx(4 / 5)


def test_clusters_find_the_two_worlds_and_say_what_is_particular() -> None:
    contract = tiny(features={"load": None, "zone": None, "busy": None, "cpu": {"unit": "ratio"}})
    replay = two_worlds()
    only_cpu = Observations({"cpu": replay.observations.columns["cpu"]}, {})
    found = measure_coverage(
        Replay(**{**replay.__dict__, "contract": contract, "observations": only_cpu}), CoverageConfig(regions=2)
    )

    assert sorted(words[:9] for words in found.regions) == ["cpu about", "cpu about"]
    assert {words.split(" (")[0] for words in found.regions} == {"cpu about 0.1 ratio", "cpu about 0.9 ratio"}
    assert sorted(found.n_steps[TRAIN].tolist()) == [[0, 200, 0], [67, 67, 66]]


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
def test_counts_are_those_done_by_hand_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_BLOCK_STEPS", block)
    lengths = RNG.integers(1, 12, 30)
    n = int(lengths.sum())
    replay = replay_of(RNG.random(n), RNG.integers(0, 3, n), lengths, RNG.choice([TRAIN, SELECT, GATE], 30))
    replay.split[0] = TRAIN
    found = measure_coverage(replay, CoverageConfig(method="grid", features=("cpu", "zone"), bins=3))

    edges = [float(w.split("from ")[1].split(" to")[0].split(",")[0]) for w in found.regions if "from" in w]
    assert len(set(edges)) == 2
    region = fit_regions(
        CONTRACT, coverage._gathered(replay, coverage._train_sample(replay, 100_000)), CoverageConfig(
            method="grid", features=("cpu", "zone"), bins=3
        )
    ).assign(replay.observations)  # fmt: skip
    for s in (TRAIN, SELECT, GATE):
        for r in range(len(found.regions)):
            steps = (replay.split[replay.episode_of_step] == s) & (region == r)
            assert found.region_episodes[s, r] == len(set(replay.episode_of_step[steps]))
            for a in range(3):
                both = steps & (replay.actions == a)
                assert found.n_steps[s, r, a] == both.sum()
                assert found.n_episodes[s, r, a] == len(set(replay.episode_of_step[both]))
                assert found.n_available[s, r, a] == steps.sum()


def test_regions_are_fitted_on_train_alone() -> None:
    train = two_worlds()
    elsewhere = replay_of(
        [*train.observations.columns["cpu"], *[5.0] * 40], [*train.actions, *[0] * 40], [4] * 110,
        [TRAIN] * 100 + [GATE] * 10,
    )  # fmt: skip
    alone, both = measure_coverage(train, CoverageConfig(regions=4)), measure_coverage(
        elsewhere, CoverageConfig(regions=4)
    )  # fmt: skip
    assert both.regions == alone.regions
    assert both.n_steps[TRAIN].tolist() == alone.n_steps[TRAIN].tolist()
    assert both.n_steps[GATE].sum() == 40


def test_it_is_the_same_every_time() -> None:
    config = CoverageConfig(regions=5)
    replay = two_worlds()
    assert measure_coverage(replay, config).to_json() == measure_coverage(replay, config).to_json()


def test_missing_values_have_a_cell_of_their_own() -> None:
    contract = tiny(features={"load": None, "cpu": {"nullable": True}})
    replay = replay_of([0.1, np.nan, 0.9, 0.5], [0, 0, 0, 0], [4], [TRAIN], contract=contract)
    found = measure_coverage(replay, CoverageConfig(method="grid", features=("cpu",), bins=2))

    assert found.regions == ("cpu below 0.5", "cpu from 0.5", "cpu missing")
    assert found.n_steps[TRAIN, :, 0].tolist() == [1, 2, 1]
    assert found.visited_share == 1.0


def test_a_grid_takes_the_features_that_fit() -> None:
    found = measure_coverage(two_worlds(), CoverageConfig(method="grid", regions=16, bins=4))
    assert len(found.regions) == 16
    assert "cpu" in found.regions[0]
    assert "zone" in found.regions[0]


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (("cpuu",), "'cpuu' is no feature of the contract"),
        (("busy",), "'busy' is constant or a vector"),
        (("cpu", "zone"), "make 16 cells, more than snapshot.coverage.regions = 10"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(features: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        measure_coverage(two_worlds(), CoverageConfig(method="grid", regions=10, features=features))


def test_it_is_written_beside_the_arrays_and_read_for_queries(tmp_path: Path) -> None:
    write_coverage(tmp_path, two_worlds(), GRID, "0123456789abcdef0123")
    table = coverage_of([tmp_path, tmp_path / "nowhere"])
    written = read_coverage(tmp_path)

    assert table.num_rows == 3 * 2 * 3
    assert set(table["snapshot"].to_pylist()) == {"0123456789abcdef"}
    thin = table.filter(table["thin"]).to_pylist()
    assert {(row["region_where"], row["action"]) for row in thin} == {("cpu from 0.5", "down"), ("cpu from 0.5", "up")}
    assert written is not None
    assert written["covered_share"] == pytest.approx(4 / 6)
    assert written["config"]["method"] == "grid"


def test_without_a_training_split_nothing_is_measured(tmp_path: Path) -> None:
    replay = replay_of([0.1, 0.2], [0, 1], [1, 1], [GATE, SELECT])
    write_coverage(tmp_path, replay, CoverageConfig(), "d")
    assert read_coverage(tmp_path) is None
    assert coverage_of([tmp_path]).num_rows == 0
