from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.compatibility import IncompatibleContractError
from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations, observations_from_records
from offline_dqn import policy as policy_module
from offline_dqn.architecture import Architecture, Weights
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.description import build, describe, tensors_of
from offline_dqn.exploration import NoAvailableActionError
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.mixture import MixturePolicy
from offline_dqn.networks import initial_parameters, to_weights
from offline_dqn.policy import (
    AnyPolicy,
    Policy,
    PolicyArtifactError,
    QPolicy,
    Rule,
    RulePolicy,
    check_compatible,
    load_policy,
    save_policy,
)
from offline_dqn.rule_policy import PolicyRuleError

VALUES: dict[str, Any] = {
    "name": "autoscaler",
    "gamma": 0.9,
    "features": {
        "cpu": {"type": "numeric", "unit": "ratio", "nullable": True},
        "zone": {"type": "categorical", "nullable": True},
        "busy": {"type": "boolean"},
        "load": {"type": "vector", "length": 2},
    },
    "actions": {"names": ["down", "hold", "up"]},
}
CONTRACT = Contract.model_validate(VALUES)
NEWER = Contract.model_validate(VALUES | {"actions": {"names": ["up", "burst", "down", "hold"]}})


RULES = (
    Rule("observation.cpu > 0.8", "up"),
    Rule("observation.zone = 'a' AND observation.busy", "down"),
    Rule("observation.load[1] > 100 -- a comment", "up"),
)


def some_observations(n_rows: int = 40) -> Observations:
    rng = np.random.default_rng(0)
    return observations_from_records(
        CONTRACT,
        [
            {
                "cpu": None if i == 3 else float(rng.random()),
                "zone": None if i == 5 else "abc"[i % 3],
                "busy": bool(i % 2),
                "load": rng.normal(size=2).tolist(),
            }
            for i in range(n_rows)
        ],
    )


def some_weights(architecture: Architecture, seed: int = 0) -> Weights:
    return to_weights(initial_parameters(architecture, tuple(range(seed, seed + architecture.n_members))))


def some_policy(exploration: float = 0.1, *, seed: int = 0, threshold: float = 0.0, **shape: Any) -> QPolicy:
    """A policy of random weights; with a threshold, also with a behavior model of random weights."""
    encoder = fit_encoder(CONTRACT, some_observations())
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(16, 8), **shape)
    clone = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(8,))
    return QPolicy(
        contract=CONTRACT,
        encoder=encoder,
        architecture=architecture,
        weights=some_weights(architecture, seed),
        reward_scale=2.5,
        exploration=exploration,
        choice=Choice(support_threshold=threshold),
        behavior=BehaviorModel(clone, some_weights(clone, 7)) if threshold else None,
        snapshot_digest="1" * 64,
        config={"seed": 0},
    )


def everything(n_rows: int) -> NDArray[np.bool_]:
    return np.ones((n_rows, 3), dtype=bool)


def test_policy_acts_without_torch() -> None:
    heavy = ("torch", "mlflow", "prefect", "sklearn", "scipy", "onnx", "onnxruntime")
    code = f"import sys, offline_dqn.policy; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def some_mixture() -> MixturePolicy:
    rules = RulePolicy(CONTRACT, RULES, otherwise="hold", exploration=0.2)
    within = MixturePolicy(some_policy(seed=3, threshold=0.8), rules, 0.25)
    return MixturePolicy(some_policy(n_members=2, dueling=True), within, 0.5)


