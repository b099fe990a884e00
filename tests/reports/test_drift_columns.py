from __future__ import annotations

import numpy as np
import pytest

from drift.windows import DriftWindow, window_from_replay
from reports.drift_columns import episode_columns, policy_columns
from tests.reports.promotion_world import Leaning, logged

LOGGER, PROMOTED = Leaning(-0.3), Leaning(-1.1, 0.15)


def test_episode_counts_once_with_its_discounted_return_and_length() -> None:
    replay = logged(np.random.default_rng(0), LOGGER, n_nights=1, per_night=20)
    columns = episode_columns(replay)
    second = slice(replay.offsets[1], replay.offsets[2])
    rewards = replay.rewards[second]
    by_hand = sum(0.9**t * reward for t, reward in enumerate(rewards))  # the contract's gamma is .9
    assert columns["episode.return"].values[1] == pytest.approx(by_hand)
    assert columns["episode.length"].values[1] == len(rewards)
    assert columns["episode.return"].rows is not None
    assert columns["episode.return"].rows[1] == replay.offsets[2] - 1
    DriftWindow(
        columns, *(getattr(window_from_replay(replay), name) for name in ("episode_of_row", "clusters", "nights"))
    )


def test_td_error_is_of_steps_of_which_it_is_known_what_followed() -> None:
    replay = logged(np.random.default_rng(0), LOGGER, n_nights=1, per_night=60)
    columns = policy_columns(PROMOTED, replay, acting=None)
    everything = np.arange(len(replay.observations))
    q = PROMOTED.q_values(replay.observations)
    values = (PROMOTED.action_probs(replay.observations, replay.available) * q).sum(axis=1)
    assert np.allclose(columns["q_value"].values, values[: replay.n_steps])
    rows = columns["td_error"].rows
    assert rows is not None
    known = replay.terminated | (replay.next_row >= 0)
    assert 0 < replay.terminated.sum() < replay.n_steps
    assert np.array_equal(rows, np.flatnonzero(known))
    for row, error in zip(rows, columns["td_error"].values, strict=True):
        following = 0.0 if replay.terminated[row] else values[everything[replay.next_row[row]]]
        assert error == pytest.approx(replay.rewards[row] + 0.9 * following - q[row, replay.actions[row]])


def test_propensity_is_what_acts_now_gives_to_the_logged_action() -> None:
    replay = logged(np.random.default_rng(0), LOGGER, n_nights=1, per_night=20)
    as_logged = policy_columns(PROMOTED, replay, acting=None)["propensity"].values
    assert np.array_equal(as_logged, replay.behavior_prob)
    now = policy_columns(PROMOTED, replay, acting=PROMOTED)["propensity"].values
    probs = PROMOTED.action_probs(replay.observations, replay.available)
    assert np.array_equal(now, probs[np.arange(replay.n_steps), replay.actions])
