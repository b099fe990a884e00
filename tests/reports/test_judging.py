"""What may judge: which episodes, by which weights, and policies as they act on each."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import GATE, SELECT, TRAIN
from offline_dqn.candidates import simple_candidates
from offline_dqn.policy import RulePolicy
from offline_dqn.rule_policy import Rule
from reports.crossfit import step_probs
from reports.gate import GateConfig
from tests.offline_dqn.worlds import make_replay
from tests.reports.test_selection import EXPLORATION, judge_of, logged


def test_an_empty_select_split_beside_a_champion_is_judged_by_the_model() -> None:
    replay = logged(600)
    always = next(iter(simple_candidates(replay.of_split(TRAIN), EXPLORATION))).policy
    split = np.where(replay.split == SELECT, TRAIN, replay.split).astype(np.int8)
    judge = judge_of(replace(replay, split=split), baseline=always, baseline_wrote_select=True)
    assert judge.direct(judge.probs(always)).difference == 0.0


def test_after_a_change_of_the_world_older_training_episodes_do_not_judge() -> None:
    replay = logged(1_200)
    new = np.arange(1_200) >= 600
    nights = np.where(new, np.datetime64("2026-02-01"), np.datetime64("2026-01-01")).astype("datetime64[D]")
    rewards = np.where(new[replay.episode_of_step], replay.rewards, replay.rewards + 100.0)
    changed = replace(
        replay,
        nights=nights,
        rewards=rewards,
        split=np.where((replay.split == SELECT) & ~new, GATE, replay.split).astype(np.int8),
    )
    judge = judge_of(changed, judge_since=date(2026, 2, 1))
    assert judge.train.n_episodes == int((new & (replay.split == TRAIN)).sum())
    assert judge.baseline_value < 50.0

    alone = judge_of(changed.subset(new | (changed.split != SELECT)), judge_since=date(2026, 2, 2))  # `select` alone
    assert (alone.train.n_episodes, alone.select.n_episodes) == (0, 120)
    policy = next(iter(simple_candidates(replay.of_split(TRAIN), 0.9))).policy
    assert alone.why_not_weighted(alone.probs(policy)) is None
    assert np.isfinite(alone.direct(alone.probs(policy)).low(0.75))
    assert any(e.estimator == "dr" for e in alone.weighted(policy, alone.probs(policy)).estimates)


def test_select_episodes_that_lack_a_probability_are_left_out_of_weighting() -> None:
    replay = logged(1_200)
    step = np.flatnonzero(replay.split[replay.episode_of_step] == SELECT)[3]
    behavior_prob = replay.behavior_prob.copy()
    behavior_prob[step] = np.nan
    policy = next(iter(simple_candidates(replay.of_split(TRAIN), 0.9))).policy
    judge = judge_of(replace(replay, behavior_prob=behavior_prob))
    assert judge.why_not_weighted(judge.probs(policy)) is None
    assert judge.weighted(policy, judge.probs(policy)).estimates
    gate = GateConfig.model_validate({"overlap": {"smallest_sample_size": 10_000}})
    strict = judge_of(replace(replay, behavior_prob=behavior_prob), gate=gate)
    reason = strict.why_not_weighted(strict.probs(policy))
    assert reason is not None
    assert reason.endswith("without 1 episodes that lack a probability")


def test_labels_that_the_encoder_never_saw_are_judged_apart() -> None:
    contract = Contract.model_validate({
        "name": "x", "gamma": 0.9, "features": {"zone": {"type": "categorical"}}, "actions": {"names": ["a", "b"]},
        "episodes": {"kind": "one_step"},
    })  # fmt: skip
    rng, n = np.random.default_rng(0), 300
    split = np.array([TRAIN, TRAIN, SELECT], dtype=np.int8)[np.arange(n) % 3]
    zones = np.where(split == TRAIN, 0, rng.integers(1, 3, size=n)).astype(np.int32)
    observations = Observations({"zone": zones}, {"zone": ("eu", "new1", "new2")})
    made = make_replay(contract, observations, rng.integers(2, size=n), rng.normal(size=n), np.ones(n, dtype=int))
    rules = (Rule("observation.zone = 'new1'", "a"),)
    policy = RulePolicy(contract=contract, rules=rules, otherwise="b", exploration=0.1)
    judge = judge_of(replace(made, split=split))
    np.testing.assert_array_equal(judge.probs(policy), step_probs(policy, judge.episodes))