ONE_OF_EACH: dict[str, Callable[[], AnyPolicy]] = {
    "plain": some_policy,
    "ensemble of quantiles": lambda: some_policy(n_members=3, n_quantiles=5, dueling=True),
    "supported": lambda: some_policy(threshold=0.9),
    "clone": lambda: replace(some_policy(), kind="logits", choice=Choice(rule="softmax"), reward_scale=1.0),
    "int8": lambda: replace(some_policy(n_members=2), weights=Int8Weights.of(some_policy(n_members=2).weights)),
    "mixture": some_mixture,
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_saved_policy_acts_as_before(tmp_path: Path, kind: str) -> None:
    policy, observations = ONE_OF_EACH[kind](), some_observations()
    digest = save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    available = everything(len(observations))
    np.testing.assert_array_equal(
        loaded.action_probs(observations, available), policy.action_probs(observations, available)
    )
    for ask in ("q_values", "disagreement"):
        found, wanted = getattr(loaded, ask)(observations), getattr(policy, ask)(observations)
        assert (found is None) == (wanted is None)
        if wanted is not None:
            np.testing.assert_array_equal(found, wanted)
    assert isinstance(loaded, QPolicy | MixturePolicy)
    assert loaded.contract == CONTRACT
    assert loaded.config == {"seed": 0}
    assert loaded.snapshot_digest == "1" * 64
    assert loaded.digest == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.onnx", "policy.safetensors"]


def test_same_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    save_policy(tmp_path / "a", some_mixture())
    save_policy(tmp_path / "b", some_mixture())
    for name in ("policy.json", "policy.safetensors", "policy.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_probabilities_explore_and_respect_masks() -> None:
    policy, observations = some_policy(exploration=0.3), some_observations(6)
    available = np.array([[1, 1, 1]] * 3 + [[1, 0, 1]] * 2 + [[0, 1, 0]], dtype=bool)
    probs = policy.action_probs(observations, available)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (probs[~available] == 0).all()
    np.testing.assert_allclose(probs[:3].max(axis=1), 0.7 + 0.1)
    np.testing.assert_allclose(probs[3:5].max(axis=1), 0.7 + 0.15)
    assert probs[5, 1] == 1.0
    q_values = policy.q_values(observations.take(np.arange(3)))
    assert q_values is not None
    np.testing.assert_array_equal(probs[:3].argmax(axis=1), q_values.argmax(axis=1))
    with pytest.raises(NoAvailableActionError, match="1 of 6 rows"):
        policy.action_probs(observations, available & ~(np.arange(6) == 5)[:, None])


def test_policy_follows_the_labels_of_a_newer_contract(tmp_path: Path) -> None:
    policy, observations = some_policy(), some_observations(8)
    save_policy(tmp_path, policy)
    check_compatible(policy.contract, NEWER)
    newer = load_policy(tmp_path, actions=NEWER.actions.names)
    own = policy.action_probs(observations, np.ones((8, 3), dtype=bool))
    probs = newer.action_probs(observations, np.ones((8, 4), dtype=bool))
    assert newer.actions == ("up", "burst", "down", "hold")
    assert (probs[:, 1] == 0).all()
    np.testing.assert_array_equal(probs[:, [2, 3, 0]], own)
    q_values = newer.q_values(observations)
    assert q_values is not None
    assert np.isneginf(q_values[:, 1]).all()
    with pytest.raises(PolicyArtifactError, match="hold are not among"):
        load_policy(tmp_path, actions=("up", "down"))


def test_incompatible_contract_is_refused_with_every_difference() -> None:
    changed = json.loads(json.dumps(VALUES))
    changed["features"]["cpu"]["unit"] = "percent"
    del changed["features"]["zone"]
    changed["actions"]["names"] = ["down", "hold"]
    with pytest.raises(IncompatibleContractError, match=r"(?s)unit was 'ratio'.*zone is gone.*'up' is gone"):
        check_compatible(CONTRACT, Contract.model_validate(changed))


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.onnx"])
def test_altered_files_are_refused(tmp_path: Path, name: str) -> None:
    save_policy(tmp_path, some_policy())
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(PolicyArtifactError, match=rf"{name} was altered .* Restore"):
        load_policy(tmp_path)


@pytest.mark.parametrize("key", ["exploration", "reward_scale", "snapshot_digest", "files", "graph", "digest"])
def test_altered_manifest_is_refused(tmp_path: Path, key: str) -> None:
    save_policy(tmp_path, some_policy())
    path = tmp_path / "policy.json"
    manifest = json.loads(path.read_text())
    manifest[key] = 0.5 if isinstance(manifest[key], float) else "0" * 64 if isinstance(manifest[key], str) else {}
    path.write_text(json.dumps(manifest))
    with pytest.raises(PolicyArtifactError, match=r"policy.json was altered"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "has format 99"), ({"kind": "pickle"}, "has kind 'pickle'")],
)
def test_unknown_format_and_kind_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_policy(tmp_path, some_policy())
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PolicyArtifactError, match=message):
        load_policy(tmp_path)


