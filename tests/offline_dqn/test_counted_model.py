from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.contract import Contract
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import Observations
from datasets.replay import Replay
from offline_dqn import counted_model
from offline_dqn.counted_model import CountedModel, Observed, count_observations
from offline_dqn.planning import as_policy, isolates, plan
from tests.offline_dqn.worlds import TabularWorld, make_replay, states_of

CONTRACT = Contract.model_validate(
    {
        "name": "gates",
        "gamma": 0.5,
        "features": {"open": {"type": "boolean"}, "zone": {"type": "categorical", "values": ["a", "b", "c"]}},
        "actions": {"names": ["stay", "go"]},
    }
)


def gates(opened: list[bool], zones: list[int], actions: list[int], rewards: list[float], lengths: list[int]) -> Replay:
    observations = Observations(
        {"open": np.array(opened, dtype=np.float64), "zone": np.array(zones, dtype=np.int32)}, {"zone": ("a", "b", "c")}
    )
    return make_replay(CONTRACT, observations, np.array(actions), np.array(rewards), np.array(lengths))


def counted(replay: Replay, weights: np.ndarray | None = None) -> tuple[CountedModel, Observed]:
    encoder = fit_encoder(replay.contract, replay.observations)
    observed = count_observations(replay, encoder, largest=1_000, smallest_visits=0.0)
    assert observed is not None
    return CountedModel.of(replay, observed, weights), observed


def test_values_of_two_steps_by_hand() -> None:
    # (closed, a) -stay, 1-> (open, b) -go, 4-> end, and once more with reward 3 instead of 1.
    replay = gates([False, True, False, True], [0, 1, 0, 1], [0, 1, 0, 1], [1.0, 4.0, 3.0, 4.0], [2, 2])
    model, observed = counted(replay)
    probs = np.eye(2)[replay.actions]
    table, found = model.value(probs)
    closed = observed.codes[0]
    assert found.value == pytest.approx(2.0 + 0.5 * 4.0)
    assert table[closed, 0] == pytest.approx(4.0)
    # The second episode earned 1 more than the mean, the first 1 less; each is half of the estimate.
    np.testing.assert_allclose(found.influence, [-0.5, 0.5])


def test_a_heavier_episode_counts_more() -> None:
    replay = gates([False, False], [0, 0], [0, 0], [1.0, 3.0], [1, 1])
    model, _ = counted(replay, np.array([1.0, 3.0]))
    assert model.value(np.eye(2)[replay.actions])[1].value == pytest.approx(2.5)


def test_value_and_its_standard_error_match_the_truth_over_many_logs() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.15, seed=3)
    rng = np.random.default_rng(0)
    behavior, evaluation = rng.dirichlet(np.full(3, 8.0), size=6), rng.dirichlet(np.ones(3), size=6)
    truth = float((world.values(evaluation) * evaluation).sum(axis=1).mean())
    values, errors = [], []
    for seed in range(40):
        replay = world.roll(behavior, 150, 100, seed=seed, noise=0.5)
        found = counted(replay)[0].value(evaluation[states_of(replay)])[1]
        values.append(found.value)
        errors.append(float(np.sqrt((found.influence**2).sum())))
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / np.sqrt(40))
    assert 0.75 < np.mean(errors) / np.std(values, ddof=1) < 1.35


def test_plan_on_a_well_covered_world_is_optimal() -> None:
    world = TabularWorld.random(n_states=6, n_actions=3, gamma=0.9, end_prob=0.15, seed=4)
    replay = world.roll(np.full((6, 3), 1 / 3), 1_500, 100, seed=0)
    model, observed = counted(replay)
    state_of_key = states_of(replay)[[np.flatnonzero(observed.codes[: replay.n_steps] == k)[0] for k in range(6)]]
    q_values = plan(model, 0.0)
    best = world.optimal_values()[state_of_key]
    assert (best.max(axis=1) - best[np.arange(6), q_values.argmax(axis=1)]).max() < 0.1


def test_an_action_never_seen_is_taken_only_where_nothing_else_is_available() -> None:
    replay = gates([False, True], [0, 1], [0, 1], [-5.0, 4.0], [1, 1])
    model, observed = counted(replay)
    encoder = fit_encoder(replay.contract, replay.observations)
    policy = as_policy(model, observed, encoder, plan(model, 0.0), exploration=0.0)
    available = np.array([[True, True], [True, False]])
    np.testing.assert_array_equal(policy.action_probs(replay.observations, available), [[1, 0], [1, 0]])


def test_pessimism_avoids_a_single_lucky_step() -> None:
    # "go" paid 5 once; "stay" pays 1 or 3, two on average, forty times.
    rewards = [5.0, *[1.0, 3.0] * 20]
    replay = gates([False] * 41, [0] * 41, [1, *[0] * 40], rewards, [1] * 41)
    model, _ = counted(replay)
    assert plan(model, 0.0)[0].argmax() == 1
    assert plan(model, 4.0)[0].argmax() == 0


