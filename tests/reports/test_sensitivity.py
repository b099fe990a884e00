from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from reports.assessment import AssessmentConfig
from reports.gate import GateConfig, decide
from reports.log_pictures import sensitivity_picture, sensitivity_words
from reports.records import Sensitivity
from reports.sensitivity import (
    SteppedDifference,
    balancing_price,
    best_terms,
    measure_sensitivity,
    odds_range,
    stepped_difference,
    worst_terms,
)
from reports.trial import estimators_of, step_weights_of
from tests.reports.worlds import World, evaluate_trial, greedy, make_trial, simulate, small_world

CONFIG = AssessmentConfig(n_replicates=2_000)
GATE = GateConfig(alpha=0.05)
UNIFORM = np.full((4, 2), 0.5)


def stepped(moved: list[float], p: list[float], lengths: list[int], **changes: object) -> SteppedDifference:
    fields: dict[str, object] = {
        "base": np.zeros(len(lengths)),
        "moved": np.array(moved),
        "weights": np.ones(len(moved)),
        "behavior_probs": np.array(p),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "products": True,
    }
    return SteppedDifference(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def drawn(seed: int, lengths: list[int], *, products: bool = True) -> SteppedDifference:
    rng, n = np.random.default_rng(seed), sum(lengths)
    return SteppedDifference(
        base=rng.normal(size=len(lengths)),
        moved=rng.normal(size=n),
        weights=rng.uniform(0, 3, size=n),
        behavior_probs=rng.uniform(0.05, 1, size=n),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        products=products,
    )


def value_at(difference: SteppedDifference, s: np.ndarray) -> np.ndarray:
    """(N,) terms where p / p* is (T,) s, by the definition."""
    found = difference.base.copy()
    for i, (start, end) in enumerate(zip(difference.offsets[:-1], difference.offsets[1:], strict=True)):
        own = s[start:end]
        found[i] += (difference.moved[start:end] * (np.cumprod(own) if difference.products else own)).sum()
    return found


def test_range_of_the_odds_by_hand() -> None:
    # p = .5: odds 1, so within [1/2, 2] and p* in [1/3, 2/3]: p / p* in [.75, 1.5]. A certain step stays certain.
    low, high = odds_range(np.array([0.5, 1.0]), 2.0)
    assert (low.tolist(), high.tolist()) == ([0.75, 1.0], [1.5, 1.0])
    with pytest.raises(ValueError, match=r"factor is 0.5"):
        odds_range(np.array([0.5]), 0.5)


def test_one_step_worst_case_by_hand() -> None:
    # Four rows at p = .5, weights 2, 2, 0, 0, corrections 1 and -1: moved 2, -2. s in [.75, 1.5] with s1 + s2 = 2:
    # the smallest 2 s1 - 2 s2 has s1 = .75, s2 = 1.25: -1, over 4 rows -.25. Without the constraint it were -.375.
    weights = np.array([2.0, 2.0, 0.0, 0.0])
    difference = stepped([2.0, -2.0, 0.0, 0.0], [0.5] * 4, [1] * 4, weights=weights)
    assert worst_terms(difference, 2.0).mean() == pytest.approx(-0.25)
    assert best_terms(difference, 2.0).mean() == pytest.approx(0.25)


def test_two_step_worst_case_by_hand() -> None:
    # p = .5 and factor 2: s in [.75, 1.5]. From the end: 1.5 * -2 = -3, then 1.5 * (1 - 3) = -3; as logged 1 - 2 = -1.
    # Best: .75 * -2 = -1.5, then .75 * (1 - 1.5) = -.375.
    difference = stepped([1.0, -2.0], [0.5, 0.5], [2])
    assert worst_terms(difference, 2.0) == pytest.approx([-3.0])
    assert best_terms(difference, 2.0) == pytest.approx([-0.375])
    # With ratios of their own steps alone: .75 * 1 + 1.5 * -2 and 1.5 * 1 + .75 * -2.
    apart = replace(difference, products=False)
    assert worst_terms(apart, 2.0) == pytest.approx([-2.25])
    assert best_terms(apart, 2.0) == pytest.approx([0.0])


@given(st.integers(0, 10_000), st.floats(1.0, 6.0), st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_step_bound_is_that_of_a_linear_program(seed: int, factor: float, paired: bool) -> None:
    difference = drawn(seed, [1] * 12)
    if paired:  # weights of a difference of two policies have both signs
        difference = replace(difference, weights=difference.weights - 1.5)
    low, high = odds_range(difference.behavior_probs, factor)
    program = optimize.linprog(
        difference.moved,
        A_eq=difference.weights[None, :],
        b_eq=[difference.weights.sum()],
        bounds=list(zip(low, high, strict=True)),
    )
    expected = (difference.base.sum() + program.fun) / 12
    assert worst_terms(difference, factor).mean() == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10_000), st.floats(1.0, 4.0), st.booleans())
