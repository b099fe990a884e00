from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.replay import Replay
from offline_dqn.fqe import HeldOutValues
from reports.backtest import FEWEST_EPISODES, Span, backtest, is_uniform, minus
from reports.crossfit import FoldFitter
from reports.deciding import DecidingConfig
from reports.evaluate_config import EvaluateConfig
from reports.gate import GateConfig
from reports.intervals import student_t_interval
from reports.overlap import OverlapBounds
from reports.placebo import clopper_pearson
from reports.proof_records import Backtest, BacktestPair
from tests.reports.test_evaluation import CONTRACT, KnownModels, TablePolicy, known_models, make_replay
from tests.reports.worlds import Log, World, greedy, simulate, small_world

WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)
LEANING = greedy(WORLD, 0.6)
"""Takes the best action with probability .7."""
CONFIG = EvaluateConfig(n_replicates=2000, n_folds=2)
GATE_CONFIG = GateConfig(alpha=0.05)
TOLERANT = GateConfig(
    alpha=0.05,
    overlap=OverlapBounds(
        mean_weight_level=0.99, largest_tail_index=0.99, largest_share=0.9, fewest_events=1, smallest_sample_size=10
    ),
)
"""Refuses next to nothing, so that what is counted is the interval and not the choice of logs."""


def together(*logs: Log) -> Log:
    """The episodes of several logs, one log after the other."""
    starts = np.cumsum([0, *(log.offsets[-1] for log in logs)])
    offsets = [log.offsets[1:] + start for log, start in zip(logs, starts, strict=False)]
    return Log(
        np.concatenate([log.states for log in logs]),
        np.concatenate([log.actions for log in logs]),
        np.concatenate([log.rewards for log in logs]),
        np.concatenate([[0], *offsets]),
    )


def two_versions(
    seed: int, n: int = 150, *, a: NDArray[np.float64] = UNIFORM, b: NDArray[np.float64] = LEANING, text: str = CONTRACT
) -> Replay:
    """`n` episodes of version "a", and then `n` of "b", in the same seven nights."""
    rng = np.random.default_rng(seed)
    logs = simulate(WORLD, a, n, rng), simulate(WORLD, b, n, rng)
    log = together(*logs)
    replay = make_replay(log, UNIFORM, text=text)
    of_b = np.arange(len(log.actions)) >= len(logs[0].actions)
    probs = np.where(of_b, b[log.states, log.actions], a[log.states, log.actions])
    return replace(replay, behavior_prob=probs, policy_versions=np.repeat(["a", "b"], n).astype(object))


def run(
    replay: Replay,
    *,
    registered: dict[str, TablePolicy] | None = None,
    gate: GateConfig = GATE_CONFIG,
    config: EvaluateConfig = CONFIG,
    fit_models: FoldFitter = known_models,
) -> Backtest:
    return backtest(replay, registered=registered or {}, config=config, gate_config=gate, seed=0, fit_models=fit_models)


class NoModels(KnownModels):
    """Knows nothing: every value is 0."""

    def held_out(self, evaluation_probs: np.ndarray, held_probs: np.ndarray) -> HeldOutValues:
        return replace(super().held_out(evaluation_probs, held_probs), q_values=np.zeros(held_probs.shape))


def of(found: Backtest, version: str) -> BacktestPair:
    return next(pair for pair in found.pairs if pair.version == version)


def width(pair: BacktestPair) -> float:
    """Of the interval that the verdict rests on."""
    found = pair.deciding
    assert found is not None
    assert found.difference_low is not None
    assert found.difference_high is not None
    return found.difference_high - found.difference_low


RELEASES = {"a": TablePolicy(UNIFORM), "b": TablePolicy(LEANING)}


def test_each_version_is_estimated_from_the_other_and_both_are_near_the_truth() -> None:
    found = run(two_versions(0, 2000), registered=RELEASES)

    assert [(p.version, p.from_version, p.source) for p in found.pairs] == [
        ("a", "b", "release"),
        ("b", "a", "release"),
    ]
    for pair, table in zip(found.pairs, (UNIFORM, LEANING), strict=True):
        truth = WORLD.value(table)
        assert pair.earned == pytest.approx(truth, abs=0.1), "the plain mean of its own episodes"
        assert pair.deciding is not None
        assert pair.deciding.value == pytest.approx(truth, abs=0.15)
        assert (pair.n_nights, pair.n_episodes, pair.n_from_episodes, pair.model_error) == (7, 2000, 1600, 0.0)
        assert pair.verdict == "covered"


