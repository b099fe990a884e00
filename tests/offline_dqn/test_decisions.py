"""The core of every decision: what is forbidden is never drawn, and what is drawn from is what is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_json
from datasets.encoding import fit_encoder
from datasets.observations import observations_from_records, record_of
from datasets.row_conditions import Record
from datasets.step_rules import forbidden_actions, permitted_actions
from offline_dqn.architecture import Architecture
from offline_dqn.compiled_shield import CompiledShield
from offline_dqn.decisions import (
    Permission,
    Scorer,
    Scores,
    ScoringError,
    decide,
    draw,
    forbidden_by,
    merged,
    permit,
)
from offline_dqn.description import along
from offline_dqn.exploration import NoAvailableActionError
from offline_dqn.onnx_export import export_graph
from offline_dqn.policy import AnyPolicy, MixturePolicy, QPolicy, Rule, RulePolicy
from offline_dqn.scorers import CompiledRules, NumpyScorer, OnnxScorer, scorer_of
from offline_dqn.shield import shielded_probs
from tests.offline_dqn.test_policy import some_weights

NAMES = ("down", "hold", "up", "burst")
FEATURES: dict[str, Any] = {
    "load": {"type": "numeric", "nullable": True},
    "zone": {"type": "categorical", "nullable": True},
    "busy": {"type": "boolean"},
}
CONDITIONS = (
    "observation.load > 0.5",
    "observation.zone = 'a'",
    "observation.busy",
    "observation.load IS NULL",
    "coalesce(observation.load, 1) * 2 < 0.5",
    "observation.zone IN ('b', 'c') AND NOT observation.busy",
    "sqrt(abs(observation.load)) > 0.9",  # which DuckDB is asked about
)
PLAIN = contract_from_json({"name": "x", "gamma": 0.9, "features": FEATURES, "actions": {"names": list(NAMES)}}, "test")
RECORDS = st.fixed_dictionaries(
    {
        "load": st.sampled_from([None, -0.3, 0.1, 0.5, 0.9, 3.0]),
        "zone": st.sampled_from([None, "a", "b", "x"]),
        "busy": st.booleans(),
    }
)


@cache
def contract_of(seed: int) -> Contract:
    """Three random constraints, each on some of the actions; seed 0 has none."""
    rng = np.random.default_rng(seed)
    forbids = {}
    for i in range(min(seed, 3)):
        taken = rng.choice(NAMES, size=rng.integers(1, 5), replace=False)
        forbids[f"rule_{i}"] = {
            "forbid": f"action IN ({', '.join(map(repr, map(str, taken)))}) AND ({rng.choice(CONDITIONS)})"
        }
    values = PLAIN.to_json() | {"actions": {"names": list(NAMES), "safe": str(rng.choice(NAMES))}}
    return contract_from_json({**values, "constraints": forbids}, "test")


@cache
def policies() -> list[AnyPolicy]:
    """Of every kind: networks that know three of the four actions, rules, and both mixed."""
    older = contract_from_json({**PLAIN.to_json(), "actions": {"names": list(NAMES[:3])}}, "test")
    rows = [{"load": 0.1 * i, "zone": "abc"[i % 3], "busy": i % 2 == 0} for i in range(9)]
    encoder = fit_encoder(older, observations_from_records(older, rows))
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(8,))
    q = QPolicy(older, encoder, architecture, some_weights(architecture), 1.0, 0.2, actions=NAMES)
    rules = RulePolicy(
        older, (Rule("observation.load > 0.4", "up"), Rule("observation.busy", "down")), "hold", 0.3, actions=NAMES
    )
    return [q, rules, MixturePolicy(q, rules, 0.5)]


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 8).map(contract_of), st.lists(RECORDS, min_size=1, max_size=8), st.data())
def test_what_is_forbidden_or_not_available_is_never_drawn(
    contract: Contract, values: list[dict[str, Any]], data: st.DataObject
) -> None:
    records = [record_of(contract, value) for value in values]
    available = np.array([data.draw(st.lists(st.booleans(), min_size=4, max_size=4).filter(any)) for _ in records])
    forbidden = CompiledShield(contract).forbidden(records)
    observations = observations_from_records(contract, values)
    expected = forbidden_actions(contract, observations)
    assert all(np.array_equal(forbidden[name], expected[name]) for name in expected)  # what DuckDB says
    for policy in policies():
        scorer = scorer_of(policy)
        try:
            permission = permit(contract.actions, scorer.known, available, merged(forbidden))
        except NoAvailableActionError:
            assert not contract.forbids
            continue
        decided = decide(scorer, contract.actions, records, permission)

        same = shielded_probs(policy, contract, observations, permitted_actions(contract, observations, available))
        assert np.allclose(decided.probs, same, atol=1e-12)  # what is served is what is evaluated
        taken = merged(forbidden)
        for row, probs in enumerate(decided.probs.tolist()):
            chosen = draw(probs, data.draw(st.floats(0, 1, exclude_max=True)))
            assert probs[chosen] > 0
            if decided.decided_by[row] == "shield":
                assert NAMES[chosen] == contract.actions.safe
            else:
                assert available[row, chosen]
                assert taken is None or not taken[row, chosen]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(any), st.floats(0, 1, exclude_max=True))
def test_an_action_without_probability_is_never_drawn(weights: list[float], uniform: float) -> None:
    probs = (np.array(weights) / sum(weights)).tolist()
    assume(all(np.isfinite(probs)))

    assert probs[draw(probs, uniform)] > 0


def test_actions_are_drawn_as_often_as_their_probabilities_say() -> None:
    probs = [0.1, 0.0, 0.6, 0.3]
    uniforms = (np.arange(10_000) + 0.5) / 10_000  # evenly spread: counts are exact but for the borders

    counts = Counter(draw(probs, uniform) for uniform in uniforms)

    assert counts == {0: 1000, 2: 6000, 3: 3000}


class Broken:
    """A scorer whose answer is given."""

    actions, known = NAMES, np.ones(4, dtype=bool)

    def __init__(self, *probs: float) -> None:
        self._probs = np.array([probs])

    def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:  # noqa: ARG002
        return Scores(self._probs)


@pytest.mark.parametrize(
    ("probs", "words"),
    [
        ((0.5, 0.5, 0.0, 0.0), "an action that is not permitted"),
        ((np.nan, 0.5, 0.5, 0.0), "no probabilities"),
        ((0.0, 0.5, 0.4, 0.0), "no probabilities"),
        ((0.0, 1.5, -0.5, 0.0), "no probabilities"),
    ],
)
def test_an_answer_that_cannot_be_acted_upon_is_refused(probs: tuple[float, ...], words: str) -> None:
    permission = Permission(np.array([[False, True, True, True]]), np.array([False]))

    with pytest.raises(ScoringError, match=words):
        decide(Broken(*probs), PLAIN.actions, [{}], permission)


def test_a_guard_is_told_apart_from_the_policy() -> None:
    class Guarded(Broken):
        def score(self, records: Sequence[Record], permitted: NDArray[np.bool_]) -> Scores:
            scores = super().score(records, permitted)
            return Scores(np.repeat(scores.probs, len(records), axis=0), guard=["", "strange"])

    permission = Permission(np.ones((2, 4), dtype=bool), np.zeros(2, dtype=bool))

    decided = decide(Guarded(0.25, 0.25, 0.25, 0.25), PLAIN.actions, [{}, {}], permission)

    assert decided.decided_by == ("policy", "guard")


def test_the_first_constraint_that_forbids_is_named() -> None:
    masks = {"a": np.array([[True, False, True, False]]), "b": np.array([[True, True, True, False]])}

    assert forbidden_by(NAMES, masks, 0, np.array([True, True, False, True])) == {"down": "a", "hold": "b"}


@cache
def quickest() -> list[tuple[AnyPolicy, Scorer]]:
    """Each policy with its quickest engine."""
    return [(policy, scorer_of(policy, export_graph(along(policy, NAMES[:3])))) for policy in policies()]


@settings(deadline=None, max_examples=30)
@given(st.lists(RECORDS, min_size=1, max_size=6), st.data())
def test_engines_say_the_same(values: list[dict[str, Any]], data: st.DataObject) -> None:
    records = [record_of(PLAIN, value) for value in values]
    masks = st.lists(st.booleans(), min_size=4, max_size=4).filter(lambda mask: any(mask[:3]))
    permitted = np.array([data.draw(masks) for _ in records])
    permitted[:, 3] = False
    for policy, scorer in quickest():
        reference, found = NumpyScorer(policy).score(records, permitted), scorer.score(records, permitted)
        assert np.allclose(found.probs, reference.probs, atol=1e-5)
        assert (found.q_values is None) == (reference.q_values is None)


def test_the_quickest_engine_is_taken() -> None:
    slow = RulePolicy(PLAIN, (Rule("sqrt(observation.load) > 2", "up"),), "hold")

    assert [type(scorer) for _, scorer in quickest()] == [OnnxScorer, CompiledRules, OnnxScorer]
    assert isinstance(scorer_of(slow, export_graph(slow)), NumpyScorer)