def test_network_says_the_table_exactly_and_the_mean_elsewhere() -> None:
    rng = np.random.default_rng(0)
    opened, zones = [False, True, True, False], [0, 1, 0, 2]
    replay = gates(opened * 10, zones * 10, rng.integers(2, size=40).tolist(), rng.normal(size=40).tolist(), [4] * 10)
    model, observed = counted(replay)
    encoder = fit_encoder(replay.contract, replay.observations)
    assert isolates(observed, encoder)
    q_values = plan(model, 0.0)
    policy = as_policy(model, observed, encoder, q_values, exploration=0.1)
    found = policy.q_values(replay.observations)
    assert found is not None
    np.testing.assert_allclose(found, q_values[observed.codes], atol=1e-5 * np.abs(q_values).max())
    new = Observations({"open": np.array([True]), "zone": np.array([2], dtype=np.int32)}, {"zone": ("a", "b", "c")})
    unseen = Observations({"open": np.array([True]), "zone": np.array([0], dtype=np.int32)}, {"zone": ("other",)})
    elsewhere = np.average(q_values, axis=0, weights=model.counts.sum(axis=1))
    for observations in (new, unseen):
        said = policy.q_values(observations)
        assert said is not None
        np.testing.assert_allclose(said, elsewhere[None], rtol=1e-4, atol=1e-5)


def test_numbers_of_many_values_are_not_counted_or_not_isolated() -> None:
    contract = Contract.model_validate(
        {"name": "n", "gamma": 0.9, "features": {"x": {"type": "numeric"}}, "actions": {"names": ["a", "b"]}}
    )
    values = np.arange(50.0)
    replay = make_replay(contract, Observations({"x": values}, {}), np.zeros(50), np.zeros(50), np.ones(50))
    encoder = fit_encoder(contract, replay.observations)
    assert count_observations(replay, encoder, largest=49, smallest_visits=0.0) is None
    observed = count_observations(replay, encoder, largest=50, smallest_visits=0.0)
    assert observed is not None
    assert not isolates(observed, encoder)


def numbers(values: np.ndarray) -> Replay:
    n = len(values)
    feature = {"type": "vector", "length": values.shape[1]}
    contract = Contract.model_validate(
        {"name": "n", "gamma": 0.9, "features": {"x": feature}, "actions": {"names": ["a", "b"]}}
    )
    return make_replay(contract, Observations({"x": values}, {}), np.zeros(n), np.zeros(n), np.ones(n))


def test_blocks_count_as_one_piece_would(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = numbers(np.random.default_rng(0).integers(4, size=(500, 2)).astype(np.float64))
    encoder = fit_encoder(replay.contract, replay.observations)
    whole = count_observations(replay, encoder, largest=16, smallest_visits=0.0)
    monkeypatch.setattr(counted_model, "_FIRST_ROWS", 3)
    pieces = count_observations(replay, encoder, largest=16, smallest_visits=0.0)
    assert whole is not None
    assert pieces is not None
    np.testing.assert_array_equal(whole.keys, pieces.keys)
    np.testing.assert_array_equal(whole.codes, pieces.codes)
    np.testing.assert_array_equal(whole.keys[whole.codes], encoder.encode(replay.observations))


def test_the_uncountable_is_given_up_after_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = numbers(np.arange(5_000.0)[:, None])
    encoder = fit_encoder(replay.contract, replay.observations)
    seen: list[int] = []
    encode = Encoder.encode

    def watched(self: Encoder, observations: Observations) -> np.ndarray:
        seen.append(len(observations))
        return encode(self, observations)

    monkeypatch.setattr(Encoder, "encode", watched)
    assert count_observations(replay, encoder, largest=500, smallest_visits=0.0) is None
    assert seen == [1_000]


def test_long_observations_are_counted_only_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_model, "_MOST_BYTES", 4 * 100 * 10)
    few, many = (numbers(np.repeat(np.arange(60.0)[:, None] % n, 100, axis=1)) for n in (10, 11))
    for replay, countable in ((few, True), (many, False)):
        encoder = fit_encoder(replay.contract, replay.observations)
        assert (count_observations(replay, encoder, largest=1_000, smallest_visits=0.0) is not None) == countable


def test_images_are_never_counted() -> None:
    contract = Contract.model_validate(
        {
            "name": "i",
            "gamma": 0.9,
            "features": {"f": {"type": "image", "shape": [2, 2, 1]}},
            "actions": {"names": ["a", "b"]},
        }
    )
    black = Observations({"f": np.zeros((4, 5), dtype=np.uint8)}, {})
    replay = make_replay(contract, black, np.zeros(4), np.zeros(4), np.ones(4))
    assert count_observations(replay, fit_encoder(contract, black), largest=10, smallest_visits=0.0) is None


def test_steps_that_nothing_is_known_to_follow_are_left_out() -> None:
    replay = gates([False, True], [0, 1], [0, 1], [1.0, 100.0], [2])
    cut = replace(replay, terminated=np.array([False, False]), truncated=np.array([False, True]))
    assert counted(cut)[0].counts.sum() == 1.0


def test_observations_that_hardly_repeat_are_not_counted() -> None:
    """A number with three decimals is nearly continuous, however few of its values a small log holds."""
    world = TabularWorld.random(n_states=60, n_actions=3, gamma=0.9, end_prob=0.1, seed=0)
    few, many = (world.roll(np.full((60, 3), 1 / 3), n, 20, seed=0) for n in (10, 200))
    encoder = fit_encoder(many.contract, many.observations)
    assert count_observations(few, encoder, largest=1_000) is None
    assert count_observations(many, encoder, largest=1_000) is not None
