from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reports.assessment import Assessment, assess
from reports.bounds_by_method import METHODS
from reports.evaluate_config import AssessmentConfig
from reports.gate import GateConfig
from reports.records import Bounds, evaluation_from_json, evaluation_to_json
from reports.trial import Trial, feasible_range
from tests.reports.worlds import GAMMA, evaluate_trial, make_trial, simulate, small_world

CONFIG = AssessmentConfig(n_replicates=2_000)
GATE = GateConfig(alpha=0.05)
UNIFORM = np.full((4, 2), 0.5)
NEAR = np.array([[0.6, 0.4], [0.45, 0.55], [0.5, 0.5], [0.55, 0.45]])


def _trial(n: int = 400, **changes: object) -> Trial:
    world = small_world()
    log = simulate(world, UNIFORM, n, np.random.default_rng(0))
    return make_trial(world, log, UNIFORM, NEAR, **changes)


def _found(trial: Trial, config: AssessmentConfig = CONFIG) -> Assessment:
    return assess(trial, config, GATE, np.random.default_rng(0))


def _by_method(found: Assessment) -> dict[str, Bounds]:
    return {bounds.method: bounds for bounds in found.bounds}


def _one_step(n: int = 4000, behavior: float = 0.5, candidate: float = 0.9, **changes: object) -> Trial:
    """Decisions with rewards in [0, 1]: action 1 pays .9, action 0 pays .1."""
    rng = np.random.default_rng(1)
    actions = (rng.random(n) < behavior).astype(np.int64)
    rewards = (rng.random(n) < np.where(actions == 1, 0.9, 0.1)).astype(float)
    whole = _trial(20)
    fields: dict[str, object] = {
        "actions": actions,
        "rewards": rewards,
        "available": np.ones((n, 2), dtype=bool),
        "behavior_probs": np.where(actions == 1, behavior, 1 - behavior),
        "offsets": np.arange(n + 1),
        "clusters": np.arange(n),
        "nights": np.arange(n) % 7,
        "truncated": np.zeros(n, dtype=bool),
        "feasible": feasible_range(0.0, 1.0, GAMMA, 1),
        "largest_reward": 1.0,
        "candidate": replace(
            whole.candidate, probs=np.tile([1 - candidate, candidate], (n, 1)), q=np.tile([0.2, 0.8], (n, 1))
        ),
    }
    return replace(whole, **(fields | changes))  # type: ignore[arg-type]  # fields by name


def test_every_method_answers_where_the_largest_weight_is_known() -> None:
    found = _by_method(_found(_one_step(), AssessmentConfig(n_replicates=2_000, smallest_behavior_prob=0.5)))
    assert tuple(found) == METHODS
    truth = 0.4 * 0.9 - 0.4 * 0.1  # .9 and .1 against .5 and .5
    widths = {}
    for method, bounds in found.items():
        assert bounds.refused is None, bounds
        assert bounds.lower is not None
        assert bounds.upper is not None
        assert bounds.lower < truth < bounds.upper, bounds
        widths[method] = bounds.upper - bounds.lower
    many, any_number = list(widths.values())[:4], list(widths.values())[4:]
    assert max(many) < 1.1 * min(many)
    assert min(any_number) > max(many)


def test_a_method_without_a_number_says_why() -> None:
    found = _by_method(_found(_trial()))
    assert found["cluster bootstrap, studentized"].lower is not None
    for method in ("Hoeffding", "empirical Bernstein", "clipped weights"):
        assert found[method].lower is None
        assert found[method].refused == "the contract bounds no return: set reward.min and reward.max"
    bounded = _by_method(_found(_one_step()))
    assert "set evaluate.smallest_behavior_prob" in (bounded["Hoeffding"].refused or "")
    assert bounded["clipped weights"].refused is None  # which is what to do where no largest weight is known


def test_a_declared_smallest_probability_that_the_log_contradicts_is_refused() -> None:
    config = AssessmentConfig(n_replicates=2_000, smallest_behavior_prob=0.4)
    found = _by_method(_found(_one_step(behavior=0.7), config))
    assert found["Hoeffding"].refused == (
        "the log holds a probability of 0.3, below evaluate.smallest_behavior_prob = 0.4"
    )


def test_bounds_wider_than_any_feasible_difference_are_no_number() -> None:
    longest = int(np.diff(_trial().offsets).max())
    trial = _trial(feasible=feasible_range(-3.0, 3.0, GAMMA, longest))
    config = AssessmentConfig(n_replicates=2_000, smallest_behavior_prob=0.5)
    found = _by_method(_found(trial, config))
    assert "beyond any feasible difference" in (found["Hoeffding"].refused or "")
    assert found["clipped weights"].lower is not None


def test_refused_overlap_silences_only_what_needs_many_episodes() -> None:
    gate = GateConfig.model_validate({"alpha": 0.05, "overlap": {"smallest_sample_size": 1e6}})
    found = {b.method: b for b in assess(_one_step(), CONFIG, gate, np.random.default_rng(0)).bounds}
    assert "effective sample size" in (found["cluster bootstrap, BCa"].refused or "")
    assert found["clipped weights"].lower is not None


@pytest.mark.parametrize(
    ("asked", "method"),
    [
        ("percentile", "cluster bootstrap, percentile"),
        ("bca", "cluster bootstrap, BCa"),
        ("studentized", "cluster bootstrap, studentized"),
        ("student_t", "Student t, by cluster"),
    ],
)
def test_shown_intervals_are_made_as_configured_and_what_decides_is_not(asked: str, method: str) -> None:
    trial = _trial()
    config = AssessmentConfig.model_validate({"n_replicates": 2_000, "interval": asked})
    found, plain = _found(trial, config), _found(trial)
    shown = {e.estimator: e.interval for e in found.estimates if e.refused is None and e.estimator != "magic"}
    for name in ("on_policy", "dr", "wpdis", "wdr"):
        interval = shown[name]
        assert interval is not None
        assert interval.method == method, name
    for ours, theirs in zip(found.comparisons, plain.comparisons, strict=True):
        assert ours.interval is not None
        assert ours.interval.method == (method if ours.binding else "cluster bootstrap, percentile")
        assert ours.lower_bound == pytest.approx(theirs.lower_bound, abs=1e-5)


def test_bounds_survive_the_record() -> None:
    evaluation = evaluate_trial(_one_step(), CONFIG, GATE, 0)
    plain = evaluation_to_json(evaluation)
    assert evaluation_from_json(plain).bounds == evaluation.bounds
