"""A whole evaluation under a contract with constraints, success and slices: what is evaluated is what acts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.replay import GATE, Replay
from datasets.step_rules import ConstraintError
from reports.evaluation import evaluate_candidate
from reports.records import Evaluation
from tests.reports.test_evaluation import CONFIG, CONTRACT, GATE_CONFIG, UNIFORM, WORLD, TablePolicy, make_replay
from tests.reports.worlds import greedy, simulate

RULES = (
    CONTRACT.replace('names = ["left", "right"]', 'names = ["left", "right"]\nsafe = "right"')
    + """
[success]
when = "action = 'right'"
[constraints.not_there]
forbid = "action = 'left' AND observation.state = '1'"
[constraints.seldom]
breached = "next_observation.state = '3'"
limit = 0.6
[slices]
columns = ["state"]
"""
)
CANDIDATE = greedy(WORLD, 0.5)


def replay_under(text: str = RULES, n: int = 3_000) -> Replay:
    return make_replay(simulate(WORLD, UNIFORM, n, np.random.default_rng(1)), UNIFORM, text=text)


def evaluated(replay: Replay, candidate: TablePolicy | None = None) -> Evaluation:
    return evaluate_candidate(
        replay, candidate=candidate or TablePolicy(CANDIDATE), baseline=None, version_zero=None, candidate_name="7",
        baseline_name="the log", excluded={}, config=CONFIG, gate_config=GATE_CONFIG, seed=0,
    )  # fmt: skip


def test_the_value_is_that_of_the_policy_behind_its_shield() -> None:
    shielded = CANDIDATE.copy()
    shielded[1] = [0.0, 1.0]
    replay = replay_under()

    found = evaluated(replay)

    estimate = found.estimate("dr", "candidate")
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval.low < WORLD.value(shielded) < estimate.interval.high
    plain = evaluated(replay_under(CONTRACT)).estimate("dr", "candidate")
    assert plain is not None
    assert plain.value != estimate.value
    assert found.propensities.refused is None  # the log was free to do what is forbidden now

    assert found.safety is not None
    gate = replay.of_split(GATE)
    there = gate.observations.columns["state"] == 1
    assert found.safety.forbidden[0].n_forbidden == there.sum()
    assert found.safety.forbidden[0].n_logged == (there & (gate.actions == 0)).sum()


def test_every_part_of_the_contract_is_in_the_record_and_in_the_gate() -> None:
    found = evaluated(replay_under())

    assert found.safety is not None
    assert found.slices is not None
    assert found.decision is not None
    seldom = found.safety.breaches[0]
    assert seldom.n_unjudged == found.counts.n_episodes  # the last step of an episode has no next observation
    assert seldom.n_charged == 0
    assert seldom.n_judged + seldom.n_unjudged == found.counts.n_steps
    assert [part.label for part in found.slices.slices if part.upper_bound is not None] != []
    assert sum(part.n_episodes for part in found.slices.slices) == found.counts.n_episodes
    assert {"constraint seldom", "slices"} <= {check.name for check in found.decision.checks}
    assert found.safety.success is not None
    log = next(rate for rate in found.safety.success.rates if rate.policy == "log")
    shares = next(shares for shares in found.action_shares if shares.policy == "log")
    assert log.value == pytest.approx(shares.shares["right"])


def test_a_contract_that_asks_for_nothing_moves_no_number() -> None:
    plain, asked = (
        evaluated(replay_under(CONTRACT, 600)),
        evaluated(replay_under(CONTRACT + '[success]\nwhen = "true"\n[slices]\ncolumns = ["state"]\n', 600)),
    )

    assert plain.safety is None
    assert plain.slices is None
    assert asked.estimates == plain.estimates
    assert asked.comparisons == plain.comparisons


def test_a_condition_that_fails_on_a_step_stops_the_evaluation_and_names_the_step() -> None:
    text = RULES.replace("next_observation.state = '3'", "CAST(observation.state AS INTEGER) > 9")
    replay = replay_under(text, 200)
    vocabularies = {"state": ("0", "1", "2", "three")}

    with pytest.raises(ConstraintError, match=r"constraints.seldom, .*fails in step \d+ of episode 'e\d+', .*'three'"):
        evaluated(replace(replay, observations=replace(replay.observations, vocabularies=vocabularies)))


def test_own_values_are_those_of_the_action_that_the_shield_lets_through() -> None:
    """Where "left" is forbidden its value is nonsense that nobody ever acts on; the values of the rest are true."""
    shielded = greedy(WORLD, 0.0)
    shielded[1] = [0.0, 1.0]
    own = WORLD.q(shielded)
    shielded = np.eye(2)[np.where(np.arange(4) == 1, 1, own.argmax(axis=1))]
    own = WORLD.q(shielded)
    own[1, 0] = 50.0

    calibration = evaluated(replay_under(), replace(TablePolicy(CANDIDATE), q=own)).q_calibration

    assert calibration is not None
    assert calibration.excess is not None
    assert abs(calibration.excess) < 0.5, "with the 50 it would be 38"
