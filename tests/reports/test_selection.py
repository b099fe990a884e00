from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datasets.encoding import fit_encoder
from datasets.replay import GATE, SELECT, TRAIN, Replay
from offline_dqn.candidates import Candidate, counted_candidates, other_forms, simple_candidates
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.policy import Policy, RulePolicy
from reports.evaluate_config import PropensityConfig
from reports.gate import GateConfig
from reports.judging import Judge
from reports.select_config import SelectConfig
from reports.selection import Judged, NoCandidateError, Selection, choose, select_candidate
from tests.offline_dqn.worlds import TabularWorld

WORLD = TabularWorld.random(n_states=6, n_actions=3, gamma=0.8, end_prob=0.2, seed=4)
LOGGER = np.full((6, 3), 1 / 3)
EXPLORATION = 0.3


def logged(n_episodes: int = 1_200, seed: int = 0) -> Replay:
    replay = WORLD.roll(LOGGER, n_episodes, 60, seed=seed, noise=0.2)
    split = np.array([TRAIN, TRAIN, SELECT, GATE, GATE], dtype=np.int8)[np.arange(n_episodes) % 5]
    return replace(replay, split=split)


def judge_of(replay: Replay, baseline: Policy | None = None, **changes: Any) -> Judge:
    train = replay.of_split(TRAIN)
    settings: dict[str, Any] = {
        "baseline": baseline,
        "baseline_wrote_select": False,
        "config": SelectConfig(),
        "fqe": FqeConfig(n_random_features=50),
        "propensity": PropensityConfig(),
        "gate": GateConfig(),
        "n_gate_episodes": 480,
        "seed": 0,
    }
    return Judge(replay, fit_encoder(train.contract, train.observations), **(settings | changes))


def candidates_of(replay: Replay) -> Iterator[Candidate]:
    train = replay.of_split(TRAIN)
    encoder = fit_encoder(train.contract, train.observations)
    yield from simple_candidates(train, EXPLORATION)
    yield from counted_candidates(train, encoder, EXPLORATION, pessimisms=(0.0, 1.0), largest=100)


def selected(replay: Replay, **changes: Any) -> Selection:
    judge = judge_of(replay, **changes)

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        return other_forms(
            candidate, judge.episodes, None, temperatures=(0.2,), support_thresholds=(), mixture_shares=(0.5,)
        )

    return select_candidate(candidates_of(replay), judge, other_forms=forms)


def true_value(policy: Any) -> float:
    replay = logged(300)
    states = replay.observations.columns["state"]
    rows = np.array([int(np.flatnonzero(states == s)[0]) for s in range(6)])
    probs = policy.action_probs(replay.observations.take(rows), np.ones((6, 3), dtype=bool))
    return float((WORLD.values(probs) * probs).sum(axis=1).mean())


def judged(name: str, low: float, *, estimate: float | None = None, certifiable: bool = True) -> Judged:
    difference = low + 0.1 if estimate is None else estimate
    return Judged(
        name=name,
        origin="network",
        value=difference,
        difference=difference,
        standard_error=0.1,
        weighted_difference=None,
        weighted_low=None,
        weighted_error=None,
        weights_refused=None,
        estimator="direct",
        lower_bound=low,
        upper_bound=low + 0.2,
        gate_bound=low,
        cannot_certify=None if certifiable else "it cannot be weighted",
    )


def winner(*found: Judged) -> Judged:
    return next(j for j in choose(found, certify_share=0.03, tie_share=0.03) if j.chosen)


def test_a_certifiable_candidate_wins_where_it_costs_little() -> None:
    chosen = winner(judged("bold", 1.0, certifiable=False), judged("tame", 0.98))
    assert chosen.name == "tame"
    assert chosen.why == "can be certified, 0.02 behind the best lower bound (bold)"


def test_a_certifiable_candidate_loses_where_it_costs_much() -> None:
    ranked = choose([judged("bold", 1.0, certifiable=False), judged("tame", 0.9)], certify_share=0.03, tie_share=0.03)
    assert [(j.name, j.chosen) for j in ranked] == [("bold", True), ("tame", False)]
    assert ranked[0].why == "best lower bound; cannot be certified: it cannot be weighted"
    assert ranked[1].why == "lower bound 0.1 behind bold"


