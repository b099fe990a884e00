from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from reports.evaluate_config import AssessmentConfig
from reports.gate import GateConfig, decide
from reports.records import (
    BreachRate,
    Comparison,
    DesignEffect,
    Evaluation,
    FeasibleRange,
    Interval,
    Overlap,
    QClaim,
    Rate,
    Safety,
)
from tests.reports.worlds import evaluate_trial, greedy, make_trial, simulate, small_world

GATE = GateConfig(alpha=0.05, harm_budget=5.0)


@pytest.fixture(scope="module")
def good() -> Evaluation:
    """An evaluation that passes, with 100 episodes a night at most and returns within [-10, 10]."""
    world, behavior = small_world(), np.full((4, 2), 0.5)
    log = simulate(world, behavior, 1000, np.random.default_rng(3))
    trial = make_trial(world, log, behavior, greedy(world, 0.6), feasible=FeasibleRange(-10.0, 10.0, 30))
    evaluation = evaluate_trial(trial, AssessmentConfig(n_replicates=2000), GATE, 0)
    assert decide(evaluation, GATE).passed
    return evaluation


def with_bounds(evaluation: Evaluation, lower: float | None, **changes: object) -> Evaluation:
    """The same evaluation with another lower bound of the difference to the baseline."""
    comparisons = tuple(
        replace(c, lower_bound=lower, **changes) if c.against == "baseline" and c.binding else c  # type: ignore[arg-type]  # fields by name
        for c in evaluation.comparisons
    )
    return replace(evaluation, comparisons=comparisons)


def failed(evaluation: Evaluation, gate: GateConfig = GATE) -> list[str]:
    decision = decide(evaluation, gate)
    assert decision.passed == (not decision.failed_checks)
    return [check.name for check in decision.failed_checks]


def test_pass_says_why_and_certifies_everything(good: Evaluation) -> None:
    decision = decide(good, GATE)
    assert decision.reason.startswith("Passed: with 0.95 confidence 7 earns at least")
    assert (decision.certified_share, decision.largest_loss) == (1.0, 0.0)
    assert decision.certified_reason == "No loss at 0.95 confidence: any share keeps within the budget of 5 a night."


@pytest.mark.parametrize(("lower", "margin", "passed"), [(0.1, 0.0, True), (0.0, 0.0, False), (-0.1, 0.2, True)])
def test_lower_bound_must_lie_above_minus_the_margin(
    good: Evaluation, lower: float, margin: float, passed: bool
) -> None:
    decision = decide(with_bounds(good, lower), GateConfig(alpha=0.05, margin=margin))
    assert decision.passed is passed


def test_certified_share_spends_the_harm_budget(good: Evaluation) -> None:
    # At most .5 lost by each of 100 episodes is 50 a night; a budget of 5 allows a tenth of the traffic.
    decision = decide(with_bounds(good, -0.5), GATE)
    assert not decision.passed
    assert decision.largest_loss == 0.5
    assert decision.certified_share == pytest.approx(0.1)