@settings(max_examples=60, deadline=None)
def test_bounds_hold_whatever_the_errors_within_the_factor_and_are_attained(
    seed: int, factor: float, products: bool
) -> None:
    difference = drawn(seed, [1, 3, 2, 5, 1], products=products)
    low, high = odds_range(difference.behavior_probs, factor)
    worst, best = worst_terms(difference, factor), best_terms(difference, factor)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        s = np.where(rng.random(len(low)) < 0.5, low, high) if rng.random() < 0.5 else rng.uniform(low, high)
        found = value_at(difference, s)
        assert np.all(worst <= found + 1e-9), "an allowed error lies below the bound"
        assert np.all(found <= best + 1e-9), "an allowed error lies above the bound"
    # Attained: of all corners of the two-step episode one is the bound.
    corners = [
        value_at(difference, np.where(np.arange(len(low)) == 4, a, np.where(np.arange(len(low)) == 5, b, 1.0)))[2]
        for a in (low[4], high[4])
        for b in (low[5], high[5])
    ]
    assert min(corners) == pytest.approx(worst[2])
    assert max(corners) == pytest.approx(best[2])


@given(st.integers(0, 10_000), st.sampled_from([[1] * 8, [2, 4, 1, 3]]))
@settings(max_examples=40, deadline=None)
def test_factor_1_is_the_estimate_and_larger_factors_are_worse(seed: int, lengths: list[int]) -> None:
    difference = drawn(seed, lengths)
    estimate = value_at(difference, np.ones(len(difference.moved)))
    assert worst_terms(difference, 1.0) == pytest.approx(estimate)
    worst = [float(worst_terms(difference, f).mean()) for f in (1.0, 1.1, 1.5, 2.0, 4.0)]
    best = [float(best_terms(difference, f).mean()) for f in (1.0, 1.1, 1.5, 2.0, 4.0)]
    assert np.all(np.diff(worst) <= 1e-9)
    assert np.all(np.diff(best) >= -1e-9)


def test_weights_of_zero_cost_nothing() -> None:
    assert balancing_price(np.zeros(3), np.zeros(3), np.full(3, 0.5), np.full(3, 2.0)) == 0.0


def test_steps_of_the_deciding_estimate_add_up_to_it() -> None:
    world = small_world()
    candidate, other = greedy(world, 0.6), greedy(world, 0.9)
    log = simulate(world, UNIFORM, 500, np.random.default_rng(0))
    against = make_trial(world, log, UNIFORM, other).candidate
    for baseline in (None, against):
        trial = make_trial(world, log, UNIFORM, candidate, baseline=baseline)
        difference = stepped_difference(
            trial, step_weights_of(trial).product, "baseline" if baseline else None, products=True
        )
        sums = estimators_of(trial, step_weights_of(trial), largest_step_table=1)
        expected = sums["dr/candidate"].value - sums["dr/baseline" if baseline else "on_policy/log"].value
        assert worst_terms(difference, 1.0).mean() == pytest.approx(expected)


@pytest.mark.parametrize("one_step", [True, False])
def test_bounds_contain_the_truth_where_the_logged_odds_are_wrong_within_the_factor(one_step: bool) -> None:
    world = small_world()
    if one_step:
        world = World(np.zeros_like(world.transitions), world.rewards, world.first)
    behavior = np.array([[0.3, 0.7], [0.5, 0.5], [0.6, 0.4], [0.4, 0.6]])
    candidate = greedy(world, 0.5)
    truth = world.value(candidate) - world.value(behavior)
    off = np.array([1.4, 1 / 1.4, 1.3, 1.0])[:, None] ** np.array([1, -1])  # a different error in every state
    odds = behavior / (1 - behavior) * off
    believed = odds / (1 + odds)
    missed = 0
    for seed in range(10):
        log = simulate(world, behavior, 4000, np.random.default_rng(seed))
        # A model that knows nothing, so that everything hangs on the probabilities.
        trial = make_trial(world, log, believed, candidate)
        trial = replace(trial, candidate=replace(trial.candidate, q=np.zeros((len(log.actions), 2))))
        difference = stepped_difference(trial, step_weights_of(trial).product, None, products=True)
        as_logged, tight = worst_terms(difference, 1.0), worst_terms(difference, 1.4)
        assert tight.mean() < truth < best_terms(difference, 1.4).mean()
        missed += abs(as_logged.mean() - truth) > 4 * as_logged.std() / np.sqrt(len(as_logged))
    assert missed >= 8, "the error would not have been noticed anyway"


