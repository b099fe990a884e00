"""Evaluations and reports as a night leaves them, built by hand; the decision is the gate's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from reports.assessment import DECIDING_RULE
from reports.change_records import (
    Changes,
    ExampleEpisode,
    ExampleStep,
    FeatureEffect,
    NightDrift,
    QBin,
    QCalibration,
    RegionChange,
)
from reports.gate import GateConfig, decide
from reports.proof_records import Backtest, BacktestEstimate, BacktestPair, Placebo, Promise, Proof
from reports.records import (
    ActionAverage,
    ActionShares,
    Agreement,
    Bounds,
    BreachRate,
    Check,
    Comparison,
    Counts,
    DesignEffect,
    Estimate,
    Evaluation,
    FeasibleRange,
    Forbidden,
    Interval,
    LevelValue,
    Overlap,
    OverlapMap,
    OverlapRegion,
    PropensityReport,
    QClaim,
    Rate,
    ReturnDistribution,
    Safety,
    Sensitivity,
    SensitivityPoint,
    Slices,
    SliceValue,
    SuccessRate,
    WeightHistogram,
)
from reports.render import ReportData
from tests.reports import drift_samples

ACTIONS = ("scale_down", "hold", "scale_up")
HOSTILE = "<script>alert(1)</script>"


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, 0.95, "cluster bootstrap, percentile")


def proof() -> Proof:
    """Two versions of which one is covered, a placebo that holds, and a promise kept."""
    found = BacktestEstimate("dr", -6.91, -7.2, -6.6, 0.06, -0.31, 0.43, "covered")
    pairs = (
        BacktestPair(
            "4",
            HOSTILE,
            6,
            1204,
            1530,
            "covered",
            source="release",
            effective_sample_size=512.0,
            earned=-6.97,
            earned_low=-7.2,
            earned_high=-6.74,
            model_error=0.0,
            model_error_low=0.0,
            model_error_high=0.0,
            deciding_estimator="dr",
            estimates=(found,),
        ),
        BacktestPair(HOSTILE, "4", 6, 1530, 1204, cause="the effective sample size is 12 episodes", note="modelled"),
    )
    return Proof(
        Backtest(pairs, 0.95),
        (
            Placebo("return of the log", "cluster", 0.01, 3011, 3011, 4000, 41, 0.01025, 0.0074, 0.0139, "held"),
            Placebo(
                "return of the log",
                "night",
                0.01,
                3011,
                9,
                0,
                0,
                None,
                None,
                None,
                "cannot be judged",
                cause="9 nights, and it takes 14 to deal halves of them",
            ),
        ),
        (
            Promise(
                4,
                "2024-05-01T08:00:00+00:00",
                -6.9,
                -7.3,
                -6.5,
                5200,
                5200,
                12,
                -6.8,
                -7.0,
                -6.6,
                0.95,
                "kept",
                since="2024-05-09",
            ),
        ),
    )


def passed_evaluation() -> Evaluation:
    """A candidate that is clearly better than the champion."""
    estimates = (
        Estimate("on_policy", "log", -6.9132, interval(-7.1021, -6.7244), "none"),
        Estimate(
            "direct", "candidate", -5.7714, interval(-5.9032, -5.6401), "none",
            note="biased as far as its model is; shown, not binding",
        ),
        Estimate("dr", "candidate", -5.8842, interval(-6.1312, -5.6431), "logged", binding=True),
        Estimate("wdr", "candidate", -5.9011, interval(-6.1702, -5.6322), "logged"),
        Estimate("wpdis", "candidate", -5.8127, interval(-6.3391, -5.3014), "logged"),
        Estimate("wis", "candidate", -5.7409, interval(-6.6604, -4.9012), "logged"),
        Estimate("pdis", "candidate", -5.9913, interval(-7.8213, -4.2109), "logged"),
        Estimate("is", "candidate", -5.6201, interval(-11.2, -1.3), "logged"),
        Estimate("dr", "baseline", -6.8811, interval(-7.0914, -6.6702), "logged", binding=True),
        Estimate("direct", "baseline", -6.8034, interval(-6.9417, -6.6640), "none"),
        Estimate("dr", "version_zero", -7.4302, interval(-7.8101, -7.0604), "logged", binding=True),
    )  # fmt: skip
    comparisons = (
        Comparison("baseline", "dr - dr", 0.9969, interval(0.7803, 1.2106), 0.7394, 1.253, -6.63, 0.01, "logged", True),
        Comparison(
            "baseline", "direct - direct", 1.032, interval(0.961, 1.104), 0.951, 1.117, -6.64, 0.01, "none",
            note="biased as far as its models are; shown, not binding",
        ),
        Comparison("version_zero", "dr - dr", 1.546, interval(1.17, 1.9204), 1.1016, 1.99, -7.0, 0.01, "logged", True),
    )  # fmt: skip
    gate = GateConfig(harm_budget=50.0)
    evaluation = Evaluation(
        estimand="The expected return of one episode, discounted by 0.9 per step, until the episode ends as the log "
        "ends it, in reward units.",
        candidate_name="release 7",
        baseline_name="release 5",
        baseline_source="estimated",
        version_zero_name="rules of version 0",
        deciding_estimator="dr",
        deciding_rule=DECIDING_RULE,
        estimates=estimates,
        comparisons=comparisons,
        agreement=Agreement("dr", "wpdis", -0.0715, interval(-0.5012, 0.3671)),
        bounds=(
            Bounds("cluster bootstrap, percentile", 0.7394, 1.253, 0.01),
            Bounds("cluster bootstrap, BCa", 0.7402, 1.255, 0.01),
            Bounds("cluster bootstrap, studentized", 0.7321, 1.259, 0.01),
            Bounds("Student t, by cluster", 0.7388, 1.255, 0.01),
            Bounds("Hoeffding", None, None, 0.01, "the largest possible weight is unknown: set `evaluate.x`"),
            Bounds("empirical Bernstein", None, None, 0.01, "the largest possible weight is unknown"),
            Bounds("clipped weights", -21.3, 20.8, 0.01, None, "weighted returns above 46.86 are cut off"),
        ),
        overlaps=(
            Overlap("candidate", 1.013, interval(0.961, 1.067), 412.7, 0.31, 0.012),
            Overlap("baseline", 0.998, interval(0.982, 1.014), 1604.2, 0.12, 0.004),
            Overlap("version_zero", 1.02, interval(0.93, 1.11), 240.1, 0.42, 0.021),
        ),
        propensities=PropensityReport(
            "logged",
            (
                ActionAverage("scale_down", 10402, 1904, 1.006, interval(0.972, 1.041), True),
                ActionAverage("hold", 12042, 7720, 0.998, interval(0.986, 1.010), True),
                ActionAverage("scale_up", 11210, 2418, 1.011, interval(0.979, 1.043), True),
            ),
            0, 0, 0.05, False,
        ),
        q_claim=QClaim(-6.14, -5.59, -0.82, 0.0, 0),
        design_effects=(DesignEffect("night", "cluster", 1.12, 21, 0.31, True),),
        action_shares=(
            ActionShares("log", dict(zip(ACTIONS, (0.158, 0.641, 0.201), strict=True))),
            ActionShares("candidate", dict(zip(ACTIONS, (0.247, 0.582, 0.171), strict=True))),
            ActionShares("baseline", dict(zip(ACTIONS, (0.161, 0.633, 0.206), strict=True))),
            ActionShares("version_zero", dict(zip(ACTIONS, (0.094, 0.702, 0.204), strict=True))),
        ),
        sensitivity=Sensitivity(
            True, 1.312, 20.0,
            tuple(
                SensitivityPoint(f, 0.9969 - 2.3 * (f - 1), 0.7394 - 2.4 * (f - 1), 0.9969 + 2.6 * (f - 1),
                                 0.7394 + 2.5 * (f - 1))
                for f in (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0)
            ),
            6,
            "the odds of every logged action are off by at most the factor, each in the direction that does most harm; "
            "over an episode the errors multiply",
        ),
        overlap_map=OverlapMap(
            (
                OverlapRegion(
                    "replicas >= 6 and cpu <= 0.2", 812, 0.067, 402, 0.62, interval(0.41, 0.93), 31.0, 21.4, 37.9,
                    "scale_down", 0.81, 0.03,
                    flagged="the log never takes about 38% of what the candidate does there",
                    repair="let the acting policy take 'scale_down' in at least 12% of these steps",
                ),
                OverlapRegion(
                    f"zone = {HOSTILE}", 11230, 0.933, 2007, 1.003, interval(0.97, 1.04), 9.5, 8410.0, 1.34, None, 0.2,
                    0.2,
                ),
            ),
            WeightHistogram(
                "episode", (-2.0, -1.0, 0.0, 1.0, 2.0), (0.1, 0.5, 0.3, 0.02), (0.01, 0.2, 0.5, 0.29), 0.08
            ),
        ),
        return_distributions=return_distributions(),
        feasible=FeasibleRange(-46.86, 0.0, 6),
        counts=Counts(2007, 12042, 2007, 21, 0, 3011, {"open": 14, "damaged": 0}, 0.0, 6.0, 6.0, 6, 131.0),
        largest_probability_change=0.9,
        gamma=0.9,
        alpha=0.01,
        level=0.95,
        n_replicates=10000,
        n_folds=5,
        seed=7,
        proof=proof(),
        config={
            "evaluate": {"level": 0.95, "n_replicates": 10000, "fqe": {"hidden": [64, 64], "n_updates": 4000}},
            "gate": gate.model_dump(mode="json"),
        },
        changes=changes(),
        q_calibration=q_calibration(),
        night_drift=night_drift(),
    )  # fmt: skip
    return replace(evaluation, decision=decide(evaluation, gate))


def return_distributions() -> tuple[ReturnDistribution, ...]:
    """Of the log, and of the candidate by one estimator; the other is refused."""

    def of(policy: str, estimator: str, better: float) -> ReturnDistribution:
        def at(level: float, value: float) -> LevelValue:
            return LevelValue(level, value + better, interval(value + better - 0.4, value + better + 0.3))

        levels = ((0.05, -14.2), (0.25, -9.1), (0.5, -6.4), (0.75, -4.2), (0.95, -2.3))
        return ReturnDistribution(
            policy, estimator, (-20.0, -9.1, -6.4, -1.0), (0.01, 0.25, 0.5, 1.0),
            tuple(at(*x) for x in levels), (at(0.05, -17.3), at(0.25, -12.2)),
        )  # fmt: skip

    cause = "no episode has any weight, in the log or in a replicate of it"
    return (
        of("log", "on_policy", 0.0),
        of("candidate", "dr", 1.1),
        ReturnDistribution("candidate", "wis", (), (), (), (), cause),
    )


def changes(*, first_episode: str = "svc-0412/2024-05-14") -> Changes:
    """What the candidate does otherwise, with two episodes."""

    def probs(*values: float) -> dict[str, float]:
        return dict(zip(ACTIONS, values, strict=True))

    regions = (
        RegionChange(
            "p95_ms about 412 ms (in all 188)", 2904, 811, 0.42, 0.61, probs(0.55, 0.35, 0.1), probs(0.14, 0.72, 0.14)
        ),
        RegionChange(
            "cpu about 0.45 (in all 0.52)", 9138, 1930, 0.09, 0.39, probs(0.15, 0.66, 0.19), probs(0.17, 0.61, 0.22)
        ),
    )
    features = tuple(
        FeatureEffect(name, moved, gap, turned, 0.01)
        for name, moved, gap, turned in (
            ("p95_ms", 0.31, 1.42, 0.38),
            ("replicas", 0.22, 0.91, 0.24),
            ("cpu", 0.08, 0.3, 0.11),
            ("zone", 0.0, -0.01, 0.0),
        )
    )

    def steps(peak: int) -> tuple[ExampleStep, ...]:
        return tuple(
            ExampleStep(
                step=i,
                observation={"p95_ms": 150.0 + 61.25 * i, "replicas": float(9 - i // 2), "cpu": None, "zone": "a"},
                action="hold",
                behavior_prob=0.7333,
                candidate_probs=probs(0.8, 0.15, 0.05) if i == peak else probs(0.2, 0.7, 0.1),
                baseline_probs=probs(0.1, 0.8, 0.1),
                reward=-1.25 - i / 8,
                disagreement=0.7 if i == peak else 0.1,
            )
            for i in range(1, 7)
        )

    episodes = (
        ExampleEpisode(first_episode, "2024-05-14", regions[0].where, 3, 6, -8.1, steps(3)),
        ExampleEpisode("svc-0077/2024-05-03", "2024-05-03", regions[1].where, 6, 40, -21.4, steps(6)),
    )
    return Changes(
        "baseline", 0.171, 0.214, regions, 2, episodes, ("p95_ms", "replicas", "cpu", "zone"), features, 2000, 3
    )


def q_calibration() -> QCalibration:
    bins = tuple(
        QBin(1505, own, own + more, own + more - 0.12, own + more + 0.12, 0.05 * k + 0.1)
        for k, (own, more) in enumerate(((-8.2, 0.41), (-7.1, 0.25), (-6.0, 0.3), (-5.2, 0.22), (-3.9, -0.04)))
    )
    return QCalibration(bins, 5, 0.95, -0.228)


def night_drift(name: str = "observation.request_rate") -> NightDrift:
    """Three columns over 21 nights, of which the first moves in the last ones."""
    nights = tuple(f"2024-05-{day:02}" for day in range(1, 22))
    moved = tuple(0.011 + 0.0007 * i + (0.05 * (i - 17) ** 2 if i > 17 else 0.0) for i in range(21))
    return NightDrift(
        (name, "action", "reward"), nights, tuple(90 + i for i in range(21)),
        (moved, (0.012,) * 21, (0.004,) * 20 + (0.09,)), ((0.06,) * 21, (0.03,) * 21, (0.06,) * 21), 9, 40,
    )  # fmt: skip


def refused_evaluation() -> Evaluation:
    """A candidate that the log cannot judge: too little overlap, contradicting estimators, a wide difference."""
    good = passed_evaluation()
    cause = (
        "the mean weight's interval [0.02, 0.61] excludes 1, so the log misses part of what the policy does; the "
        "effective sample size is 8.4 episodes, under 30; the tail index of the influence terms is 0.94, above 0.7"
    )
    estimates = tuple(
        replace(e, value=None, interval=None, refused=cause)
        if e.policy == "candidate" and e.estimator not in ("direct", "dr")
        else e
        for e in good.estimates
    )
    estimates = tuple(
        replace(e, value=-6.61, interval=interval(-8.9, -4.4)) if (e.estimator, e.policy) == ("dr", "candidate") else e
        for e in estimates
    )
    comparisons = (
        replace(good.comparisons[0], value=0.271, interval=interval(-2.05, 2.49), lower_bound=-2.44, upper_bound=2.97),
        good.comparisons[1],
        replace(good.comparisons[2], value=None, interval=None, lower_bound=None, upper_bound=None, refused=cause),
    )
    averages = (
        ActionAverage("scale_down", 10402, 1904, 1.31, interval(1.22, 1.41), False, "above 1: probabilities too small"),
        ActionAverage("hold", 12042, 7720, 0.93, interval(0.91, 0.95), False),
        ActionAverage("scale_up", 11210, 4, None, None, True, "undecided: taken 4 times"),
    )
    gate = GateConfig(harm_budget=50.0)
    evaluation = replace(
        good,
        decision=None,
        estimates=estimates,
        comparisons=comparisons,
        agreement=Agreement("dr", "wpdis", None, None, cause),
        overlaps=(
            Overlap("candidate", 0.21, interval(0.02, 0.61), 8.4, 0.94, 0.34, cause),
            *good.overlaps[1:],
        ),
        propensities=PropensityReport(
            "logged", averages, 12, 3, 1e-9, False, "the behavior probabilities do not average to 1 for scale_down"
        ),
        q_claim=QClaim(1.7, -4.2, 3.1e8, 0.0, 2),
        q_calibration=QCalibration((), 0, 0.95, None, "some of its Q-values are not finite"),
        counts=replace(good.counts, n_episodes=84, n_nights=3, damaged_share=0.021, n_truncated=40),
        design_effects=(DesignEffect("night", "cluster", 2.91, 3, 0.002, True),),
    )
    return replace(evaluation, decision=decide(evaluation, gate))


_SHARES = tuple(ActionShares(policy, dict.fromkeys(ACTIONS, 1 / 3)) for policy in ("log", "candidate"))
_RATES = (
    Rate("log", 0.05, interval(0.04, 0.06)),
    Rate("candidate", 0.08, interval(0.06, 0.1)),
)


def asked_evaluation(limit: float = 0.2, label: str = "a", upper: float = 0.3) -> Evaluation:
    """A candidate under a contract with a constraint of each kind, a success rule and slices."""
    safety = Safety(
        breaches=(
            BreachRate("slo", f"observation.zone = '{HOSTILE}'", limit, _RATES, 0.11, 0.01, 31, 600, 3, 1, 212.0),
        ),
        forbidden=(Forbidden("keep_two", "action = 'scale_down'", 12, 4),),
        success=SuccessRate("true", _RATES, 0.03, -0.01, 0.01, 601, 2, 2),
        n_safe_only=2,
    )
    slices = Slices(
        (
            SliceValue("zone", label, "label", 900, 900, 0.1, 0.1, -0.2, upper, 0.12, _SHARES),
            SliceValue("zone", None, "missing", 1, 1, 2.0, None, None, None, None, _SHARES, "1 cluster; 20 wanted"),
        ),
        0.05,
    )  # fmt: skip
    evaluation = replace(passed_evaluation(), decision=None, safety=safety, slices=slices)
    return replace(evaluation, decision=decide(evaluation, GateConfig(harm_budget=50.0)))


def narrow_evaluation() -> Evaluation:
    """A candidate that only the bound on its value refuses: part of the traffic may be given to it."""
    good = passed_evaluation()
    comparison = replace(
        good.comparisons[0], value=0.41, interval=interval(-0.3, 1.12), lower_bound=-0.62, upper_bound=1.44
    )
    evaluation = replace(good, decision=None, comparisons=(comparison, *good.comparisons[1:]))
    return replace(evaluation, decision=decide(evaluation, GateConfig(harm_budget=30.0)))


LEARNERS = ("dqn", "cql 1", "cql 4", "bcq 0.3", "bc")


def history(n: int = 40, learners: Sequence[str] = LEARNERS) -> list[dict[str, float]]:
    return [
        {"step": 500.0 * i, "learning_rate": 3e-4, "updates_per_s": 280.0}
        | {f"{name}/{metric}": value for k, name in enumerate(learners) for metric, value in _measured(name, i, k)}
        for i in range(1, n + 1)
    ]


def _measured(learner: str, i: int, k: int) -> list[tuple[str, float]]:
    wobble = math.sin(i * 2.3 + k) * 0.04
    every = [
        ("conservative_penalty", 0.42 + 0.1 * k + 0.66 * math.exp(-i / 9) + wobble / 3),
        ("gradient_norm", 1.1 + k / 2 + 6 * math.exp(-i / 5) + 5 * abs(wobble)),
    ]
    if learner == "bc":
        return every
    return [
        *every,
        ("td_error_abs", 0.31 + k / 9 + 1.9 * math.exp(-i / 6) + wobble),
        ("td_loss", 0.2),
        ("q_logged", -6.6 + k / 4 - 1.2 * math.exp(-i / 7) + wobble),
        ("q_greedy", -6.1 + k / 5 - 0.9 * math.exp(-i / 7) + wobble),
        ("q_logged_minus_return", 0.2 + k / 4 - 1.2 * math.exp(-i / 7) + wobble),
    ]


def expectation(column: str, says: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "ExpectColumnValuesToBeBetween", "column": column, "says": says, "success": True,
        "observed_value": 0.0, "unexpected_count": 0, "examples": [], "sentence": "",
    } | more  # fmt: skip


def validation(*, failing: bool) -> dict[str, Any]:
    records = [
        expectation("", "there is at least one step"),
        expectation("observation.cpu", "lies between 0 and 1"),
        expectation("observation.zone", "is rarely a label that the contract does not list", unexpected_count=119),
        expectation("reward", "lies between -10 and 0"),
        expectation("behavior_prob", "lies above 0 and at most at 1"),
    ]
    if failing:
        records.append(
            expectation(
                "observation.p95_ms", "lies between 0 and 2000", success=False, unexpected_count=37,
                observed_value=0.0187, examples=[-1.0, 1e9],
                sentence="Expected that observation.p95_ms lies between 0 and 2000: not so in 37 of 1980 steps "
                "(1.87%), for example -1.0, 1000000000.0. Correct them upstream, or widen the range in the contract.",
            )
        )  # fmt: skip
    return {"success": not failing, "records": records, "n_rows": 1980, "seconds": 3.2}


def snapshot() -> dict[str, Any]:
    return {
        "digest": "9f2c" * 16, "as_of": "2024-05-22T04:00:00+00:00",
        "lake_versions": {"steps": 41, "quarantine": 41, "files": 41, "batches": 41}, "judge_since": None,
        "n_steps": 30108, "n_episodes": 5018, "split_episodes": {"train": 2506, "select": 505, "gate": 2007},
        "n_open": 14, "n_damaged": 9, "damage": {"some rows in quarantine": 7, "a step is missing after some": 2},
        "n_unplaced": 3, "n_before_change": 0, "n_unusable_ends": 22,
        "config": {"salt": "", "train_share": 0.5, "select_share": 0.1},
    }  # fmt: skip


def coverage(name: str = "cpu") -> dict[str, Any]:
    def region(number: int, where: str, n_steps: int, *steps: int) -> dict[str, Any]:
        taken = dict(zip(("scale_down", "hold", "scale_up"), steps, strict=True))
        thin = [name for name, n in taken.items() if n < 30]
        return {"region": number, "where": where, "n_steps": n_steps, "n_episodes": n_steps // 4, "train_steps": taken,
                "thin": thin}  # fmt: skip

    regions = [
        region(4, f"{name} about 0.45 (in all 0.52), zone = a in 97% (in all 34%)", 14022, 2210, 3104, 1701),
        region(1, "p95_ms about 412 ms (in all 188), replicas about 9 (in all 4)", 2904, 12, 811, 640),
        region(0, "request_rate about 1.9e+03 (in all 620)", 871, 0, 29, 398),
    ]
    return {
        "n_regions": 32, "n_visited": 32, "visited_share": 1.0, "covered_share": 0.9688, "thin_below": 30,
        "thin_step_share": {"train": 0.12, "select": 0.13, "gate": 0.125}, "regions": regions,
    }  # fmt: skip


def batch() -> dict[str, Any]:
    return {
        "batch_id": "b-20240522T040011-5c1f", "status": "lake", "at": "2024-05-22T04:00:11+00:00",
        "as_of": "2024-05-22T04:00:00+00:00", "n_files": 3, "n_in": 2031, "n_lake": 1980, "n_quarantined": 11,
        "n_duplicates": 36, "n_held": 0, "n_pending": 4, "dropped_columns": ["trace_id", "user_agent"], "note": "",
        "validation": None,
    }  # fmt: skip


def selection(name: str = "cql 1, softmax <0.1>") -> dict[str, Any]:
    """What the candidate was chosen from."""
    found = {
        "origin": "network", "value": -21.4, "difference": 1.02, "standard_error": 0.2, "weights_refused": None,
        "lower_bound": 0.76, "upper_bound": 1.28, "gate_bound": 0.5, "cannot_certify": None, "same_as": None,
    }  # fmt: skip
    weighted = {"weighted_difference": 0.94, "weighted_low": 0.51, "weighted_error": 0.33}
    names = {name: ("direct", True), "tree of the log": ("dr", False)}
    return {
        "baseline_value": -22.42,
        "level": 0.9,
        "n_episodes": 420,
        "n_reused": 1542,
        "reuse_weight": 0.25,
        "candidates": [
            {**found, **weighted, "name": name, "estimator": by, "chosen": chosen, "why": "a reason"}
            for name, (by, chosen) in names.items()
        ],
    }


def report(evaluation: Evaluation, **more: Any) -> ReportData:
    """A whole report around an evaluation."""
    sections: dict[str, Any] = {
        "contract_name": "autoscaler",
        "release": 7,
        "created_at": datetime(2024, 5, 22, 4, 31, tzinfo=UTC),
        "as_of": datetime(2024, 5, 22, 4, 0, tzinfo=UTC),
        "evaluation": evaluation,
        "snapshot": snapshot(),
        "lineage": {"snapshot digest": "9f2c" * 16, "contract digest": "04be" * 16, "offline-dqn": "0.1.0"},
        "promote_command": "offline-dqn promote 7 --reviewer YOUR_NAME",
        "training": {
            "config": {"hidden": [256, 256], "learning_rate": 3e-4, "penalty_weights": [1.0], "device": "auto"},
            "history": history(),
            "n_steps": 15012,
            "n_unusable_steps": 22,
            "seconds": 192.4,
            "diverged": {"dqn": "diverged before update 900: td_loss = nan"},
            "selection": selection(),
        },
        "drift": drift_samples.nightly_checks(),
        "validation": validation(failing=evaluation.decision is not None and not evaluation.decision.passed),
        "batch": batch(),
        "coverage": coverage(),
    }  # fmt: skip
    return ReportData(**(sections | more))


def extreme_report(hostile: str = HOSTILE) -> ReportData:
    """Hostile and endless names everywhere, numbers that do not exist or are out of all proportion."""
    good, long = passed_evaluation(), "a_name_without_any_space_" * 8
    assert good.decision is not None
    broken = {"step": 500.0, "bc/td_error_abs": math.nan, f"{hostile}/q_logged": None, "a/q_greedy": math.inf}
    named = [{"step": 500.0 * i, f"{hostile}/q_logged": 1.0 + i, f"{long}/q_logged": -1e12 * i} for i in range(5)]
    validated = validation(failing=True)
    validated["records"][0] |= {"success": False, "says": hostile, "observed_value": math.nan}
    estimates = (
        replace(good.estimates[0], estimator=hostile, value=-1e300, interval=interval(-1e308, 9)),
        *good.estimates[1:],
    )
    decision = replace(
        good.decision,
        passed=False,
        reason=f"Refused, {hostile}: {long}",
        checks=(Check(hostile, False, None, None, long), *good.decision.checks),
    )
    averages = (replace(good.propensities.actions[0], action=hostile, note=hostile), *good.propensities.actions[1:])
    return report(
        replace(
            good,
            candidate_name=hostile,
            baseline_name=long,
            version_zero_name=hostile,
            estimates=estimates,
            action_shares=(replace(good.action_shares[0], shares={hostile: 1.0, long: 0.0}),),
            propensities=replace(good.propensities, actions=averages),
            design_effects=(replace(good.design_effects[0], unit=hostile),),
            changes=_named_changes(hostile, long),
            night_drift=night_drift(hostile),
            safety=asked_evaluation().safety,
            slices=asked_evaluation(label=hostile).slices,
            decision=decision,
        ),
        contract_name=hostile,
        drift=drift_samples.extreme_checks(hostile),
        validation=validated,
        training={"config": {long: hostile}, "history": [broken, *named], "n_steps": 1, "n_unusable_steps": 0,
                  "seconds": math.nan, "selection": selection(hostile)},
        snapshot=snapshot() | {"damage": {hostile: 9}},
        batch=batch() | {"dropped_columns": [hostile, long], "note": hostile, "batch_id": hostile},
        coverage=coverage(hostile),
        lineage={hostile: long},
    )  # fmt: skip


def _named_changes(hostile: str, long: str) -> Changes:
    """Features, actions, regions, values, and an episode of that name."""
    found = changes(first_episode=hostile)
    probs = {hostile: 0.6, long: 0.4}
    step = replace(
        found.episodes[0].steps[0], action=hostile, observation={hostile: hostile, long: math.pi},
        candidate_probs=probs, baseline_probs=probs,
    )  # fmt: skip
    episode = replace(found.episodes[0], where=hostile, night=long, steps=(step,))
    region = replace(found.regions[0], where=hostile, candidate_shares=probs, other_shares=probs)
    return replace(
        found,
        regions=(region,),
        episodes=(episode,),
        shown_features=(hostile, long),
        features=(replace(found.features[0], feature=hostile), replace(found.features[1], feature=long)),
    )