def test_a_wider_interval_certifies_less(good: Evaluation) -> None:
    shares = [decide(with_bounds(good, lower), GATE).certified_share for lower in (0.1, -0.01, -0.1, -1.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] == 1.0  # 1 a night is within the budget


def test_loss_is_capped_by_what_the_baseline_has_to_lose(good: Evaluation) -> None:
    # The baseline earns at most -7 and nothing earns less than -10: more than 3 cannot be lost.
    decision = decide(with_bounds(good, -50.0, against_upper_bound=-7.0), GATE)
    assert decision.largest_loss == 3.0
    assert decision.certified_share == pytest.approx(5 / 300)


def test_damaged_episodes_are_charged_in_what_the_baseline_has_to_lose(good: Evaluation) -> None:
    # .99 * -7 + .01 * 10 - (-10) = 3.17: in one episode of a hundred the baseline may have earned all that is feasible.
    damaged = replace(good, counts=replace(good.counts, damaged_share=0.01))
    decision = decide(with_bounds(damaged, -50.0, against_upper_bound=-7.0), GATE)
    assert decision.largest_loss == pytest.approx(3.17)
    assert decision.certified_share == pytest.approx(5 / 317)
    assert decision.certified_curve is not None
    assert decision.certified_curve.blind_harms[-1] == pytest.approx(317)
    unbounded = replace(damaged, feasible=FeasibleRange(-10.0, None, 30))
    assert decide(with_bounds(unbounded, -50.0, against_upper_bound=-7.0), GATE).largest_loss is None


def test_no_traffic_once_another_check_fails(good: Evaluation) -> None:
    decision = decide(with_bounds(replace(good, counts=replace(good.counts, n_episodes=20)), -0.01), GATE)
    assert decision.certified_share == 0.0
    assert "enough episodes" in decision.certified_reason


def test_refused_comparison_leaves_no_bound(good: Evaluation) -> None:
    decision = decide(with_bounds(good, None, refused="the mean weight is .3", value=None, interval=None), GATE)
    assert "No bound on the difference to the logging policy: the mean weight is .3." in decision.reason


def breached(evaluation: Evaluation, upper_bound: float, limit: float) -> Evaluation:
    rates = tuple(Rate(role, value, None) for role, value in (("log", 0.12), ("candidate", 0.35), ("baseline", 0.1)))
    counts = {"n_breaches": 12, "n_judged": 100, "n_unjudged": 0, "n_charged": 0, "n_effective": 40.0}
    breach = BreachRate("slo", "latency > 9", limit, rates, upper_bound, 0.05, **counts)  # type: ignore[arg-type]  # fields by name
    return replace(evaluation, safety=Safety((breach,), (), None, 0))


def test_the_sentence_of_a_breached_limit_stands_alone(good: Evaluation) -> None:
    assert decide(breached(good, 0.58093, 0.2), GATE).reason == (
        "Refused: constraint slo. Between 0 and 58.1% of the candidate's steps breach `slo` with 0.95 confidence "
        "(estimated 35%, in the log 12%); the limit is 20%."
    )


def test_a_bound_just_above_its_limit_is_told_from_it(good: Evaluation) -> None:
    assert "Between 0 and 20.04% of" in decide(breached(good, 0.2004, 0.2), GATE).reason


def test_several_failed_checks_are_named_and_each_says_whose_it_is(good: Evaluation) -> None:
    def poor(overlap: Overlap) -> Overlap:
        return replace(
            overlap, tail_index=0.9, mean_weight_interval=Interval(0.5, 0.8, 0.95, "bootstrap"), tolerance=0.1
        )

    reason = decide(replace(good, overlaps=tuple(poor(o) for o in good.overlaps)), GATE).reason
    assert reason.startswith("Refused: mean weight of the candidate, tail of the influence of the candidate. ")
    assert "The interval of the mean weight of the candidate, [0.5, 0.8], must come within 0.1 of 1. " in reason
    assert "The tail index of the influence terms of the candidate is 0.90; above 0.7" in reason


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mean_weight_interval": Interval(0.5, 0.9, 0.95, "bootstrap")}, "mean weight of the candidate"),
        ({"mean_weight_interval": None}, "mean weight of the candidate"),
        ({"tail_index": 0.71}, "tail of the influence of the candidate"),
        ({"tail_index": None}, "tail of the influence of the candidate"),
        ({"largest_share": 0.11}, "largest influence of the candidate"),
        ({"effective_sample_size": 29.9}, "effective sample size of the candidate"),
    ],
)
def test_each_sign_of_poor_overlap_refuses(good: Evaluation, changes: dict[str, object], name: str) -> None:
    overlap = replace(good.overlaps[0], **changes)  # type: ignore[arg-type]  # fields by name
    assert failed(replace(good, overlaps=(overlap,))) == [name]


