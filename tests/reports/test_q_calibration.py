from __future__ import annotations

import numpy as np
import pytest

from reports.change_records import QBin, QCalibration
from reports.q_calibration import calibrate_q, corrected_values
from tests.reports.worlds import GAMMA, greedy, simulate, small_world

UNIFORM = np.full((4, 2), 0.5)


def calibrated(offset: float, seed: int = 3, **more: object) -> QCalibration:
    """Own values of a known world's best policy plus an offset, against a log of uniform actions."""
    world = small_world()
    log = simulate(world, UNIFORM, 4_000, np.random.default_rng(seed))
    best = world.q(greedy(world, 0.0)) + offset
    values = best.max(axis=1)[log.states]
    ends = np.zeros(len(values), dtype=bool)
    ends[log.offsets[1:] - 1] = True
    arguments: dict[str, object] = {
        "behavior_probs": np.full(len(values), 0.5),
        "next_values": np.where(ends, 0.0, np.roll(values, -1)),
        "clusters": np.arange(4_000),
    }
    return calibrate_q(
        best[log.states], np.ones((len(values), 2), dtype=bool), log.actions, log.rewards, offsets=log.offsets,
        gamma=GAMMA, **(arguments | more),  # type: ignore[arg-type]  # fields by name
    )  # fmt: skip


def test_correction_of_a_two_step_episode() -> None:
    # V = (1, 2), Q(taken) = (1, 2), rewards (3, 4), ratios (2, .5), gamma .5, ends after step 2:
    # d_0 = 3 + .5 x 2 - 1 = 3, d_1 = 4 + 0 - 2 = 2;
    # corrected_0 = 1 + 2 x 3 + .5 x (2 x .5) x 2 = 8, corrected_1 = 2 + .5 x 2 = 3.
    n = 200  # alike, so that the log is worth enough steps to look two ahead
    one = [np.array(values) for values in ((1.0, 2.0), (1.0, 2.0), (3.0, 4.0), (2.0, 0.5), (2.0, 0.0))]
    corrected, ahead = corrected_values(*(np.tile(v, n) for v in one), np.arange(n + 1) * 2, 0.5)
    assert ahead == 2
    assert corrected.reshape(n, 2) == pytest.approx(np.tile([8.0, 3.0], (n, 1)))


def test_unknown_next_observation_corrects_nothing() -> None:
    n = 200
    corrected, _ = corrected_values(
        np.ones(n), np.ones(n), np.full(n, 9.0), np.ones(n), np.full(n, np.nan), np.arange(n + 1), 0.9
    )
    assert corrected == pytest.approx(np.ones(n))


def test_true_values_keep_their_word() -> None:
    found = calibrated(0.0)
    assert found.excess is not None
    assert found.n_ahead >= 3
    assert abs(found.excess) < 0.03  # rewards spread by .3 over about 14,000 steps, weights up to 2^n_ahead
    inside = [b.low <= b.own <= b.high for b in found.bins if b.low is not None and b.high is not None]
    assert len(inside) == len(found.bins) == 4  # the world has four states
    assert sum(inside) >= 3


def test_values_that_promise_too_much_are_told_by_how_much() -> None:
    # Q + c at every step promises c more than the truth; a look over h steps finds c (1 - gamma^h) of it where the
    # episode goes on, and all of it where it ends within them.
    found = calibrated(0.5)
    assert found.excess is not None
    assert 0.5 * (1 - GAMMA**found.n_ahead) - 0.03 < found.excess < 0.53
    assert all(b.high is not None and b.high < b.own for b in found.bins)


def test_episodes_logged_twice_in_one_cluster_narrow_nothing() -> None:
    def found(times: int) -> QBin:
        rng = np.random.default_rng(8)
        rewards, actions = np.tile(rng.normal(size=400), times), np.tile(rng.integers(0, 2, 400), times)
        n = len(rewards)
        (only,) = calibrate_q(
            np.tile([1.0, 0.0], (n, 1)), np.ones((n, 2), dtype=bool), actions, rewards, np.full(n, 0.5), np.zeros(n),
            np.arange(n + 1), np.tile(np.arange(400), times), 0.9,
        ).bins  # fmt: skip
        return only

    once, twice = found(1), found(2)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    single = calibrated(0.0, clusters=np.zeros(4_000))
    assert single.bins[0].evaluated is not None
    assert single.bins[0].low is None


def test_log_that_never_follows_the_greedy_action_is_refused() -> None:
    found = calibrate_q(
        np.tile([0.0, 1.0], (300, 1)), np.ones((300, 2), dtype=bool), np.zeros(300, dtype=np.int64), np.ones(300),
        np.full(300, 0.5), np.zeros(300), np.arange(301), np.arange(300), 0.9,
    )  # fmt: skip
    assert found.refused == "the log follows the greedy action too rarely to correct even one step"
    assert found.excess is None
    assert [b.evaluated for b in found.bins] == [None]


def test_without_usable_probabilities_own_values_and_disagreement_are_still_told() -> None:
    n_steps = sum(b.n_steps for b in calibrated(0.0).bins)
    found = calibrated(
        0.0, behavior_probs=None, refused="no propensities", disagreement=np.tile([0.2, 0.2], (n_steps, 1))
    )
    assert (found.refused, found.n_ahead) == ("no propensities", 0)
    assert all(b.evaluated is None and b.disagreement == pytest.approx(0.2) for b in found.bins)