def test_two_known_policies_are_covered_about_as_often_as_the_interval_says() -> None:
    """95 % intervals over 60 logs of 150 + 150 episodes, two questions each: 120 trials (not all independent)."""
    logs = (two_versions(seed) for seed in range(60))
    verdicts = [pair.verdict for log in logs for pair in run(log, registered=RELEASES, gate=TOLERANT).pairs]
    judged = [verdict for verdict in verdicts if verdict != "cannot be judged"]
    low, high = clopper_pearson(judged.count("covered"), len(judged), 0.99)

    assert len(judged) >= 100, "good overlap is judged"
    assert low <= 0.95 <= high, f"covered {judged.count('covered')} of {len(judged)}: [{low:.3f}, {high:.3f}]"


def test_wrong_propensities_that_no_check_of_the_log_sees_are_missed() -> None:
    """Version "a" logs .5 and acts with .3 and .7 by state, so that each action still averages to 1.

    Against a uniform "b" every weight is then 1 and all of overlap looks perfect, but the estimate is what "a" earned.
    """
    hidden = np.array([[0.3, 0.7], [0.7, 0.3], [0.3, 0.7], [0.7, 0.3]])
    replay = two_versions(1, 800, a=hidden, b=UNIFORM)
    lying = replace(replay, behavior_prob=np.full(replay.n_steps, 0.5))
    release = {"b": TablePolicy(UNIFORM)}
    found = of(run(lying, registered=release, fit_models=NoModels), "b")
    right = of(run(replay, registered=release, fit_models=NoModels, gate=TOLERANT), "b")

    assert right.verdict == "covered"
    assert found.verdict == "missed", found.cause
    assert found.effective_sample_size == pytest.approx(640), "a fifth names the estimator"
    assert found.deciding is not None
    assert found.deciding.difference == pytest.approx(WORLD.value(hidden) - WORLD.value(UNIFORM), abs=0.15)


def test_a_uniform_version_is_recognized_by_its_probabilities() -> None:
    replay = two_versions(2, 400)
    found = run(replay)

    assert is_uniform(replay.subset(replay.policy_versions == "a"))
    assert not is_uniform(replay.subset(replay.policy_versions == "b"))
    assert (of(found, "a").source, of(found, "b").source) == ("uniform", "estimated")
    assert of(found, "a").model_error == 0.0


def test_a_uniform_draw_among_masked_actions_is_uniform_too() -> None:
    replay = two_versions(2, 400, b=UNIFORM)
    available = replay.available.copy()
    available[::3, 0] = False
    probs = 1.0 / available[: replay.n_steps].sum(axis=1)

    assert is_uniform(replace(replay, available=available, behavior_prob=probs))
    assert not is_uniform(replace(replay, available=available))


def test_a_modelled_version_is_checked_on_its_own_episodes_and_labelled() -> None:
    found = of(run(two_versions(3, 1500)), "b")

    assert found.source == "estimated"
    assert found.note == "the probabilities of 'b' are modelled"
    assert found.model_error == pytest.approx(0.0, abs=0.05), "four states are easy to model"
    assert found.verdict == "covered"
    exact = of(run(two_versions(3, 1500), registered=RELEASES), "b")
    assert width(found) > width(exact), "the model's error is part of the verdict"


