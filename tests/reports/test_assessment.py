from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from reports.assessment import Assessment, AssessmentConfig, assess, night_episodes_upper
from reports.gate import GateConfig, decide
from reports.trial import Trial, feasible_range
from tests.reports.worlds import GAMMA, evaluate_trial, greedy, make_trial, simulate, small_world

CONFIG = AssessmentConfig(n_replicates=2_000)
GATE = GateConfig(alpha=0.05)
UNIFORM = np.full((4, 2), 0.5)


def found(trial: Trial, gate: GateConfig = GATE) -> Assessment:
    return assess(trial, CONFIG, gate, np.random.default_rng(0))


def estimate(result: Assessment, estimator: str, policy: str = "candidate") -> float | None:
    return next(e.value for e in result.estimates if (e.estimator, e.policy) == (estimator, policy))


def refusal(result: Assessment, estimator: str = "dr") -> str:
    return next(e.refused or "" for e in result.estimates if (e.estimator, e.policy) == (estimator, "candidate"))


def test_estimates_and_their_difference_to_the_log_are_near_the_truth() -> None:
    world = small_world()
    candidate = greedy(world, 0.6)
    log = simulate(world, UNIFORM, 4000, np.random.default_rng(0))
    result = found(make_trial(world, log, UNIFORM, candidate))
    for name in ("dr", "wdr", "wpdis", "pdis", "wis", "is"):
        assert estimate(result, name) == pytest.approx(world.value(candidate), abs=0.2), name
    assert estimate(result, "on_policy", "log") == pytest.approx(world.value(UNIFORM), abs=0.05)
    binding = next(c for c in result.comparisons if c.binding)
    truth = world.value(candidate) - world.value(UNIFORM)
    assert binding.interval is not None
    assert binding.lower_bound is not None
    assert binding.interval.low < truth < binding.interval.high
    assert binding.value == pytest.approx(truth, abs=0.1)
    assert result.deciding_estimator == "dr"
    assert result.overlaps[0].refused is None


def test_a_candidate_that_is_the_logger_has_no_difference_beyond_the_model() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 500, np.random.default_rng(0))
    result = found(make_trial(world, log, UNIFORM, UNIFORM))
    returns = estimate(result, "on_policy", "log")
    for name in ("is", "wis", "pdis", "wpdis"):
        assert estimate(result, name) == pytest.approx(returns, abs=1e-12)
    assert result.overlaps[0].mean_weight == 1.0
    assert result.overlaps[0].effective_sample_size == pytest.approx(500)


def test_same_policy_as_baseline_has_difference_zero_and_never_passes() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 500, np.random.default_rng(1))
    candidate = greedy(world, 0.6)
    trial = make_trial(world, log, UNIFORM, candidate)
    trial = make_trial(world, log, UNIFORM, candidate, baseline=trial.candidate)
    decision = decide(evaluate_trial(trial, CONFIG, GATE, 0), GATE)
    assert not decision.passed
    assert "Nothing new" in next(c.meaning for c in decision.checks if c.name == "something new")
    assert next(c.value for c in decision.checks if c.name == "value against baseline") == 0.0


def test_a_candidate_that_never_does_what_the_log_did_is_refused() -> None:
    world = small_world()
    behavior = np.tile([0.999, 0.001], (4, 1))
    log = simulate(world, behavior, 300, np.random.default_rng(0))
    trial = make_trial(world, log, behavior, np.tile([0.0, 1.0], (4, 1)))
    result = found(trial)
    assert refusal(result) != ""
    decision = decide(evaluate_trial(trial, CONFIG, GATE, 0), GATE)
    assert not decision.passed
    assert decision.certified_share == 0.0


def test_overflowing_weights_are_refused() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 300, np.random.default_rng(0))
    trial = make_trial(world, log, UNIFORM, greedy(world, 0.2), behavior_probs=np.full(len(log.actions), 1e-300))
    assert refusal(found(trial))
    assert not decide(evaluate_trial(trial, CONFIG, GATE, 0), GATE).passed


