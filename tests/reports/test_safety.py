"""Breach and success rates against worlds whose rates are known, and bounds that know rare events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.step_rules import Judged
from reports.estimators import cumulative_log_weights, scaled_weights
from reports.gate import GateConfig, decide
from reports.intervals import bootstrap_replicates, upper_bound
from reports.outcomes import Outcomes
from reports.records import Evaluation, Safety, evaluation_from_json, evaluation_to_json
from reports.rule_checks import rule_checks
from reports.safety import assess_safety, rate_of, rate_upper_bound
from tests.reports.report_samples import passed_evaluation
from tests.reports.worlds import Log, World, greedy, simulate, small_world

Floats = NDArray[np.float64]
WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)
CANDIDATE = greedy(WORLD, 0.4)


def true_rate(world: World, policy: Floats, breach: Floats) -> float:
    """Expected breaching steps over expected steps, from the visits v = (I - P')^-1 first."""
    step = np.einsum("sa,sat->st", policy, world.transitions)
    visits = np.linalg.solve(np.eye(4) - step.T, world.first)
    return float((visits[:, None] * policy * breach).sum() / visits.sum())


def log_weights(log: Log, policy: Floats = CANDIDATE) -> Floats:
    return cumulative_log_weights(policy[log.states, log.actions], UNIFORM[log.states, log.actions], log.offsets)


def judged(true: NDArray[np.bool_], known: NDArray[np.bool_] | None = None) -> Judged:
    return Judged(true, np.ones_like(true) if known is None else known)


def outcomes(breaches: Mapping[str, Judged], success: Judged | None = None, limit: float = 0.1) -> Outcomes:
    return Outcomes(
        breaches=breaches,
        limits=dict.fromkeys(breaches, limit),
        conditions=dict.fromkeys(breaches, "true"),
        success=success,
        success_condition="" if success is None else "true",
        forbidden=(),
        n_safe_only=0,
        slices=(),
    )


def assessed(log: Log, found: Outcomes, **changes: object) -> Safety:
    given = {"candidate": log_weights(log)}
    arguments: dict[str, object] = {
        "refusals": {}, "alpha": 0.05, "level": 0.95, "n_replicates": 2_000, "rng": np.random.default_rng(0),
        "log_weights": given, "clusters": np.arange(len(log.offsets) - 1),
    }  # fmt: skip
    return assess_safety(found, offsets=log.offsets, **(arguments | changes))  # type: ignore[arg-type]  # by name


def rates(found: tuple[object, ...]) -> dict[str, float | None]:
    return {rate.policy: rate.value for rate in found}  # type: ignore[attr-defined]  # Rate


# By hand: two episodes of 2 and 1 steps, weights (2, 1) and (4); breached at the first step of the first episode, the
# last step unknown to the second condition. Rate 2 / (2 + 1 + 4) = 2/7; without the unknown step 2/3.
def test_a_rate_is_weighted_breaches_over_weighted_judged_steps() -> None:
    weights, offsets = np.log([2.0, 1.0, 4.0]), np.array([0, 2, 3])
    breached = np.array([True, False, False])

    assert rate_of(judged(breached), weights, offsets).value == pytest.approx(2 / 7)
    known = np.array([True, True, False])
    assert rate_of(judged(breached, known), weights, offsets).value == pytest.approx(2 / 3)


def test_the_rates_of_log_and_candidate_are_near_the_truth() -> None:
    rng = np.random.default_rng(3)
    log = simulate(WORLD, UNIFORM, 4_000, rng)
    breach = np.array([[0.3, 0.02], [0.1, 0.0], [0.0, 0.2], [0.05, 0.05]])
    happened = rng.random(len(log.actions)) < breach[log.states, log.actions]

    found = assessed(log, outcomes({"slo": judged(happened)}, success=judged(~happened)))

    breached = rates(found.breaches[0].rates)
    assert breached["log"] == pytest.approx(true_rate(WORLD, UNIFORM, breach), abs=0.01)
    assert breached["candidate"] == pytest.approx(true_rate(WORLD, CANDIDATE, breach), abs=0.02)
    assert found.success is not None
    succeeded = rates(found.success.rates)
    assert succeeded["candidate"] == pytest.approx(1 - breached["candidate"])  # type: ignore[operator]  # floats
    assert found.success.difference == pytest.approx(succeeded["candidate"] - succeeded["log"])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("n", "breach"),
    [
        (60, np.full((4, 2), 0.01)),  # often nothing is seen
        (200, np.array([[0.0, 0.5], [0, 0], [0, 0], [0, 0]])),  # where the candidate seldom goes
        (400, np.full((4, 2), 0.15)),
    ],
)
def test_the_upper_bound_covers_the_true_rate_where_a_bootstrap_alone_does_not(n: int, breach: Floats) -> None:
    truth, n_worlds = true_rate(WORLD, CANDIDATE, breach), 120
    missed, missed_alone = 0, 0
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        log = simulate(WORLD, UNIFORM, n, rng)
        weights, clusters = log_weights(log), np.arange(n)
        rate = rate_of(judged(rng.random(len(log.actions)) < breach[log.states, log.actions]), weights, log.offsets)
        drawn = bootstrap_replicates({"r": rate}, clusters, n_replicates=400, rng=rng)["r"]
        bound = rate_upper_bound(rate, drawn, scaled_weights(weights), clusters, 0.05)
        alone = upper_bound(drawn, 0.05)
        assert bound is not None
        assert alone is not None
        missed += bound < truth
        missed_alone += alone < truth
    # 10 of 120 or fewer at a true rate of 5 % has probability .96 (binomial); measured over 300 logs: 0 to 4.3 %.
    assert missed <= 10
    assert missed <= missed_alone