def test_where_nothing_beats_the_baseline_only_the_best_bound_wins() -> None:
    assert winner(judged("a", -0.1, certifiable=False), judged("b", -0.101)).name == "a"


def test_equal_bounds_leave_the_choice_to_the_estimate() -> None:
    assert winner(judged("tame", 0.5, estimate=0.6), judged("bold", 0.49, estimate=0.9)).name == "bold"


def test_a_better_bound_by_another_estimator_says_why_it_lost() -> None:
    tame, bold = judged("tame", 0.5, estimate=0.6), judged("bold", 0.485, estimate=0.9)
    between = replace(judged("between", 0.49), estimator="dr", weighted_difference=2.0)
    ranked = choose([tame, bold, between], certify_share=0.03, tie_share=0.03)
    assert {j.name: j.why for j in ranked} == {
        "tame": "estimate behind bold",
        "between": "judged by weighting; only bounds by the model tie with bold",
        "bold": "best estimate, 0.015 behind the best lower bound (tame); can be certified",
    }


def test_what_has_no_bounds_comes_after_what_has() -> None:
    blind = replace(judged("blind", 9.0), lower_bound=None, upper_bound=None, no_bounds="one cluster")
    ranked = choose([blind, judged("a", -1.0)], certify_share=0.03, tie_share=0.03)
    assert [(j.name, j.chosen) for j in ranked] == [("a", True), ("blind", False)]
    assert ranked[1].why == "no bound to compare with a; unranked, one cluster"


def test_one_cluster_ranks_by_the_estimate_in_valid_json() -> None:
    replay = logged(400)
    selection = selected(replace(replay, clusters=np.zeros_like(replay.clusters)))
    json.dumps(selection.to_json(), allow_nan=False)
    assert {(c.lower_bound, c.upper_bound, c.standard_error) for c in selection.candidates} == {(None, None, None)}
    assert selection.chosen.difference == max(c.difference for c in selection.candidates)
    assert selection.chosen.why.startswith("best estimate; cannot be certified")
    assert selection.chosen.why.endswith("unranked, the episodes that judge are one cluster, which shows no error")


@pytest.mark.parametrize("wrote", [False, True])
def test_a_copy_of_the_baseline_is_never_chosen_while_there_is_another(wrote: bool) -> None:
    replay = logged()
    candidates = list(candidates_of(replay))
    best = select_candidate(candidates, judge_of(replay)).chosen.name
    policy = next(c.policy for c in candidates if c.name == best)
    settings = {"baseline": policy, "baseline_wrote_select": wrote, "gate": GateConfig(margin=0.5)}
    selection = select_candidate(candidates, judge_of(replay, **settings))
    copy = next(c for c in selection.candidates if c.name == best)
    assert (copy.chosen, copy.why, copy.certifiable) == (False, "acts as the baseline does", False)
    alone = select_candidate([c for c in candidates if c.name == best], judge_of(replay, **settings))
    assert alone.chosen.why == "acts as the baseline does, as all candidates do"


def test_forms_of_a_copy_of_the_baseline_are_tried() -> None:
    replay = logged()
    copy = next(c for c in candidates_of(replay) if c.origin == "counted")
    simple = next(c for c in candidates_of(replay) if c.origin == "simple")
    judge = judge_of(replay, baseline=copy.policy)

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        return other_forms(
            candidate, judge.episodes, None, temperatures=(0.1,), support_thresholds=(), mixture_shares=()
        )

    assert select_candidate([simple, copy], judge, other_forms=forms).chosen.name == "counted, softmax 0.1"


def test_finalists_are_the_best_step_of_each_learner_that_has_other_forms() -> None:
    replay = logged()
    counted = [c for c in candidates_of(replay) if c.origin == "counted"]
    assert len(counted) == 2
    steps = [replace(c, name=f"dqn at {i}", learner="dqn") for i, c in enumerate(counted)]
    asked: list[str] = []

    def forms(candidate: Candidate) -> Iterator[Candidate]:
        asked.append(candidate.name)
        return iter(())

    simple = [c for c in candidates_of(replay) if c.origin == "simple"]
    ranked = select_candidate([*simple, *steps], judge_of(replay), other_forms=forms).candidates
    assert asked == [next(j.name for j in ranked if j.name.startswith("dqn") and j.same_as is None)]