def test_equal_rewards_give_equal_values() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 300, np.random.default_rng(0))
    n = len(log.actions)
    trial = make_trial(
        world,
        log,
        UNIFORM,
        greedy(world, 0.6),
        rewards=np.ones(n),
        offsets=np.arange(n + 1),  # one step each
        clusters=np.arange(n),
        nights=np.zeros(n),
        truncated=np.zeros(n, dtype=bool),
    )
    trial = replace(trial, candidate=replace(trial.candidate, q=np.ones((n, 2))))
    result = found(trial)
    assert estimate(result, "dr") == 1.0
    assert next(c for c in result.comparisons if c.binding).lower_bound == 0.0


@pytest.mark.parametrize("n", [1, 40])
def test_one_episode_or_one_cluster_has_no_interval(n: int) -> None:
    world = small_world()
    log = simulate(world, UNIFORM, n, np.random.default_rng(2))
    trial = make_trial(world, log, UNIFORM, greedy(world, 0.6), clusters=np.zeros(n))
    decision = decide(evaluate_trial(trial, CONFIG, GATE, 0), GATE)
    assert not decision.passed
    assert decision.certified_share == 0.0


def test_a_deterministic_logger_decides_nothing() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 300, np.random.default_rng(0))
    trial = make_trial(world, log, UNIFORM, greedy(world, 0.6), behavior_probs=np.ones(len(log.actions)))
    evaluation = evaluate_trial(trial, CONFIG, GATE, 0)
    assert evaluation.deciding_estimator is None
    assert evaluation.estimate("direct", "candidate") is not None
    decision = decide(evaluation, GATE)
    assert not decision.passed
    assert "deterministic logger" in decision.reason


def test_estimates_outside_the_feasible_range_are_refused() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 500, np.random.default_rng(1))
    feasible = feasible_range(-9.0, -8.0, GAMMA, 50)
    result = found(make_trial(world, log, UNIFORM, greedy(world, 0.6), feasible=feasible))
    assert "outside the feasible range" in refusal(result)
    assert next(c for c in result.comparisons if c.binding).lower_bound is None


def test_one_sided_check_of_q_values() -> None:
    world = small_world()
    candidate = greedy(world, 0.5)
    log = simulate(world, UNIFORM, 2000, np.random.default_rng(0))
    q = world.q(greedy(world, 0.0))[log.states]  # right for the greedy policy, above the exploring one
    for shift, passed in ((0.0, True), (-5.0, True), (1.5, False)):
        trial = make_trial(world, log, UNIFORM, candidate, own_q=q + shift)
        decision = decide(evaluate_trial(trial, CONFIG, GATE, 0), GATE)
        assert next(c.passed for c in decision.checks if c.name == "Q-values against evaluation") is passed, shift
    broken = q.copy()
    broken[3, 0] = np.nan
    decision = decide(evaluate_trial(make_trial(world, log, UNIFORM, candidate, own_q=broken), CONFIG, GATE, 0), GATE)
    assert not next(c.passed for c in decision.checks if c.name == "finite Q-values")


def test_wis_checks_where_the_table_of_steps_would_be_too_large() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 400, np.random.default_rng(0))
    trial = make_trial(world, log, UNIFORM, greedy(world, 0.6))
    result = assess(trial, CONFIG.model_copy(update={"largest_step_table": 10}), GATE, np.random.default_rng(0))
    assert result.agreement.checking == "wis"
    assert result.agreement.interval is not None
    assert not any(e.estimator == "wpdis" for e in result.estimates)


