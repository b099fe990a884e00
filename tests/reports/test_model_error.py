from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.replay import GATE, SELECT, TRAIN, Replay
from offline_dqn.fqe import HeldOutValues
from offline_dqn.fqe_config import FqeConfig
from reports.evaluate_config import EvaluateConfig
from reports.model_error import FoldFit, ModelError, model_error, model_noise
from reports.records import Evaluation
from tests.reports.test_evaluation import UNIFORM, WORLD, TablePolicy, evaluate, make_replay
from tests.reports.worlds import greedy, simulate

CANDIDATE = greedy(WORLD, 0.4)


def log_of(n: int, seed: int) -> Replay:
    replay = make_replay(simulate(WORLD, UNIFORM, n, np.random.default_rng(seed)), UNIFORM)
    split = np.random.default_rng(seed + 10_000).choice([TRAIN, SELECT, GATE], p=[0.4, 0.1, 0.5], size=n)
    return replace(replay, split=split.astype(np.int8))


def evaluated(replay: Replay, seed: int, **fqe: int) -> Evaluation:
    config = EvaluateConfig(n_replicates=2_000, fqe=FqeConfig(**fqe))
    return evaluate(replay, TablePolicy(CANDIDATE), fit_models=None, config=config, seed=seed)


def test_noise_has_the_variance_of_clusters_outside_and_the_spread_of_members() -> None:
    # One policy: 3^2 + 4^2 of two clusters, variance 2 of members 1 and 3.
    error = ModelError(np.zeros(5), np.array([3.0, 4.0]), np.array([1.0, 3.0]))
    noise = model_noise({"candidate": error}, 200_000, np.random.default_rng(0))["candidate"]
    assert noise.std() == pytest.approx(np.sqrt(27.0), rel=0.01)
    assert noise.mean() == pytest.approx(0.0, abs=0.05)


def test_policies_share_the_luck_of_the_fit() -> None:
    # The same error in both cancels in their difference; members that move apart do not.
    one = ModelError(np.zeros(5), np.array([3.0, 4.0]), np.array([1.0, 3.0]))
    same = model_noise({"candidate": one, "baseline": one}, 1_000, np.random.default_rng(0))
    np.testing.assert_allclose(same["candidate"], same["baseline"], atol=1e-6)
    other = replace(one, member_values=np.array([3.0, 1.0]))
    apart = model_noise({"candidate": one, "baseline": other}, 200_000, np.random.default_rng(0))
    assert (apart["candidate"] - apart["baseline"]).std() == pytest.approx(np.sqrt(8.0), rel=0.01)


def test_no_policy_has_no_noise_and_one_member_no_spread() -> None:
    assert model_noise({}, 10, np.random.default_rng(0)) == {}
    alone = ModelError(np.zeros(2), np.zeros(3), np.array([7.0]))
    np.testing.assert_array_equal(model_noise({"candidate": alone}, 10, np.random.default_rng(0))["candidate"], 0.0)


def test_influence_of_folds_adds_up_by_cluster() -> None:
    # Six episodes: gate, gate, gate, train, train, select; the clusters of the third and fourth are one.
    replay = log_of(6, 0)
    replay = replace(
        replay,
        split=np.array([GATE, GATE, GATE, TRAIN, TRAIN, SELECT], dtype=np.int8),
        clusters=np.array([0, 1, 2, 2, 3, 3]),
    )
    nothing = np.zeros((1, 2))
    first = HeldOutValues(nothing, np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0, 40.0, 50.0]))
    second = HeldOutValues(nothing, np.array([4.0, 8.0]), np.array([100.0, 1.0, 2.0, 4.0]))
    fits = [
        FoldFit(1 / 3, np.array([False, True, True, True, True, True]), first),
        FoldFit(2 / 3, np.array([True, False, False, True, True, True]), second),
    ]
    found = model_error(replay, fits)
    assert found is not None
    # episodes: 200/3; 10/3; 20/3; 30/3 + 2/3; 40/3 + 4/3; 50/3 + 8/3
    np.testing.assert_allclose(found.gate_influence, [200 / 3, 10 / 3, 20 / 3 + 32 / 3])
    np.testing.assert_allclose(found.outside_influence, [44 / 3 + 58 / 3])
    np.testing.assert_allclose(found.member_values, [1 / 3 + 8 / 3, 2 / 3 + 16 / 3])
    assert model_error(replay, [fits[0], replace(fits[1], values=replace(second, influence=None))]) is None


def test_without_an_episode_outside_the_gate_the_influence_is_the_folds_own() -> None:
    replay = replace(log_of(4, 0), split=np.full(4, GATE, dtype=np.int8))
    influence = np.array([1.0, -2.0])
    halves = np.array([True, True, False, False]), np.array([False, False, True, True])
    fits = [FoldFit(0.5, half, HeldOutValues(np.zeros((1, 2)), np.array([3.0]), influence)) for half in halves]
    found = model_error(replay, fits)

    assert found is not None
    np.testing.assert_allclose(found.gate_influence, [0.5, -1.0, 0.5, -1.0])
    assert len(found.outside_influence) == 0


def test_direct_value_is_that_of_the_model_and_only_its_interval_grows() -> None:
    replay = log_of(600, 1)
    without = evaluate(replay, TablePolicy(CANDIDATE)).estimate("direct", "candidate")  # the true Q as its model
    fitted = evaluated(replay, 1, n_random_features=0, largest_table=0).estimate("direct", "candidate")
    assert without is not None
    assert fitted is not None
    assert without.interval is not None
    assert fitted.interval is not None
    assert fitted.value == pytest.approx(WORLD.value(CANDIDATE), abs=0.15)
    assert fitted.interval.high - fitted.interval.low > 1.5 * (without.interval.high - without.interval.low)
    assert "leaves out what the fit owes to luck" in without.note
    assert "luck" not in fitted.note


@pytest.mark.parametrize("largest_table", [0, 2_000], ids=["linear", "table"])
def test_interval_of_the_direct_method_covers_about_as_often_as_it_claims(largest_table: int) -> None:
    # The model can express the truth: values by state. Without the fit's error the linear one covered 15 of 40.
    truth, gain = WORLD.value(CANDIDATE), WORLD.value(CANDIDATE) - WORLD.value(UNIFORM)
    n_logs, hits = 20, {"value": 0, "difference": 0}
    for seed in range(n_logs):
        found = evaluated(log_of(500, seed), seed, n_random_features=0, largest_table=largest_table)
        direct = found.estimate("direct", "candidate")
        difference = next(c for c in found.comparisons if not c.binding)
        assert direct is not None
        assert direct.interval is not None
        assert difference.interval is not None
        hits["value"] += direct.interval.low <= truth <= direct.interval.high
        hits["difference"] += difference.interval.low <= gain <= difference.interval.high
    assert min(hits.values()) >= 16  # of a nominal 95 %: fewer would be 3 in 10,000


def test_members_differ_and_are_averaged() -> None:
    replay = log_of(300, 2)
    one, three = (
        evaluated(replay, 2, n_members=m, n_random_features=50, n_time_knots=0, largest_table=0) for m in (1, 3)
    )
    values = [x.estimate("direct", "candidate") for x in (one, three)]
    assert values[0] is not None
    assert values[1] is not None
    assert values[0].value != values[1].value
    assert values[0].value == pytest.approx(values[1].value, abs=0.2)
