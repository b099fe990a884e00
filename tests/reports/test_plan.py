from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, Replay
from reports import estimators
from reports.gate import GateConfig
from reports.intervals import bootstrap_replicates, lower_bound
from reports.plan import Decidable, LogPlan, PlanError, plan_log
from reports.plan_costs import (
    candidate_move,
    explored_move,
    horizon_of,
    log_cost,
    smallest_exploration,
    variance_of_marginal,
    variance_of_products,
    variance_ratio,
)
from reports.plan_words import plan_columns, plan_facts, plan_rows, plan_sentences, plan_title

N_STATES = 40
GATE_CONFIG = GateConfig(alpha=0.05)
Floats = NDArray[np.float64]
CONTRACT = """
name = "w"
gamma = 1.0
[features.state]
type = "numeric"
[actions]
names = [{names}]
"""


def quoted(n_actions: int) -> str:
    return ", ".join(f'"a{i}"' for i in range(n_actions))


def explorer(n_actions: int, exploration: float) -> Floats:
    """(S, A) one usual action per state, the rest spread evenly."""
    usual = np.arange(N_STATES) % n_actions
    return np.asarray((1 - exploration) * np.eye(n_actions)[usual] + exploration / n_actions)


def changed(behavior: Floats, n_states: int) -> Floats:
    """The same policy with another usual action in the first states."""
    candidate = behavior.copy()
    candidate[:n_states] = np.roll(behavior[:n_states], 1, axis=1)
    return candidate


