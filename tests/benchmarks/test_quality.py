"""The worlds say the truth, and the verdicts follow from the numbers."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from datasets.replay import SELECT, TRAIN
from tests.benchmarks import cart_pole
from tests.benchmarks.quality_rows import Result, compare, quality_page, quality_rows
from tests.benchmarks.quality_worlds import WORLDS, World
from tests.benchmarks.tables import frozen_lake, masked_table, random_table, taxi

_TABLES = [(frozen_lake(), 0.4146), (taxi(), 6.3275)]


@pytest.mark.parametrize(("table", "optimum"), _TABLES, ids=["FrozenLake 8x8", "Taxi"])
def test_gymnasium_tables_have_their_known_optimum(table, optimum):
    assert table.value(table.best_policy()) == pytest.approx(optimum, abs=1e-4)
    assert np.allclose(table.transition.sum(axis=2), 1.0)


def test_policy_iteration_satisfies_the_bellman_optimality_equation_under_masks():
    table, _ = masked_table(seed=3)
    policy = table.best_policy()
    values = table._state_values(policy)
    q_values = np.where(table.available, table.mean_reward + table.gamma * table._going_on @ values, -np.inf)
    assert np.allclose(q_values[:-1].max(axis=1), values[:-1])
    assert not policy[~table.available].any()


def test_rolled_episodes_earn_what_the_table_says():
    table, logger = random_table(seed=1)
    rolled = table.roll(logger, 20_000, 200, np.random.default_rng(0))
    offsets = np.concatenate([[0], np.cumsum(rolled.lengths)[:-1]])
    age = np.arange(len(rolled.actions)) - np.repeat(offsets, rolled.lengths)
    returns = np.add.reduceat(rolled.rewards * table.gamma**age, offsets)
    error = returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - table.value(logger)) < 4 * error


def test_cart_pole_moves_like_gymnasiums():
    environment = gymnasium.make("CartPole-v1").unwrapped
    rng = np.random.default_rng(0)
    for _ in range(5):
        environment.reset(seed=int(rng.integers(1000)))
        ours = np.array([environment.state], dtype=np.float64)
        terminated = False
        while not terminated:
            assert not cart_pole.fallen(ours)[0]
            action = int(rng.integers(2))
            _, reward, terminated, _, _ = environment.step(action)
            ours = cart_pole.moved(ours, np.array([action]))
            assert reward == 1.0
            assert np.allclose(ours[0], environment.state, atol=1e-9)
        assert cart_pole.fallen(ours)[0]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_a_log_is_complete_and_says_how_likely_its_actions_were(world: World):
    replay = world.log(1)
    assert ((replay.behavior_prob > 0) & (replay.behavior_prob <= 1)).all()
    assert replay.available[np.arange(replay.n_steps), replay.actions].all()
    last = replay.offsets[1:] - 1
    assert (replay.terminated[last] | replay.truncated[last]).all()
    assert ((replay.next_row >= 0) == ~replay.terminated).all(), "what was cut keeps its final observation"
    inner = np.setdiff1d(np.arange(replay.n_steps), last)
    assert (replay.next_row[inner] == inner + 1).all()
    shares = [float((replay.split == split).mean()) for split in (TRAIN, SELECT)]
    assert shares == pytest.approx([0.8, 0.2], abs=1e-3)
    assert (world.log(1).actions == replay.actions).all()
    assert len(world.log(2).actions) != len(replay.actions) or (world.log(2).actions != replay.actions).any()


def test_a_learner_is_worse_only_where_the_paired_interval_leaves_out_zero():
    def of(values):
        return {seed: Result("w", "x", seed, value, 1.0) for seed, value in enumerate(values)}

    theirs = of([1.0, 2.0, 3.0])
    assert compare("p", of([0.9, 1.9, 2.91]), theirs).verdict == "worse"
    assert compare("p", of([1.1, 2.1, 3.09]), theirs).verdict == "better"
    assert compare("p", of([0.5, 2.1, 2.9]), theirs).verdict == "no difference"
    rounding = compare("p", of([1.0 + 1e-6, 2.0 + 1e-6, 3.0 + 1e-6]), theirs)
    assert rounding.verdict == "no difference"
    # mean -0.0967, sd 0.00577, t(.975, 2) = 4.303: half width 0.01434
    found = compare("p", of([0.9, 1.9, 2.91]), theirs)
    assert (found.low, found.high) == pytest.approx((-0.1110, -0.0823), abs=1e-4)
    with pytest.raises(ValueError, match="finish both"):
        compare("p", of([1.0, 2.0]), theirs)


def test_the_page_shows_every_learner_beside_every_peer():
    world = WORLDS[0]
    results = [Result(world.name, name, s, 1.0 + s + i, 2.0) for i, name in enumerate(["ours", "p"]) for s in (0, 1)]
    rows = quality_rows(results, worlds=[world], peers=("p",))
    page = quality_page(rows, [world], "Of 10 updates.")
    assert [row.learner for row in rows] == ["ours", "p"]
    assert rows[0].against[0].difference == -1.0
    assert "| ours | 1.5 |" in page
    assert "worse (-1)" in page