def test_diverged_weights_are_not_saved(tmp_path: Path) -> None:
    policy = some_policy()
    broken = {name: np.where(w > 0, np.inf, w) if name == "head.weight" else w for name, w in policy.weights.items()}
    with pytest.raises(PolicyArtifactError, match=r"head.weight are not finite numbers: training diverged"):
        save_policy(tmp_path, replace(policy, weights=broken))
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyArtifactError, match="holds no policy"):
        load_policy(tmp_path)
    save_policy(tmp_path, some_policy())
    (tmp_path / "policy.safetensors").unlink()  # the graph alone is no policy
    with pytest.raises(PolicyArtifactError, match=r"policy\.safetensors cannot be read"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(PolicyArtifactError, match=r"policy\.json cannot be read"):
        load_policy(tmp_path)


def rule_rows(*rows: tuple[float | None, str | None, bool]) -> Observations:
    return observations_from_records(
        CONTRACT, [{"cpu": c, "zone": z, "busy": b, "load": [0.0, 0.0]} for c, z, b in rows]
    )


def test_first_matching_rule_acts_and_null_matches_nothing() -> None:
    policy: Policy = RulePolicy(CONTRACT, RULES, otherwise="hold")
    rows = rule_rows((0.9, "a", True), (0.1, "a", True), (None, "b", True), (0.1, None, True), (0.1, "a", False))
    probs = policy.action_probs(rows, np.ones((5, 3), dtype=bool))
    assert [policy.actions[a] for a in probs.argmax(axis=1)] == ["up", "down", "hold", "hold", "hold"]
    assert policy.q_values(rows) is None


def test_rules_pass_over_an_unavailable_action() -> None:
    policy = RulePolicy(CONTRACT, RULES, otherwise="hold", exploration=0.2)
    available = np.array([[True, True, False], [True, False, False], [True, False, True]])
    probs = policy.action_probs(rule_rows((0.9, "a", True), (0.9, "b", True), (0.1, "b", True)), available)
    np.testing.assert_allclose(probs, [[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])


def test_rules_survive_saving_and_a_newer_contract(tmp_path: Path) -> None:
    digest = save_policy(tmp_path, RulePolicy(CONTRACT, RULES, otherwise="hold", exploration=0.1))
    policy = load_policy(tmp_path, actions=NEWER.actions.names)
    probs = policy.action_probs(rule_rows((0.9, "a", True)), np.ones((1, 4), dtype=bool))
    assert policy.digest == digest
    np.testing.assert_allclose(probs, [[0.9 + 0.1 / 3, 0.0, 0.1 / 3, 0.1 / 3]])


def test_every_bad_rule_is_named() -> None:
    rules = (Rule("observation.cpuu > 1", "up"), Rule("1) AS INT) FROM steps; COPY steps TO 'x'; SELECT CAST((1", "up"))
    with pytest.raises(
        PolicyRuleError, match=r"(?s)'sideways' is none of.*rule 1: .*cpuu.*rule 2: .*not one expression"
    ):
        RulePolicy(CONTRACT, (*rules, Rule("true", "sideways")), otherwise="hold")


def test_a_rule_cannot_read_files() -> None:
    with pytest.raises(PolicyRuleError, match="rule 1"):
        RulePolicy(CONTRACT, (Rule("(SELECT count(*) FROM read_text('/etc/hostname')) > 0", "up"),), otherwise="hold")


def test_a_rule_cannot_look_at_other_rows() -> None:
    whens = ("observation.cpu > (SELECT 1)", "observation.cpu IN (SELECT 1)", "EXISTS (SELECT 1)")
    for when in whens:
        with pytest.raises(PolicyRuleError, match=r"rule 1: .* holds a subquery"):
            RulePolicy(CONTRACT, (Rule(when, "up"),), otherwise="hold")


def test_a_rule_that_fails_names_itself_and_the_row(tmp_path: Path) -> None:
    rows = rule_rows((0.9, "1", True), (0.9, "2", True), (0.9, "a", True))
    rules = (Rule("observation.busy", "up"), Rule("CAST(observation.zone AS INT) > 3", "up"))
    cast = RulePolicy(CONTRACT, rules, otherwise="hold")
    save_policy(tmp_path, cast)
    with pytest.raises(
        PolicyRuleError, match=r"rule 2, `CAST.* fails in row 2 of 3, .*'zone': 'a'.*TRY_CAST"
    ) as failed:
        cast.action_probs(rows, everything(3))
    assert failed.value.without_row == (
        "rule 2, `CAST(observation.zone AS INT) > 3`, fails in row 2 of 3 (ConversionException). Write it so that it "
        "holds for every observation, for instance with TRY_CAST."
    )
    overflow = RulePolicy(CONTRACT, (Rule("observation.cpu > 2147483647 + 1", "up"),), otherwise="hold")
    save_policy(tmp_path, overflow)
    with pytest.raises(PolicyRuleError, match=r"rule 1, .* fails in row 0 of 3, .*Overflow"):
        overflow.action_probs(rows, everything(3))


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter a manifest as somebody would who also gives it the right digest."""
    path = directory / "policy.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest | {"digest": policy_module._digest(manifest)}))


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no exploration": (lambda m: m.pop("exploration"), "exploration: missing"),
    "no contract": (lambda m: m.pop("contract"), "contract: missing"),
    "no files": (lambda m: m.pop("files"), "files = None"),
    "another file": (lambda m: m["files"].update({"../secret": "0"}), r"files = .*\.\./secret"),
    "a scale that is no number": (lambda m: m.update(reward_scale=float("nan")), "reward_scale: .*nan"),
    "a scale of zero": (lambda m: m.update(reward_scale=0.0), "reward_scale: .*greater than 0"),
    "a list for a table": (lambda m: m.update(encoder=[]), "encoder: "),
    "half an encoding": (lambda m: m["encoder"]["cpu"].pop("mean"), r"encoder.cpu.mean: missing"),
    "uneven encoding": (lambda m: m["encoder"]["cpu"].update(scale=[]), "mean and scale of the encoder's cpu differ"),
    "an encoder of something else": (lambda m: m["encoder"].pop("cpu"), r"networks with \(inputs, actions\)"),
    "an unknown output": (lambda m: m.update(outputs="votes"), "outputs: "),
    "no precision": (lambda m: m.update(precision="int4"), "precision: "),
    "a behavior of text": (lambda m: m.update(behavior="me"), "behavior: "),
    "support of nobody": (lambda m: m["choice"].update(support_threshold=0.5), "needs a behavior model"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_manifests_are_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, message = MALFORMED[fault]
    save_policy(tmp_path, some_policy())
    rewrite(tmp_path, change)
    with pytest.raises(PolicyArtifactError, match=rf"(?s)policy\.json.*{message}"):
        load_policy(tmp_path)


def test_malformed_rules_and_mixtures_are_refused_by_name(tmp_path: Path) -> None:
    save_policy(tmp_path / "rules", RulePolicy(CONTRACT, RULES, otherwise="hold"))
    rewrite(tmp_path / "rules", lambda m: m["rules"][0].pop("when"))
    with pytest.raises(PolicyArtifactError, match=r"(?s)policy\.json.*rules.0.when: missing"):
        load_policy(tmp_path / "rules")
    for change, message in (
        (lambda m: m.update(share=1.5), "share: "),
        (lambda m: m.update(own=m["partner"]["partner"]), "own of a mixture has kind 'rules'"),
        (lambda m: m["partner"].pop("kind"), "has kind None"),
    ):
        save_policy(tmp_path / "mixture", some_mixture())
        rewrite(tmp_path / "mixture", change)
        with pytest.raises(PolicyArtifactError, match=rf"(?s)policy\.json.*{message}"):
            load_policy(tmp_path / "mixture")


@pytest.mark.parametrize(("name", "value"), [("head.weight.scales", 0.0), ("head.bias", np.nan)])
def test_unusable_weights_are_not_loaded(name: str, value: float) -> None:
    policy = ONE_OF_EACH["int8"]()
    tensors = tensors_of(policy)
    tensors[name] = np.full_like(tensors[name], value)
    with pytest.raises(PolicyArtifactError, match=rf"here describes weights of which {name} are not usable"):
        build(describe(policy), tensors, "here", None)


def test_weights_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    save_policy(tmp_path, some_policy())
    (tmp_path / "policy.safetensors").write_bytes(b"pickle")
    rewrite(tmp_path, lambda m: m["files"].update({"policy.safetensors": hashlib.sha256(b"pickle").hexdigest()}))
    with pytest.raises(PolicyArtifactError, match=r"policy\.safetensors holds no tensors"):
        load_policy(tmp_path)