def world_log(
    behavior: Floats, n: int, seed: int, *, length: int | None = None, bonus: tuple[int, float] = (0, 0.0)
) -> tuple[Replay, NDArray[np.int64]]:
    """Episodes of states that come independently, and the (T,) states; rewards are noise of standard deviation 1.

    Without `length`, lengths are 2 to 8. In the first bonus[0] states the action after the usual one earns bonus[1].
    """
    rng = np.random.default_rng(seed)
    lengths = np.full(n, length) if length else rng.integers(2, 9, size=n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_steps, n_actions = int(offsets[-1]), behavior.shape[1]
    states = rng.integers(N_STATES, size=n_steps)
    actions = (rng.random(n_steps)[:, None] > np.cumsum(behavior[states], axis=1)).sum(axis=1)
    actions = np.minimum(actions, n_actions - 1)
    paid = (states < bonus[0]) & (actions == (states + 1) % n_actions)
    ends = np.zeros(n_steps, dtype=bool)
    ends[offsets[1:] - 1] = True
    replay = Replay(
        contract=contract_from_text(CONTRACT.format(names=quoted(n_actions)), "test"),
        digest="0" * 64,
        observations=Observations({"state": states.astype(np.float64)}, {}),
        available=np.ones((n_steps, n_actions), dtype=bool),
        actions=actions,
        rewards=rng.normal(0.0, 1.0, n_steps) + 1.0 + bonus[1] * paid,
        terminated=ends,
        truncated=np.zeros(n_steps, dtype=bool),
        next_row=np.where(ends, -1, np.arange(n_steps) + 1),
        behavior_prob=behavior[states, actions],
        offsets=offsets,
        episode_ids=np.array([f"e{i}" for i in range(n)], dtype=object),
        clusters=np.arange(n),
        nights=np.datetime64("2024-05-01") + np.arange(n) % 10,
        policy_versions=np.full(n, "", dtype=object),
        split=np.full(n, GATE, dtype=np.int8),
    )
    return replay, states


def row(plan: LogPlan, changed_share: float) -> Decidable:
    return next(row for row in plan.decidable if row.changed_share == changed_share)


def text_of(plan: LogPlan) -> str:
    json.dumps(plan.to_json(), allow_nan=False)
    return "\n".join(plan_sentences(plan))


# --- closed forms


def test_cost_of_one_decision_by_hand() -> None:
    # Exploration .2 over 2 actions: b0 = .9, b1 = .1, d = .8. E[ratio^2] = .1^2 / .9 + .9^2 / .1 = 8.1111.
    p = np.r_[np.full(9, 0.9), 0.1]
    move = candidate_move(p, np.full(10, 2))
    assert (move.usual_prob, move.other_prob, move.moved) == pytest.approx((0.9, 0.1, 0.8))
    assert 1 + move.cost == pytest.approx(0.1**2 / 0.9 + 0.9**2 / 0.1)


def test_cost_of_leaving_a_uniform_log_by_hand() -> None:
    # 34 actions: 1/34 -> c = .95 + .05/34, all others scaled down alike. E[ratio^2] = 34 c^2 + (1 - c)^2 34 / 33.
    move = candidate_move(np.full(100, 1 / 34), np.full(100, 34))
    c = 0.95 + 0.05 / 34
    assert not move.has_usual
    assert 1 + move.cost == pytest.approx(34 * c**2 + (1 - c) ** 2 * 34 / 33)


def test_actions_that_are_never_tried_do_not_count_as_others() -> None:
    # Ten actions, but only three are in play: .8, .1, .1.
    move = candidate_move(np.r_[np.full(8, 0.8), 0.1, 0.1], np.full(10, 10))
    assert move.other_prob == pytest.approx(0.1)


def test_one_tiny_probability_does_not_decide() -> None:
    move = candidate_move(np.r_[np.full(80, 0.8), np.full(19, 0.1), 1e-12], np.full(100, 3))
    assert move.other_prob == pytest.approx(0.1)


def test_certain_and_forced_steps_are_not_open() -> None:
    move = candidate_move(np.array([1.0, 1.0, 0.9, 0.9, 0.1]), np.array([1, 2, 2, 2, 2]))
    assert move.usual_prob == pytest.approx(0.9)
    with pytest.raises(ValueError, match="No decision is open"):
        candidate_move(np.ones(3), np.array([1, 2, 2]))


def test_cost_is_averaged_over_lengths_and_does_not_overflow() -> None:
    assert log_cost(1.0, np.array([1, 3])) == pytest.approx(math.log((2 + 8) / 2))
    assert log_cost(1.0, np.array([100_000])) == pytest.approx(100_000 * math.log(2))
    assert log_cost(0.0, np.array([7, 9])) == pytest.approx(0.0)


def test_variances_by_hand() -> None:
    # Two steps, both open, squared ratio 1 + 1 = 2: products (2 - 1 + 4 - 1) / 2 = 2, marginal (1 + 1) / 2 = 1.
    horizon = horizon_of(np.array([True, True]), np.array([0, 2]), 1.0)
    assert variance_of_products(1.0, horizon) == pytest.approx(2.0)
    assert variance_of_marginal(1.0, horizon) == pytest.approx(1.0)
    assert variance_ratio(1.0, horizon) == pytest.approx((2 + 4) / (2 + 2))
    # The second step counts gamma^2 = 1/4 of the first; if only the first is open its ratio weighs the second too.
    horizon = horizon_of(np.array([True, False]), np.array([0, 2]), 0.5)
    assert horizon.reach.tolist() == pytest.approx([0.0, 1.0])
    assert variance_of_products(1.0, horizon) == pytest.approx(1.0)
    assert variance_of_marginal(1.0, horizon) == pytest.approx(1 / 1.25)
    assert horizon_of(np.ones(3, dtype=bool), np.arange(4), 1.0).one_step


def test_a_thousand_steps_overflow_to_infinity_and_not_to_nothing() -> None:
    horizon = horizon_of(np.ones(5000, dtype=bool), np.array([0, 5000]), 1.0)
    assert variance_of_products(1.0, horizon) == math.inf
    assert variance_ratio(1.0, horizon) == math.inf
    assert variance_of_marginal(1.0, horizon) == pytest.approx(1.0)


def test_smallest_exploration_is_where_the_cost_becomes_affordable() -> None:
    found = smallest_exploration(lambda e: explored_move(e, 3.0).cost <= 4.0)
    assert found is not None
    assert explored_move(found, 3.0).cost == pytest.approx(4.0, rel=0.01)
    assert smallest_exploration(lambda _: False) is None


# --- against simulated worlds


def predicted_and_measured(
    n_actions: int, exploration: float, length: int | None, n_changed: int, seed: int
) -> tuple[float, float, float]:
    """Effective sample size in 4,000 episodes: as planned, exact for the world, and measured on the log."""
    behavior = explorer(n_actions, exploration)
    candidate = changed(behavior, n_changed)
    replay, states = world_log(behavior, 4000, seed, length=length)
    steps = estimators.cumulative_log_weights(candidate[states, replay.actions], replay.behavior_prob, replay.offsets)
    measured = estimators.effective_sample_size(estimators.episode_log_weights(steps, replay.offsets))
    second_moment = float((candidate**2 / behavior).sum(axis=1).mean())  # E[ratio^2] over actions and states
    exact = 4000 / float((second_moment**replay.lengths).mean())
    return row(plan_log(replay, GATE_CONFIG, 1.0), n_changed / N_STATES).products.n_effective, exact, measured


@pytest.mark.parametrize(
    ("n_actions", "exploration", "length", "n_changed"),
    [(4, 0.3, 5, 2), (4, 0.3, None, 4), (2, 0.5, None, 10), (3, 0.2, 1, 4), (6, 0.5, 8, 2)],
)
def test_predicted_effective_sample_size_is_that_of_a_candidate(
    n_actions: int, exploration: float, length: int | None, n_changed: int
) -> None:
    found = np.array([predicted_and_measured(n_actions, exploration, length, n_changed, seed) for seed in range(7)])
    predicted, exact, measured = np.median(found, axis=0)
    assert predicted == pytest.approx(exact, rel=0.05)
    # One draw of 4,000 heavy-tailed weights may lie far off either way; the median lies above, as the tail is missed:
    # in the second case, with 26 episodes to an effective one, by a factor of 3 to 4.
    assert predicted / 3 < measured < predicted * (5 if (n_actions, length) == (4, None) else 3)


def test_one_step_effective_sample_size_is_predicted_closely_on_every_log() -> None:
    for seed in range(5):
        predicted, _, measured = predicted_and_measured(3, 0.2, 1, 4, seed)
        assert measured == pytest.approx(predicted, rel=0.2)


def test_predicted_effective_sample_size_of_a_greedy_candidate_on_a_uniform_log() -> None:
    behavior = np.full((N_STATES, 34), 1 / 34)
    replay, states = world_log(behavior, 20_000, seed=1, length=1)
    candidate = behavior.copy()
    candidate[:4] = 0.95 * np.eye(34)[:4] + 0.05 / 34
    log_weights = np.log(candidate[states, replay.actions] * 34)
    plan = plan_log(replay, GATE_CONFIG, 1.0)
    measured = estimators.effective_sample_size(log_weights)
    assert measured == pytest.approx(row(plan, 0.10).products.n_effective, rel=0.2)
    assert "decidable from an improvement of" in text_of(plan)
    assert "does not say it more closely" in text_of(plan)


def found_share(behavior: Floats, n: int, length: int, estimator: str, improvement: float, n_logs: int) -> float:
    """Share of logs in which the gate's bound says that a candidate changed in 10 of 40 states is better than the log.

    The bound is the one-sided 95% percentile of the cluster bootstrap; the model of the values knows the mean reward.
    """
    candidate, found = changed(behavior, 10), 0
    bonus = improvement / (0.25 * length * float(behavior[0].max() - behavior[0].min()))
    for seed in range(n_logs):
        replay, states = world_log(behavior, n, seed=100 + seed, length=length, bonus=(10, bonus))
        probs = candidate[states, replay.actions]
        log_weights = (
            estimators.cumulative_log_weights(probs, replay.behavior_prob, replay.offsets)
            if estimator == "dr"
            else np.log(probs / replay.behavior_prob)  # states come independently: both policies visit them alike
        )
        remaining = (length - replay.step_in_episode) * float(replay.rewards.mean())
        value = estimators.doubly_robust(replay.rewards, remaining, remaining, log_weights, replay.offsets, 1.0)
        returns = estimators.on_policy_returns(replay.rewards, replay.offsets, 1.0)
        sums = {"difference": estimators.mean_of(value.terms - returns)}
        draws = bootstrap_replicates(sums, replay.clusters, n_replicates=400, rng=np.random.default_rng(seed))
        bound = lower_bound(draws["difference"], 0.05)
        assert bound is not None
        found += bound > 0
    return found / n_logs


@pytest.mark.parametrize(
    ("exploration", "n", "length", "estimator"),
    [(0.5, 600, 1, "dr"), (0.2, 1000, 1, "dr"), (0.6, 600, 3, "drl"), (0.4, 300, 40, "drl"), (0.15, 600, 40, "drl")],
)
def test_an_improvement_of_the_smallest_difference_is_found_as_often_as_promised(
    exploration: float, n: int, length: int, estimator: str
) -> None:
    behavior = explorer(3, exploration)
    plan = plan_log(world_log(behavior, n, seed=0, length=length)[0], GATE_CONFIG, 1.0)
    found = row(plan, 0.25)
    assert found.estimator == estimator
    smallest = found.chosen.smallest_difference
    assert smallest is not None
    power = found_share(behavior, n, length, estimator, smallest, 80)
    assert 0.6 <= power <= 0.95, f"promised {0.8}, found in {power:.0%} of the logs"
    assert found_share(behavior, n, length, estimator, 0.0, 80) <= 0.14  # 99.9 % of binomial(80, .05)


def test_what_a_step_costs_grows_with_the_horizon_by_products_alone() -> None:
    short, long = (plan_log(world_log(explorer(3, 0.3), 2000, seed=0, length=n)[0], GATE_CONFIG, 1.0) for n in (2, 20))
    assert row(short, 0.10).marginal is not None
    assert row(long, 0.10).marginal is not None
    by = {name: [row(plan, 0.10) for plan in (short, long)] for name in ("products", "marginal")}
    relative = {name: [getattr(r, name).n_effective for r in found] for name, found in by.items()}
    assert relative["marginal"][0] == pytest.approx(relative["marginal"][1], rel=0.1)
    assert relative["products"][0] > 50 * relative["products"][1]
    assert [row(plan, 0.02).estimator for plan in (short, long)] == ["dr", "drl"]


def test_a_night_that_shares_a_shock_of_its_actions_is_told_and_allowed_for() -> None:
    replay, _ = world_log(np.tile([0.6, 0.2, 0.2], (N_STATES, 1)), 2000, seed=0, length=2)
    shock = np.random.default_rng(0).normal(0, 1.5, 10)[np.arange(2000) % 10][replay.episode_of_step]
    shaken = replace(replay, rewards=replay.rewards + shock * np.where(replay.actions == 0, 1, -1))
    quiet, loud = plan_log(replay, GATE_CONFIG, 0.5), plan_log(shaken, GATE_CONFIG, 0.5)
    assert not quiet.night_effect_refuses
    assert loud.night_effect_refuses
    assert "Set episodes.cluster so that a night stays whole" in text_of(loud)
    assert loud.return_sd is not None
    assert quiet.return_sd is not None
    assert loud.return_sd > 2 * quiet.return_sd


# --- what a person reads


def test_a_plan_counts_what_is_there() -> None:
    replay, _ = world_log(explorer(3, 0.3), 1000, seed=0, length=4)
    replay = replace(replay, truncated=replay.terminated & (replay.episode_of_step < 100))
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    assert (plan.n_episodes, plan.n_steps, plan.n_decisions, plan.n_clusters, plan.n_nights) == (
        1000,
        4000,
        4000,
        1000,
        10,
    )
    assert (plan.n_gate, plan.mean_length, plan.longest_length) == (400.0, 4.0, 4)
    assert plan.truncated_share == pytest.approx(0.1)
    assert plan.return_sd == pytest.approx(2.0, rel=0.1)  # four rewards of standard deviation 1
    assert sum(action.n_taken for action in plan.actions) == 4000
    assert plan.exploration is not None
    assert plan.exploration.low <= 0.2 <= plan.exploration.high  # .3 uniform over three: .2 not on the usual action
    text = text_of(plan)
    assert "1,000 episodes with 4,000 steps" in text
    assert "10% of the episodes are cut by the log" in text
    assert "about 400 of the episodes" in text


def test_two_actions_show_the_exploration_exactly() -> None:
    replay, _ = world_log(explorer(2, 0.4), 500, seed=0, length=2)
    plan = plan_log(replay, GATE_CONFIG, 0.5)
    assert plan.exploration is not None
    assert plan.exploration.low == pytest.approx(0.2)
    assert "The log explores in 20% of its decisions." in text_of(plan)


def test_dependent_episodes_widen_the_difference() -> None:
    replay, _ = world_log(explorer(3, 0.3), 1000, seed=0, length=3)
    clusters = np.arange(1000) // 20
    shocks = np.random.default_rng(0).normal(0, 1, 50)
    shared = replace(replay, clusters=clusters, rewards=replay.rewards + shocks[clusters][replay.episode_of_step])
    alone, together = (plan_log(r, GATE_CONFIG, 0.5) for r in (replace(shared, clusters=np.arange(1000)), shared))
    assert together.return_sd is not None
    assert alone.return_sd is not None
    assert together.return_sd > 2 * alone.return_sd


def test_episodes_needed_would_decide_the_wanted_improvement() -> None:
    replay, _ = world_log(explorer(3, 0.3), 1000, seed=0, length=3)
    plan = plan_log(replay, GATE_CONFIG, 0.5)
    found = row(plan, 0.05)
    assert found.episodes_needed is not None
    assert found.chosen.smallest_difference is not None
    growth = found.episodes_needed / plan.n_episodes
    wanted = found.chosen.smallest_difference / math.sqrt(growth)
    assert wanted == pytest.approx(0.05 * plan.mean_return, rel=0.01)
    assert found.nights_needed == math.ceil(found.episodes_needed / 100)


def test_a_long_horizon_is_decided_by_marginalized_weights_and_says_what_products_would_take() -> None:
    replay, _ = world_log(explorer(3, 0.1), 300, seed=0, length=130)
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    found = row(plan, 0.05)
    assert found.log10_cost > 40
    assert found.products.undecidable == "the gate needs 30 effective episodes, this log gives under 0.1"
    assert found.estimator == "drl"
    assert found.chosen.smallest_difference is not None
    text = text_of(plan)
    assert "With dr it would be undecidable by dr: the gate needs 30 effective episodes" in text
    assert "takes the candidate to visit states about as often as the log" in text


def test_exploration_that_is_said_to_be_needed_decides_the_wanted_improvement() -> None:
    replay, _ = world_log(explorer(3, 0.05), 400, seed=0, length=3)
    needed = row(plan_log(replay, GATE_CONFIG, 1.0), 0.25).exploration_needed
    assert needed is not None
    explored = plan_log(world_log(explorer(3, needed), 400, seed=0, length=3)[0], GATE_CONFIG, 1.0)
    smallest = row(explored, 0.25).chosen.smallest_difference
    assert smallest is not None
    assert smallest == pytest.approx(0.05 * explored.mean_return, rel=0.15)


def test_the_table_is_short_and_says_nights_or_exploration() -> None:
    replay, _ = world_log(explorer(3, 0.1), 300, seed=0, length=3)
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    assert len(plan_rows(plan)) == 4
    assert all(len(cells) == len(plan_columns()) for cells in plan_rows(plan))
    assert "nights, or" in plan_rows(plan)[1][-1]
    assert plan_rows(plan)[1][-1].endswith("exploration")
    assert plan_facts(plan)["horizon"] == "3 steps, at most 3"
    assert plan_facts(plan)["refused"] == ""
    balanced = np.where(replay.episode_of_step % 2, 1.0, -1.0)
    wanted = plan_log(replace(replay, rewards=balanced), GATE_CONFIG, 0.4)
    assert wanted.mean_return == 0.0
    assert [cells[-1] for cells in plan_rows(wanted)] == [""] * 4


def test_an_endless_horizon_stays_finite() -> None:
    replay, _ = world_log(explorer(3, 0.1), 20, seed=0, length=20_000)
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    assert row(plan, 0.25).products.n_effective == 0.0
    assert "undecidable" in text_of(plan)


def test_a_log_without_propensities_is_told_to_log_or_estimate_them() -> None:
    replay, _ = world_log(explorer(3, 0.3), 200, seed=0)
    plan = plan_log(replace(replay, behavior_prob=np.full(replay.n_steps, np.nan)), GATE_CONFIG, 0.4)
    assert plan.refused == "no episode has all its behavior probabilities"
    assert plan.exploration is None
    assert plan.decidable == ()
    assert plan.ab_test_difference is not None
    text = text_of(plan)
    assert 'Log behavior_prob, or set behavior.propensity = "estimated"' in text
    assert "decides nothing" in text


def test_missing_propensities_that_will_be_estimated_are_no_verdict() -> None:
    replay, _ = world_log(explorer(3, 0.3), 200, seed=0)
    text = f'{CONTRACT.format(names=quoted(3))}[behavior]\npropensity = "estimated"\n'
    contract = contract_from_text(text, "test")
    plan = plan_log(replace(replay, contract=contract, behavior_prob=np.full(replay.n_steps, np.nan)), GATE_CONFIG, 0.4)
    assert "The evaluation will estimate the missing ones" in text_of(plan)
    assert "decides nothing" not in text_of(plan)


def test_episodes_that_miss_a_probability_do_not_count() -> None:
    replay, _ = world_log(explorer(3, 0.3), 1000, seed=0, length=3)
    p = replay.behavior_prob.copy()
    p[:300:3] = np.nan  # one step of each of the first 100 episodes
    plan = plan_log(replace(replay, behavior_prob=p), GATE_CONFIG, 0.5)
    assert (plan.n_missing, plan.n_usable, plan.n_gate) == (100, 900, 450.0)
    assert plan.decidable
    assert "100 of 3,000 steps have no behavior probability; 900 episodes have them all" in text_of(plan)


def test_a_deterministic_logger_decides_nothing_and_is_told_how_much_to_explore() -> None:
    replay, _ = world_log(explorer(3, 0.0), 300, seed=0, length=5)
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    assert plan.decidable == ()
    assert [changed_share for changed_share, _ in plan.needed_exploration] == [0.02, 0.05, 0.10, 0.25]
    text = text_of(plan)
    assert "deterministic logger" in text
    assert "take an available action uniformly in this share of the decisions" in text


def test_a_logger_that_is_certain_in_places_is_told_so() -> None:
    # Where an action is available but never has a probability, 1[A = a] / p averages below 1: the gate would refuse.
    behavior = explorer(3, 0.3)
    behavior[20:] = explorer(3, 0.0)[20:]
    text = text_of(plan_log(world_log(behavior, 2000, seed=0, length=4)[0], GATE_CONFIG, 0.4))
    assert "has probabilities too large, or none at all in part of the steps that offered it" in text
    assert "of the decisions the log was certain" in text


def test_a_few_certain_decisions_are_not_open() -> None:
    behavior = explorer(3, 0.3)
    behavior[39:] = explorer(3, 0.0)[39:]
    replay, states = world_log(behavior, 300, seed=0, length=1)
    plan = plan_log(replay, GATE_CONFIG, 0.4)
    assert plan.move is not None
    assert plan.move.usual_prob == pytest.approx(0.8)
    n_open = int((states < 39).sum())
    cost = (n_open * (1 + 0.10 * plan.move.cost) + 300 - n_open) / 300
    assert row(plan, 0.10).log10_cost == pytest.approx(math.log10(cost))


def test_wrong_probabilities_and_a_single_cluster_are_refused() -> None:
    replay, _ = world_log(explorer(3, 0.3), 500, seed=0)
    wrong = plan_log(replace(replay, behavior_prob=replay.behavior_prob / 3), GATE_CONFIG, 0.4)
    assert "has probabilities too small: their inverse averages to" in (wrong.refused or "")
    single = plan_log(replace(replay, clusters=np.zeros(500, dtype=np.int64)), GATE_CONFIG, 0.4)
    assert "one cluster" in text_of(single)
    assert single.return_sd is None


def test_steps_without_a_choice_cost_nothing() -> None:
    replay, _ = world_log(explorer(3, 0.3), 500, seed=0, length=2)
    available = replay.available.copy()
    forced = replay.step_in_episode == 0
    available[forced] = np.eye(3, dtype=bool)[replay.actions[forced]]
    p = np.where(forced, 1.0, replay.behavior_prob)
    plan = plan_log(replace(replay, available=available, behavior_prob=p), GATE_CONFIG, 0.5)
    assert plan.move is not None
    assert plan.n_decisions == 500
    assert row(plan, 0.10).log10_cost == pytest.approx(math.log10(1 + 0.10 * plan.move.cost))


def test_actions_hardly_or_never_taken_are_named() -> None:
    behavior = explorer(4, 0.0) * 0.0 + np.array([0.7, 0.298, 0.002, 0.0])
    text = text_of(plan_log(world_log(behavior, 500, seed=0, length=2)[0], GATE_CONFIG, 0.4))
    assert "Never taken, so nothing can be said of them: a3." in text
    assert "Taken fewer than 10 times: a2 (" in text


def test_too_few_gate_episodes_are_undecidable_even_where_all_count() -> None:
    plan = plan_log(world_log(explorer(2, 0.9), 150, seed=0, length=1)[0], GATE_CONFIG, 0.4)
    assert row(plan, 0.02).chosen.undecidable == "the gate needs 100 episodes, this log gives 60"
    assert plan_rows(plan)[0][1] == "undecidable: the gate needs 100 episodes, this log gives 60"


def test_heading_says_how_much_probability_the_imagined_candidates_move() -> None:
    # Of two actions the log takes the usual one in .55 and the other in .45 of its decisions: .1 is moved.
    title = plan_title(plan_log(world_log(explorer(2, 0.9), 150, seed=0, length=1)[0], GATE_CONFIG, 0.4))
    assert "moving 10% of the probability to another action" in title
    assert title.endswith("is not promised. A candidate that")


def test_rewards_that_are_all_the_same_leave_nothing_to_improve() -> None:
    replay = world_log(explorer(2, 0.9), 400, seed=0, length=3)[0]
    plan = plan_log(replace(replay, rewards=np.full(replay.n_steps, 2.0)), GATE_CONFIG, 0.4)
    assert plan.refused == "every reward is 2, so there is nothing to improve and no policy can be told from another"
    assert (plan.decidable, plan.needed_exploration, plan.ab_test_difference) == ((), (), None)
    assert "this log decides nothing: every reward is 2" in text_of(plan)


def test_the_same_reward_in_episodes_of_unlike_length_can_be_improved() -> None:
    replay = world_log(explorer(2, 0.9), 400, seed=0)[0]  # of 2 to 8 steps
    plan = plan_log(replace(replay, rewards=np.full(replay.n_steps, 2.0)), GATE_CONFIG, 0.4)
    assert plan.refused is None


def test_bad_arguments_and_empty_logs() -> None:
    replay, _ = world_log(explorer(3, 0.3), 20, seed=0)
    with pytest.raises(ValueError, match=r"gate_share is 0.0, wanted a share in \(0, 1\]"):
        plan_log(replay, GATE_CONFIG, 0.0)
    with pytest.raises(PlanError, match="no episode to plan with"):
        plan_log(replay.subset(np.zeros(20, dtype=bool)), GATE_CONFIG, 0.4)