def test_shocks_of_nights_show_as_a_design_effect() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 1400, np.random.default_rng(0))
    nights = np.arange(1400) % 14
    night_of_step = np.repeat(nights, np.diff(log.offsets))
    shock = np.random.default_rng(1).normal(0, 1.0, 14)[night_of_step] * np.where(log.actions == 0, 1, -1)
    quiet = found(make_trial(world, log, UNIFORM, greedy(world, 0.6), nights=nights))
    loud = found(make_trial(world, log, UNIFORM, greedy(world, 0.6), nights=nights, rewards=log.rewards + shock))
    assert quiet.design_effects[0].p_value > 0.01
    assert loud.design_effects[0].value > 3
    assert loud.design_effects[0].p_value <= 1e-3


def test_upper_bound_of_a_nights_episodes() -> None:
    assert night_episodes_upper(np.zeros(100), 0.01) > 125  # Poisson around an uncertain 100
    steady = np.repeat(np.arange(30), 100)
    assert night_episodes_upper(steady, 0.01) == 100.0
    assert night_episodes_upper(np.r_[steady, np.zeros(100)], 0.01) >= 200.0


def test_feasible_range_of_short_and_long_episodes() -> None:
    costs = feasible_range(-1.0, -0.5, 1.0, 10)
    assert (costs.low, costs.high) == (-10.0, -0.5)  # the best episode is over after one step
    gains = feasible_range(1.0, 2.0, 0.5, 2)
    assert (gains.low, gains.high) == (1.0, 3.0)
    assert feasible_range(None, 1.0, 1.0, 3).low is None


def test_intervals_cover_the_true_value_about_as_often_as_they_claim() -> None:
    world = small_world()
    candidate = greedy(world, 0.6)
    truth = world.value(candidate)
    hits = {"dr": 0, "wpdis": 0}
    n_logs = 100
    for seed in range(n_logs):
        log = simulate(world, UNIFORM, 400, np.random.default_rng(seed))
        result = assess(make_trial(world, log, UNIFORM, candidate), CONFIG, GATE, np.random.default_rng(seed))
        for e in result.estimates:
            if e.estimator in hits:
                hits[e.estimator] += e.interval is None or e.interval.low <= truth <= e.interval.high
    low, high = stats.binom.ppf([0.0005, 0.9995], n_logs, 0.94)
    assert low <= hits["dr"] <= high
    assert low <= hits["wpdis"] <= high


@pytest.mark.parametrize("reward_shift", [-3.0, 0.0])
def test_a_worse_candidate_passes_no_more_often_than_promised(reward_shift: float) -> None:
    # Costs and poor overlap: the candidate is truly worse and would leave heavy weights unseen.
    world = small_world(reward_shift=reward_shift)
    behavior = greedy(world, 0.3)
    candidate = 1.0 - greedy(world, 0.6)
    assert world.value(candidate) < world.value(behavior)
    n_logs, passes = 50, 0
    for seed in range(n_logs):
        log = simulate(world, behavior, 300, np.random.default_rng(seed))
        passes += decide(evaluate_trial(make_trial(world, log, behavior, candidate), CONFIG, GATE, seed), GATE).passed
    assert passes <= stats.binom.ppf(0.999, n_logs, GATE.alpha)


def test_a_candidate_exactly_as_good_passes_at_the_rate_of_alpha_and_a_better_one_often() -> None:
    world = small_world()
    behavior, better = UNIFORM, greedy(world, 0.6)
    gain = world.value(better) - world.value(behavior)
    n_logs, passes = 80, {"equal": 0, "better": 0}
    # A bound above the true gain is what would pass a candidate that gains nothing.
    for seed in range(n_logs):
        log = simulate(world, behavior, 400, np.random.default_rng(seed))
        evaluation = evaluate_trial(make_trial(world, log, behavior, better), CONFIG, GATE, seed)
        passes["better"] += decide(evaluation, GATE).passed
        lower = next(c.lower_bound for c in evaluation.comparisons if c.binding)
        passes["equal"] += lower is not None and lower > gain
    assert passes["equal"] <= stats.binom.ppf(0.999, n_logs, GATE.alpha)
    assert passes["better"] >= 52