def found_in(policy: np.ndarray, n: int = 2000, **changes: object) -> tuple[Sensitivity, bool]:
    world = small_world()
    log = simulate(world, UNIFORM, n, np.random.default_rng(0))
    evaluation = evaluate_trial(make_trial(world, log, UNIFORM, policy, **changes), CONFIG, GATE, 0)
    assert evaluation.sensitivity is not None
    value = next(c for c in decide(evaluation, GATE).checks if c.name == "value against baseline")
    return evaluation.sensitivity, value.passed


def test_a_verdict_turns_where_the_curve_meets_the_margin() -> None:
    world = small_world()
    found, passed = found_in(greedy(world, 0.6))
    assert passed
    assert found.passes
    assert found.turns_at is not None
    below = max(p.factor for p in found.points if p.worst_bound > 0)
    above = min(p.factor for p in found.points if p.worst_bound <= 0)
    assert below < found.turns_at <= above
    assert f"factor of {found.turns_at:.3g}" in sensitivity_words(found)
    worse, passed = found_in(1.0 - greedy(world, 0.6))
    assert not passed
    assert not worse.passes
    assert worse.turns_at is not None
    assert "could hide that it clears the margin" in sensitivity_words(worse)


def test_the_gate_may_ask_for_a_verdict_that_stands_wrong_odds() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 2000, np.random.default_rng(0))
    for tolerated, passed in ((1.2, True), (3.0, False)):
        gate = GateConfig(alpha=0.05, tolerated_odds_factor=tolerated)
        evaluation = evaluate_trial(make_trial(world, log, UNIFORM, greedy(world, 0.6)), CONFIG, gate, 0)
        decision = decide(evaluation, gate)
        check = next(c for c in decision.checks if c.name == "wrong probabilities")
        assert check.passed is passed
        assert decision.passed is passed


def test_nothing_is_measured_where_there_is_no_verdict_to_turn() -> None:
    world = small_world()
    log = simulate(world, UNIFORM, 300, np.random.default_rng(0))
    without = make_trial(world, log, UNIFORM, greedy(world, 0.6), behavior_probs=np.full(len(log.actions), np.nan))
    evaluation = evaluate_trial(without, CONFIG, GATE, 0)
    assert evaluation.sensitivity is not None
    assert "have no behavior probability" in (evaluation.sensitivity.refused or "")
    assert sensitivity_picture(evaluation) is None
    overflowing, _ = found_in(greedy(world, 0.2), 300, behavior_probs=np.full(len(simulated(300)), 1e-300))
    assert overflowing.refused is not None


def simulated(n: int) -> np.ndarray:
    return simulate(small_world(), UNIFORM, n, np.random.default_rng(0)).actions


def test_a_candidate_that_is_the_baseline_cannot_be_turned() -> None:
    world = small_world()
    candidate = make_trial(world, simulate(world, UNIFORM, 2000, np.random.default_rng(0)), UNIFORM, UNIFORM).candidate
    found, passed = found_in(UNIFORM, baseline=candidate)
    assert not passed
    assert found.turns_at is None
    assert all(p.worst == p.best == 0.0 for p in found.points)


def test_long_episodes_explode_without_a_number_that_is_none() -> None:
    rng = np.random.default_rng(0)
    difference = stepped(
        list(rng.normal(0.01, 0.1, 288 * 20)), [0.5] * (288 * 20), [288] * 20, base=rng.normal(1, 0.1, 20)
    )
    found = measure_sensitivity(difference, np.arange(20), 0.5, 0.0)
    assert found.turns_at is not None
    assert 1.0 < found.turns_at < 1.05
    assert all(np.isfinite([p.worst, p.worst_bound, p.best, p.best_bound]).all() for p in found.points)