def test_estimators_that_disagree_refuse(good: Evaluation) -> None:
    agreement = replace(good.agreement, interval=Interval(0.1, 0.4, 0.99, "bootstrap"))
    assert failed(replace(good, agreement=agreement)) == ["agreement of estimators"]


def test_nothing_new_is_refused(good: Evaluation) -> None:
    assert failed(replace(good, largest_probability_change=0.0)) == ["something new"]


def test_damage_is_charged_at_the_worst_feasible_difference(good: Evaluation) -> None:
    # .99 * .3 - .01 * 20 = .097 still passes; .99 * .2 - .2 does not.
    counts = replace(good.counts, damaged_share=0.01)
    enough = decide(with_bounds(replace(good, counts=counts), 0.3), GATE)
    assert enough.passed
    assert next(c.value for c in enough.checks if c.name == "value against baseline") == pytest.approx(0.097)
    assert failed(with_bounds(replace(good, counts=counts), 0.2)) == ["value against baseline"]
    assert failed(replace(good, counts=replace(counts, damaged_share=0.011)))[0] == "damaged episodes"
    unbounded = replace(good, counts=counts, feasible=FeasibleRange(None, 10.0, 30))
    assert failed(unbounded)[0] == "damaged episodes"


def test_version_zero_has_a_bound_of_its_own(good: Evaluation) -> None:
    worse = Comparison("version_zero", "dr - dr", -1.0, None, -1.5, 0.0, 1.0, 0.05, "logged", binding=True)
    evaluation = replace(good, version_zero_name="0", comparisons=(*good.comparisons, worse))
    assert failed(evaluation) == ["value against version 0"]
    assert decide(evaluation, GATE).certified_share == 0.0
    assert failed(evaluation, GateConfig(alpha=0.05, version_zero_margin=2.0)) == []
    assert failed(replace(good, version_zero_name="0")) == ["value against version 0"]  # asked for, not estimated


@pytest.mark.parametrize(
    ("effect", "refused"),
    [
        (DesignEffect("night", "cluster", 3.0, 14, 1e-4, ignored=True), True),
        (DesignEffect("night", "cluster", 3.0, 14, 1e-4, ignored=False), False),
        (DesignEffect("night", "cluster", 1.6, 3, 0.2, ignored=True), False),  # three nights do that by chance
        (DesignEffect("night", "cluster", 1.4, 500, 1e-4, ignored=True), False),
    ],
)
def test_an_ignored_dependence_refuses(good: Evaluation, effect: DesignEffect, refused: bool) -> None:
    assert bool(failed(replace(good, design_effects=(effect,)))) is refused


@pytest.mark.parametrize(
    ("claim", "names"),
    [
        (QClaim(0.5, 1.0, 2.0, 10.0, 0), []),
        (QClaim(-99.0, 1.0, 2.0, 10.0, 0), []),  # pessimism is by design
        (QClaim(1.1, 1.0, 2.0, 10.0, 0), ["Q-values against evaluation"]),
        (QClaim(0.5, 1.0, 11.0, 10.0, 0), ["feasible Q-values"]),
        (QClaim(0.5, 1.0, 2.0, None, 3), ["finite Q-values"]),
        (QClaim(0.5, None, 2.0, 10.0, 0), []),
    ],
)
def test_q_values_are_judged_from_above_only(good: Evaluation, claim: QClaim, names: list[str]) -> None:
    assert failed(replace(good, q_claim=claim)) == names


def test_an_evaluation_at_another_alpha_is_no_reading(good: Evaluation) -> None:
    with pytest.raises(ValueError, match=r"alpha 0\.05, the gate asks for 0\.01"):
        decide(good, GateConfig())


def test_settings_that_make_no_sense_are_refused() -> None:
    for setting in ({"margin": -1.0}, {"alpha": 0.0}, {"largest_damaged_share": 1.0}, {"harm_budget": -1.0}):
        with pytest.raises(ValidationError):
            GateConfig(**setting)
