"""The exported graph against the policy: onnxruntime's numbers beside numpy's, which `test_networks` ties to torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import observations_from_records
from offline_dqn import onnx_export, rule_graph
from offline_dqn.architecture import Architecture, ImageShape
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.description import PolicyArtifactError, along
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.mixture import MixturePolicy
from offline_dqn.networks import network_values
from offline_dqn.onnx_export import export_graph
from offline_dqn.onnx_policy import OnnxPolicy
from offline_dqn.parity import TOLERANCE, measure_parity, probe_rows
from offline_dqn.policy import QPolicy, Rule, RulePolicy, load_policy, save_policy
from tests.offline_dqn.test_policy import (
    CONTRACT,
    NEWER,
    RULES,
    VALUES,
    everything,
    some_observations,
    some_policy,
    some_weights,
)


def older_partner() -> QPolicy:
    """A champion of an older contract: it lacks the action "hold" and the feature "load"."""
    values = VALUES | {
        "features": {name: feature for name, feature in VALUES["features"].items() if name != "load"},
        "actions": {"names": ["up", "down"]},
    }
    contract = Contract.model_validate(values)
    encoder = fit_encoder(contract, some_observations())
    architecture = Architecture(n_inputs=encoder.size, n_actions=2, hidden=(6,))
    return replace(
        some_policy(),
        contract=contract,
        encoder=encoder,
        architecture=architecture,
        weights=some_weights(architecture, 9),
        actions=CONTRACT.actions.names,
    )


def picture_policy(**shape: Any) -> QPolicy:
    screen = {"type": "image", "shape": [5, 6, 2], "nullable": True}
    contract = Contract.model_validate(VALUES | {"features": VALUES["features"] | {"screen": screen}})
    rows = some_observations()
    pictures = np.random.default_rng(0).integers(0, 256, (40, 61)).astype(np.uint8)
    pictures[:, -1] = 0
    pictures[7] = [*[0] * 60, 1]  # missing
    encoder = fit_encoder(contract, replace(rows, columns=dict(rows.columns) | {"screen": pictures}))
    image = ImageShape(height=5, width=6, channels=2)
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(16,), image=image, **shape)
    return replace(
        some_policy(), contract=contract, encoder=encoder, architecture=architecture, weights=some_weights(architecture)
    )


def wide_policy() -> QPolicy:
    plain = some_policy()
    architecture = plain.architecture.model_copy(update={"hidden": (256, 256)})
    return replace(plain, architecture=architecture, weights=some_weights(architecture))


POLICIES: dict[str, Any] = {
    "plain": some_policy,
    "wide": wide_policy,
    "linear": lambda: linear_policy(),
    "dueling ensemble": lambda: some_policy(n_members=3, dueling=True),
    "cvar of quantiles": lambda: replace(
        some_policy(n_members=2, n_quantiles=8, dueling=True), choice=Choice(cvar_share=0.3)
    ),
    "softmax": lambda: replace(some_policy(), choice=Choice(rule="softmax", temperature=0.5)),
    "supported": lambda: some_policy(threshold=0.9, exploration=0.0),
    "supported by quantiles": lambda: with_wide_behavior(some_policy(threshold=0.9, n_quantiles=4)),
    "clone": lambda: replace(some_policy(), kind="logits", choice=Choice(rule="softmax"), reward_scale=1.0),
    "picture": lambda: picture_policy(n_members=2),
    "int8": lambda: replace(some_policy(n_members=2), weights=Int8Weights.of(some_policy(n_members=2).weights)),
    "mixture": lambda: MixturePolicy(some_policy(), some_policy(seed=5, threshold=0.8), 0.3),
    "mixture with an older champion": lambda: MixturePolicy(
        some_policy(), MixturePolicy(some_policy(seed=2), older_partner(), 0.4), 0.3
    ),
}


def with_wide_behavior(policy: QPolicy) -> QPolicy:
    """Its behavior model has as many quantiles as its values."""
    clone = policy.architecture.model_copy(update={"hidden": (8,)})
    return replace(policy, behavior=BehaviorModel(clone, some_weights(clone, 7)))


def linear_policy() -> QPolicy:
    plain = some_policy()
    architecture = plain.architecture.model_copy(update={"hidden": ()})
    return replace(plain, architecture=architecture, weights=some_weights(architecture))


def graph_of(policy: QPolicy | MixturePolicy) -> OnnxPolicy:
    exported = export_graph(policy)
    assert exported is not None
    return OnnxPolicy(policy.contract, *exported)


@pytest.mark.parametrize("kind", POLICIES)
def test_graph_says_what_the_policy_says(kind: str) -> None:
    policy = POLICIES[kind]()
    observations, available = probe_rows(policy, 4_000)  # missing, unseen and extreme values, and masks
    parity = measure_parity(policy, graph_of(policy), observations, available)
    assert parity.n_rows == 4_000
    assert parity.largest_difference <= TOLERANCE
    assert parity.n_differing == 0
    assert parity.n_ties < 10


@pytest.mark.parametrize("kind", POLICIES)
def test_probabilities_agree_outside_ties(kind: str) -> None:
    policy = POLICIES[kind]()
    observations, available = probe_rows(policy, 500)
    probs, q_values = graph_of(policy).score(observations, available)
    wanted = policy.action_probs(observations, available)
    assert (np.abs(probs - wanted).max(axis=1) > 1e-5).sum() <= 1
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-12)
    assert (probs[~available] == 0).all()
    assert (q_values is None) == (policy.q_values(observations) is None)


def test_one_row_scores_as_it_does_among_many() -> None:
    policy = some_policy(n_members=2)
    graph, rows = graph_of(policy), some_observations()
    probs, q_values = graph.score(rows, everything(40))
    assert q_values is not None
    for row in (0, 3, 5):  # 3 lacks cpu, 5 lacks zone
        one, one_q = graph.score(rows.take(np.array([row])), everything(1))
        np.testing.assert_allclose(one[0], probs[row], atol=1e-6)
        assert one_q is not None
        np.testing.assert_allclose(one_q[0], q_values[row], atol=1e-6)


def test_graph_takes_raw_values_without_our_code(tmp_path: Path) -> None:
    policy = some_policy()
    save_policy(tmp_path, policy)
    described = json.loads((tmp_path / "policy.json").read_text())["graph"]
    assert [(i["name"], i["type"], i["shape"]) for i in described["inputs"]] == [
        ("available_actions", "bool", ["n", 3]),
        ("cpu", "double", ["n"]),
        ("zone", "string", ["n"]),
        ("busy", "double", ["n"]),
        ("load", "double", ["n", 2]),
    ]
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    row = {"cpu": [np.nan], "zone": [""], "busy": [1.0], "load": [[0.1, -0.2]]}
    feeds = {name: np.array(value, dtype=object if name == "zone" else None) for name, value in row.items()}
    q_values, probs = session.run(["q_values", "probabilities"], feeds | {"available_actions": everything(1)})
    record = {"cpu": None, "zone": None, "busy": True, "load": [0.1, -0.2]}
    observations = observations_from_records(CONTRACT, [record])
    wanted = policy.q_values(observations)
    assert wanted is not None
    np.testing.assert_allclose(q_values, wanted, rtol=1e-5)
    np.testing.assert_allclose(probs, policy.action_probs(observations, everything(1)), rtol=1e-5)
    model = onnx.load(tmp_path / "policy.onnx")
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {"actions": ["down", "hold", "up"]}


def test_a_feature_named_like_the_mask_keeps_its_own_input() -> None:
    values = VALUES | {"features": {"q_values": {"type": "numeric"}, "busy": {"type": "boolean"}}}
    contract = Contract.model_validate(values)
    rows = observations_from_records(contract, [{"q_values": float(i), "busy": bool(i % 2)} for i in range(10)])
    encoder = fit_encoder(contract, rows)
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(4,))
    policy = replace(
        some_policy(), contract=contract, encoder=encoder, architecture=architecture, weights=some_weights(architecture)
    )
    exported = export_graph(policy)
    assert exported is not None
    assert [i["name"] for i in exported[1]["inputs"]] == ["available_actions", "observation.q_values", "busy"]


WHENS = (
    "observation.cpu > 0.8 AND NOT observation.busy",
    "observation.zone = 'a' OR observation.cpu IS NULL",
    "NOT (observation.zone IN ('a', 'b'))",
    "observation.zone <> 'c' AND observation.load[2] * 2 - 1 >= -0.5",
    "observation.cpu BETWEEN 0.1 AND 0.3 -- a comment",
    "observation.zone IS NULL OR (observation.busy AND 0.25 + observation.cpu < 1e-1)",
    "NOT (observation.cpu > 0.5) AND NOT (observation.cpu <= 0.2 AND observation.busy IS NOT NULL)",
    'observation."load"[1] != 0 AND true',
    "observation.busy = false AND (observation.busy <> true OR observation.cpu > 0.4)",
)


@pytest.mark.parametrize("when", WHENS)
def test_rules_have_a_graph_with_the_nulls_of_sql(when: str) -> None:
    policy = RulePolicy(CONTRACT, (Rule(when, "up"), Rule("observation.cpu > 0.6", "down")), "hold", exploration=0.2)
    observations, available = probe_rows(policy, 2_000)
    exported = export_graph(policy)
    assert exported is not None
    probs, q_values = OnnxPolicy(CONTRACT, *exported).score(observations, available)
    np.testing.assert_allclose(probs, policy.action_probs(observations, available), atol=1e-12)
    assert q_values is None
    assert len(np.unique(probs.argmax(axis=1))) == 3


def test_a_mixture_with_rules_is_one_graph(tmp_path: Path) -> None:
    mixture = MixturePolicy(some_policy(), RulePolicy(CONTRACT, RULES, otherwise="hold", exploration=0.1), 0.5)
    save_policy(tmp_path, mixture)
    described = json.loads((tmp_path / "policy.json").read_text())["graph"]
    assert described["whole"] is True
    parity = measure_parity(mixture, graph_of(mixture), *probe_rows(mixture, 4_000))
    assert parity.holds, parity.text


def test_rules_that_sql_alone_can_say_act_outside_the_graph(tmp_path: Path) -> None:
    own, rows = some_policy(), some_observations()
    rules = RulePolicy(CONTRACT, (Rule("sqrt(observation.cpu) > 0.5", "up"),), otherwise="hold")
    save_policy(tmp_path / "mixture", MixturePolicy(own, rules, 0.5))
    save_policy(tmp_path / "rules", rules)
    described = json.loads((tmp_path / "mixture" / "policy.json").read_text())["graph"]
    assert described["whole"] is False
    assert described["outputs"] == ["q_values", "own_probabilities"]
    graph = OnnxPolicy(CONTRACT, (tmp_path / "mixture" / "policy.onnx").read_bytes(), described)
    probs, _ = graph.score(rows, everything(40))
    np.testing.assert_allclose(probs, own.action_probs(rows, everything(40)), atol=1e-6)
    assert [path.name for path in (tmp_path / "rules").iterdir()] == ["policy.json"]


def test_a_row_without_available_action_has_no_probabilities() -> None:
    probs, _ = graph_of(some_policy()).score(some_observations(2), np.array([[False] * 3, [True] * 3]))
    assert np.isnan(probs[0]).all()
    np.testing.assert_allclose(probs[1].sum(), 1.0)


def test_a_graph_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(tmp_path, some_policy())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(onnx_export, "CLIP", 0.5)
    with pytest.raises(PolicyArtifactError, match=r"policy.onnx would not act as the policy does: on 256 probe rows"):
        save_policy(tmp_path, some_policy(seed=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_export_leaves_no_half_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_export, "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_policy(tmp_path, some_policy())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PolicyArtifactError, match="holds no policy"):
        load_policy(tmp_path)


def test_graph_follows_the_contract_of_the_policy(tmp_path: Path) -> None:
    save_policy(tmp_path / "own", some_policy())
    save_policy(tmp_path / "newer", along(some_policy(), NEWER.actions.names))
    for name in ("policy.json", "policy.onnx"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "newer" / name).read_bytes()


def test_graph_agrees_with_the_network_in_torch() -> None:
    policy = replace(some_policy(), architecture=wide_policy().architecture, weights=wide_policy().weights)
    observations, available = probe_rows(policy, 4_000)
    _, q_values = graph_of(policy).score(observations, available)
    parameters = {name: torch.from_numpy(weight) for name, weight in policy.weights.items()}
    encoded = torch.from_numpy(policy.encoder.encode(observations))
    wanted = network_values(policy.architecture, parameters, encoded)[0, ..., 0].numpy() * policy.reward_scale
    assert q_values is not None
    np.testing.assert_allclose(q_values, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())
    ordered = np.sort(wanted, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > TOLERANCE * np.abs(wanted).max()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(q_values.argmax(axis=1)[clear], wanted.argmax(axis=1)[clear])


@pytest.mark.parametrize("rule", ["greedy", "softmax"])
def test_a_graph_that_explores_more_does_not_hold(rule: Any) -> None:
    policy = replace(some_policy(exploration=0.1), choice=Choice(rule=rule, temperature=0.1))
    rows = probe_rows(policy, 200)
    wilder = measure_parity(policy, graph_of(replace(policy, exploration=0.6)), *rows)
    assert not wilder.holds
    assert wilder.n_differing > 100
    assert measure_parity(policy, graph_of(policy), *rows).holds


def test_rules_that_a_graph_would_read_otherwise_have_none() -> None:
    whens = ("observation.cpu >= 0.1 + 0.2", "observation.cpu * (1 + 2) > 1", "0.1 = 0.10", "observation.zone = ''")
    for when in whens:
        rules = RulePolicy(CONTRACT, (Rule(when, "up"),), otherwise="hold")
        assert export_graph(rules) is None, when
    rules = RulePolicy(CONTRACT, (Rule("observation.cpu >= 0.3", "up"),), otherwise="hold")
    row = observations_from_records(CONTRACT, [{"cpu": 0.3, "zone": "a", "busy": True, "load": [0.0, 0.0]}])
    exported = export_graph(rules)
    assert exported is not None
    probs, _ = OnnxPolicy(CONTRACT, *exported).score(row, everything(1))
    np.testing.assert_array_equal(probs, rules.action_probs(row, everything(1)))


def test_rules_that_disagree_with_their_graph_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = RulePolicy(CONTRACT, (Rule("observation.cpu > 0.5", "up"),), otherwise="hold")
    monkeypatch.setitem(rule_graph._COMPARISONS, "COMPARE_GREATERTHAN", "Less")
    assert export_graph(rules) is None