def test_chosen_policy_is_nearly_the_best_of_the_candidates() -> None:
    replay = logged()
    selection = selected(replay)
    best = max(true_value(candidate.policy) for candidate in candidates_of(replay))
    log = float((WORLD.values(LOGGER) * LOGGER).sum(axis=1).mean())
    assert true_value(selection.policy) > best - 0.1 * (best - log)
    assert selection.baseline_value == pytest.approx(log, abs=0.3)


def test_every_candidate_stands_in_the_table_with_a_bound_and_a_reason() -> None:
    replay = logged()
    selection = selected(replay)
    names = [c.name for c in selection.candidates]
    assert {"always a0", "always a1", "always a2", "tree of the log", "counted"} <= set(names)
    assert sum(c.chosen for c in selection.candidates) == 1
    for c in selection.candidates:
        assert c.why
        assert c.lower_bound is not None
        assert c.upper_bound is not None
        assert c.lower_bound <= c.upper_bound
    assert selection.to_json()["candidates"][0]["name"] == names[0]


def test_differences_cover_the_truth() -> None:
    replay = logged(2_400)
    judge = judge_of(replay)
    log = float((WORLD.values(LOGGER) * LOGGER).sum(axis=1).mean())
    for candidate in simple_candidates(replay.of_split(TRAIN), EXPLORATION):
        found = judge.direct(judge.probs(candidate.policy))
        truth = true_value(candidate.policy) - log
        assert abs(found.difference - truth) < 4 * found.standard_error


def test_gate_episodes_change_nothing() -> None:
    replay = logged(600)
    gate = replay.split[replay.episode_of_step] == GATE
    rng = np.random.default_rng(1)
    other = replace(
        replay,
        rewards=np.where(gate, 1e3 * rng.normal(size=replay.n_steps), replay.rewards),
        actions=np.where(gate, 2, replay.actions),
        behavior_prob=np.where(gate, 0.9, replay.behavior_prob),
    )
    assert selected(other).to_json() == selected(replay).to_json()


def test_a_log_without_probabilities_is_judged_by_the_model_alone() -> None:
    replay = logged(600)
    selection = selected(replace(replay, behavior_prob=np.full(replay.n_steps, np.nan)))
    assert {c.estimator for c in selection.candidates} == {"direct"}
    assert {c.cannot_certify for c in selection.candidates} == {"the log lacks the probabilities of its actions"}


def test_an_empty_select_split_leaves_the_model_on_reused_episodes() -> None:
    replay = logged(600)
    split = np.where(replay.split == SELECT, TRAIN, replay.split).astype(np.int8)
    selection = selected(replace(replay, split=split))
    assert selection.n_episodes == 0
    assert selection.chosen.cannot_certify == "`select` holds 0 episodes"


def test_a_policy_baseline_is_what_differences_are_against() -> None:
    replay = logged()
    always = next(iter(simple_candidates(replay.of_split(TRAIN), EXPLORATION))).policy
    assert isinstance(always, RulePolicy)
    judge = judge_of(replay, baseline=always)
    found = judge.direct(judge.probs(always))
    assert found.difference == 0.0
    assert found.standard_error == 0.0


def test_uncountable_observations_are_judged_by_fitted_q_evaluation() -> None:
    replay = logged()
    judge = judge_of(replay, config=SelectConfig(largest_counted=0))
    log = float((WORLD.values(LOGGER) * LOGGER).sum(axis=1).mean())
    for candidate in simple_candidates(replay.of_split(TRAIN), EXPLORATION):
        found = judge.direct(judge.probs(candidate.policy))
        assert abs(found.difference - (true_value(candidate.policy) - log)) < 5 * found.standard_error + 0.1


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(NoCandidateError, match="there is no candidate to choose from"):
        select_candidate([], judge_of(logged(100)))