def test_a_model_that_is_wrong_by_much_is_taken_off_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version "b" modelled as the policy that does the opposite: what that earns less is measured, and no miss."""
    opposite = TablePolicy(1 - LEANING)
    monkeypatch.setattr("reports.backtest.model_of", lambda *_: opposite)
    found = of(run(two_versions(4, 3000), gate=TOLERANT), "b")

    truth = WORLD.value(1 - LEANING) - WORLD.value(LEANING)
    assert found.model_error_high is not None
    assert found.model_error_high < 0.0
    assert found.model_error == pytest.approx(truth, abs=0.2)
    assert found.verdict == "covered"


def test_estimated_propensities_leave_the_model_unchecked_and_say_so() -> None:
    text = CONTRACT + '[behavior]\npropensity = "estimated"\n'
    replay = two_versions(5, 600, text=text)
    found = of(run(replace(replay, behavior_prob=np.full(replay.n_steps, np.nan))), "b")

    assert found.model_error is None
    assert "none are logged to check the model by" in found.note
    assert found.verdict in ("covered", "missed")


# --- what cannot be judged


def causes(found: Backtest) -> list[str]:
    assert {pair.verdict for pair in found.pairs} == {"cannot be judged"}
    return [pair.cause for pair in found.pairs]


def test_one_version_only_has_nothing_to_compare() -> None:
    replay = two_versions(0, 50)
    found = run(replay.subset(replay.policy_versions == "a"))

    assert found.pairs == ()
    assert found.cause == "version 'a' wrote all there is (50 episodes): there is no other to compare"


def test_a_log_that_names_no_version_says_what_to_log() -> None:
    replay = two_versions(0, 50)
    found = run(replace(replay, policy_versions=np.full(100, "", dtype=object)))

    assert found.cause.startswith("no episode of 100 names a policy_version: log it, or map a column to it")


def test_versions_of_different_periods_are_not_compared() -> None:
    replay = two_versions(0, 50)
    later = replay.nights + np.where(replay.policy_versions == "b", 30, 0)

    assert causes(run(replace(replay, nights=later)))[0] == (
        "no night in common: 'a' wrote from 2024-05-01 to 2024-05-07, 'b' from 2024-05-31 to 2024-06-06, and between "
        "them the world may have changed"
    )


def test_only_nights_in_common_are_compared() -> None:
    replay = two_versions(0, 700)
    later = replay.nights + np.where(replay.policy_versions == "b", 5, 0)
    found = run(replace(replay, nights=later), registered=RELEASES)

    assert [(p.n_nights, p.n_episodes, p.n_from_episodes) for p in found.pairs] == [(2, 200, 160), (2, 200, 160)]


def test_a_version_with_three_episodes_is_no_truth() -> None:
    replay = two_versions(0, 150)
    found = run(replay.subset(np.arange(300) < 153))

    assert causes(found)[0] == f"'b' wrote 3 episodes in the nights in common, and it takes {FEWEST_EPISODES}"


def test_one_cluster_has_no_interval() -> None:
    replay = two_versions(0, 50)

    assert causes(run(replace(replay, clusters=np.zeros(100, dtype=np.int64))))[0] == (
        "all episodes of 'a' are one cluster, which has no interval"
    )


def test_a_log_without_probabilities_is_refused_for_them() -> None:
    replay = two_versions(0, 200)
    found = run(replace(replay, behavior_prob=np.full(replay.n_steps, np.nan)))

    assert all("have no behavior probability" in cause for cause in causes(found))


def test_thin_overlap_is_refused_and_not_missed() -> None:
    nearly_sure = np.where(LEANING > 0.5, 0.98, 0.02)
    replay = two_versions(0, 100, b=nearly_sure)
    products = CONFIG.model_copy(update={"deciding": DecidingConfig(estimator="dr")})
    found = of(run(replay, registered={"b": TablePolicy(nearly_sure)}, config=products), "b")

    assert (found.verdict, found.deciding_estimator) == ("cannot be judged", "dr")
    assert "effective sample size is" in found.cause


def test_the_effective_sample_size_is_that_of_the_weights_that_decide() -> None:
    """Marginalized weights are worth more episodes than products of ratios, and stand behind them in the record."""
    found = {}
    for estimator in ("dr", "drl"):
        config = CONFIG.model_copy(update={"deciding": DecidingConfig(estimator=estimator)})
        found[estimator] = of(run(two_versions(3, 400), registered=RELEASES, config=config), "b")

    assert [pair.deciding_estimator for pair in found.values()] == ["dr", "drl"]
    products, marginalized = (pair.effective_sample_size for pair in found.values())
    assert products is not None
    assert marginalized is not None
    assert marginalized > 1.02 * products


# --- arithmetic


def test_a_difference_takes_the_facing_ends_of_both_intervals() -> None:
    """5 [2, 6] minus 1 [-3, 5]: 4 - sqrt(3^2 + 4^2) = -1 and 4 + sqrt(1^2 + 4^2) = 8.1231."""
    found = minus(Span(5.0, 2.0, 6.0), Span(1.0, -3.0, 5.0))
    assert (found.value, found.low) == (4.0, -1.0)
    assert found.high == pytest.approx(4 + np.sqrt(17))


def test_the_difference_of_two_symmetric_intervals_is_that_of_their_variances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, 400), rng.normal(0, 2, 300)
    one, other = (student_t_interval(v, np.arange(len(v)), 0.95) for v in (x, y))
    found = minus(Span(x.mean(), one.low, one.high), Span(y.mean(), other.low, other.high))
    error = 1.96 * np.sqrt(x.var(ddof=1) / 400 + y.var(ddof=1) / 300)

    assert found.high - found.value == pytest.approx(error, rel=0.01)
    assert found.value - found.low == pytest.approx(error, rel=0.01)


def test_worlds_differ_so_that_the_tests_can_fail() -> None:
    world: World = WORLD
    assert world.value(LEANING) - world.value(UNIFORM) > 0.2