# 0 of n independent clusters of one step: 1 - alpha^(1/n), which at alpha = .05 is about 3/n (ln 20 = 2.996).
def test_nothing_seen_bounds_at_three_over_n() -> None:
    n = 300
    offsets = np.arange(n + 1)
    log = Log(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(n), offsets)

    breach = assessed(
        log, outcomes({"slo": judged(np.zeros(n, dtype=bool))}), log_weights={"candidate": np.zeros(n)}
    ).breaches[0]

    assert breach.upper_bound == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)
    assert breach.upper_bound == pytest.approx(3 / n, rel=0.01)
    assert breach.n_breaches == 0


# 3 of 100 unweighted one-step episodes: Clopper-Pearson, beta.ppf(.95, 4, 97) = .0757; v has the factor n / (n - 1), so
# that the bound rests on 99 trials, of which 2.97 hit: beta.ppf(.95, 3.97, 97.03 - 1).
def test_unweighted_single_steps_give_the_exact_binomial_bound_or_more() -> None:
    n = 100
    log = Log(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(n), np.arange(n + 1))

    bound = (
        assessed(log, outcomes({"slo": judged(np.arange(n) < 3)}), log_weights={"candidate": np.zeros(n)})
        .breaches[0]
        .upper_bound
    )

    assert bound == pytest.approx(0.0757, abs=0.001)


def test_several_constraints_share_alpha() -> None:
    log = simulate(WORLD, UNIFORM, 300, np.random.default_rng(0))
    happened = judged(np.random.default_rng(1).random(len(log.actions)) < 0.1)

    one = assessed(log, outcomes({"a": happened}))
    four = assessed(log, outcomes(dict.fromkeys("abcd", happened)))

    assert [breach.alpha for breach in four.breaches] == [0.0125] * 4
    assert four.breaches[0].upper_bound > one.breaches[0].upper_bound  # type: ignore[operator]  # both are there


def test_a_condition_that_is_null_everywhere_has_no_rate() -> None:
    log = simulate(WORLD, UNIFORM, 100, np.random.default_rng(0))
    nowhere = np.zeros(len(log.actions), dtype=bool)

    breach = assessed(log, outcomes({"slo": judged(nowhere, nowhere)})).breaches[0]

    assert breach.upper_bound is None
    assert "null on every step" in (breach.refused or "")
    assert breach.n_unjudged == len(log.actions)
    assert [rate.value for rate in breach.rates] == [None, None]


def test_without_weights_or_with_untrusted_ones_only_the_log_has_a_rate() -> None:
    log = simulate(WORLD, UNIFORM, 100, np.random.default_rng(0))
    found = outcomes({"slo": judged(log.actions == 0)})

    unweighted = assessed(log, found, log_weights={}).breaches[0]
    untrusted = assessed(log, found, refusals={"candidate": "the tail is heavy"}).breaches[0]

    for breach in (unweighted, untrusted):
        assert rates(breach.rates)["log"] == pytest.approx((log.actions == 0).mean())
        assert rates(breach.rates)["candidate"] is None
        assert breach.upper_bound is None
    assert untrusted.refused == "the tail is heavy"


def test_one_cluster_gives_no_bound() -> None:
    log = simulate(WORLD, UNIFORM, 50, np.random.default_rng(0))

    breach = assessed(log, outcomes({"slo": judged(log.actions == 0)}), clusters=np.zeros(50)).breaches[0]

    assert breach.upper_bound is None
    assert breach.refused == "fewer than two clusters"


# 2,000 episodes of 5 steps that breach on 30 %; telemetry is missing on every breach and on half of the other steps.
def test_telemetry_that_fails_with_the_service_does_not_hide_its_breaches() -> None:
    rng = np.random.default_rng(0)
    offsets, n_steps = np.arange(2_001) * 5, 10_000
    broken = rng.random(n_steps) < 0.3
    known = ~broken & (rng.random(n_steps) < 0.5)
    log = Log(np.zeros(n_steps, dtype=np.int64), np.zeros(n_steps, dtype=np.int64), np.zeros(n_steps), offsets)
    slo, met = judged(np.zeros(n_steps, dtype=bool), known), judged(known, known)

    found = assessed(log, outcomes({"slo": slo}, success=met), log_weights={"candidate": np.zeros(n_steps)})

    breach = found.breaches[0]
    assert breach.upper_bound is not None
    assert breach.upper_bound > broken.mean()
    assert rates(breach.rates)["candidate"] == pytest.approx(1 - known.mean())
    assert (breach.n_breaches, breach.n_unjudged, breach.n_charged) == (0, (~known).sum(), (~known).sum())
    assert found.success is not None
    assert rates(found.success.rates)["candidate"] == pytest.approx(known.mean())
    evaluation = replace(passed_evaluation(), safety=found)
    slo_check, success_check = rule_checks(evaluation, success_margin=0.1, slice_margin=0.0)
    assert not slo_check.passed
    steps = f"{(~known).sum():,} of 10,000 logged steps, on which the condition is null other than for want of"
    assert steps in slo_check.meaning
    assert slo_check.meaning.endswith("count as breaches.")
    assert steps in success_check.meaning
    assert success_check.meaning.endswith("count as no success.")


def test_an_end_without_a_next_observation_counts_neither_way() -> None:
    rng = np.random.default_rng(0)
    offsets, n_steps = np.arange(401) * 5, 2_000
    log = Log(np.zeros(n_steps, dtype=np.int64), np.zeros(n_steps, dtype=np.int64), np.zeros(n_steps), offsets)
    last = np.arange(n_steps) % 5 == 4
    happened = (rng.random(n_steps) < 0.1) & ~last
    slo = Judged(happened, ~last, last)

    breach = assessed(log, outcomes({"slo": slo}), log_weights={"candidate": np.zeros(n_steps)}).breaches[0]

    assert rates(breach.rates)["candidate"] == pytest.approx(happened.sum() / (~last).sum())
    assert (breach.n_unjudged, breach.n_charged) == (400, 0)


def with_safety(limit: float, share: float = 0.1) -> Evaluation:
    log = simulate(WORLD, UNIFORM, 1_000, np.random.default_rng(0))
    happened = np.random.default_rng(2).random(len(log.actions)) < share
    found = assessed(log, outcomes({"slo": judged(happened)}, success=judged(~happened), limit=limit))
    return replace(passed_evaluation(), decision=None, safety=found)


@pytest.mark.parametrize(("limit", "passed"), [(0.3, True), (0.1, False)])
def test_the_gate_refuses_where_the_bound_exceeds_the_limit(limit: float, passed: bool) -> None:
    decision = decide(with_safety(limit), GateConfig())
    check = next(check for check in decision.checks if check.name == "constraint slo")

    assert decision.passed is passed
    assert check.passed is passed
    assert check.bound == limit
    assert check.value is not None
    assert check.value > 0.1


def test_a_log_that_breaches_the_limit_itself_does_not_excuse_the_candidate() -> None:
    check = next(iter(rule_checks(with_safety(0.05), success_margin=None, slice_margin=0.0)))

    assert not check.passed
    assert "above the limit as well" in check.meaning


def test_success_binds_only_where_a_margin_is_set() -> None:
    evaluation = with_safety(0.3)

    assert [c.name for c in rule_checks(evaluation, success_margin=None, slice_margin=0.0)] == ["constraint slo"]
    wide = list(rule_checks(evaluation, success_margin=0.2, slice_margin=0.0))[1]
    tight = list(rule_checks(evaluation, success_margin=0.0, slice_margin=0.0))[1]
    assert (wide.name, wide.passed, tight.passed) == ("success rate", True, False)


def test_a_success_margin_without_a_success_refuses() -> None:
    check = next(iter(rule_checks(passed_evaluation(), success_margin=0.1, slice_margin=0.0)))

    assert not check.passed
    assert "does not say [success] when" in check.meaning


def test_safety_survives_json() -> None:
    evaluation = with_safety(0.3)

    assert evaluation_from_json(evaluation_to_json(evaluation)) == evaluation
