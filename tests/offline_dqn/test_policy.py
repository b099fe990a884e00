from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.compatibility import IncompatibleContractError
from datasets.contract import Contract
from datasets.encoding import fit_encoder
from datasets.observations import Observations, observations_from_records
from offline_dqn.architecture import Architecture, forward
from offline_dqn.exploration import NoAvailableActionError
from offline_dqn.networks import QNetwork
from offline_dqn.policy import (
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


def some_policy(dueling: bool = False, exploration: float = 0.1) -> QPolicy:
    encoder = fit_encoder(CONTRACT, some_observations())
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(16, 8), dueling=dueling)
    torch.manual_seed(0)
    return QPolicy(
        contract=CONTRACT,
        encoder=encoder,
        architecture=architecture,
        weights=QNetwork(architecture).to_weights(),
        reward_scale=2.5,
        exploration=exploration,
        snapshot_digest="1" * 64,
        config={"seed": 0},
    )


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("hidden", [(), (32,), (256, 256)])
def test_numpy_forward_agrees_with_torch(dueling: bool, hidden: tuple[int, ...]) -> None:
    architecture = Architecture(n_inputs=7, n_actions=4, hidden=hidden, dueling=dueling)
    network = QNetwork(architecture)
    encoded = np.random.default_rng(0).normal(size=(70_000, 7)).astype(np.float32)  # two chunks
    with torch.no_grad():
        wanted = network(torch.from_numpy(encoded)).numpy()
    np.testing.assert_allclose(forward(architecture, network.to_weights(), encoded), wanted, atol=1e-5)
    assert {n: w.shape for n, w in network.to_weights().items()} == architecture.parameter_shapes()


def test_policy_acts_without_torch() -> None:
    heavy = ("torch", "mlflow", "prefect", "sklearn", "scipy")
    code = f"import sys, offline_dqn.policy; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dueling", [False, True])
def test_saved_policy_acts_as_before(tmp_path: Path, dueling: bool) -> None:
    policy, observations = some_policy(dueling), some_observations()
    digest = save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    available = np.ones((len(observations), 3), dtype=bool)
    np.testing.assert_array_equal(loaded.q_values(observations), policy.q_values(observations))
    np.testing.assert_array_equal(
        loaded.action_probs(observations, available), policy.action_probs(observations, available)
    )
    assert isinstance(loaded, QPolicy)
    assert loaded.contract == CONTRACT
    assert loaded.config == {"seed": 0}
    assert loaded.digest == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]


def test_same_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    save_policy(tmp_path / "a", some_policy())
    save_policy(tmp_path / "b", some_policy())
    for name in ("policy.json", "policy.safetensors"):
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
    np.testing.assert_array_equal(
        probs[:3].argmax(axis=1), policy.q_values(observations.take(np.arange(3))).argmax(axis=1)
    )
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


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    save_policy(tmp_path, some_policy())
    path = tmp_path / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(PolicyArtifactError, match=r"policy.safetensors was altered .* Restore"):
        load_policy(tmp_path)


@pytest.mark.parametrize("key", ["exploration", "reward_scale", "snapshot_digest", "weights_sha256", "digest"])
def test_altered_manifest_is_refused(tmp_path: Path, key: str) -> None:
    save_policy(tmp_path, some_policy())
    path = tmp_path / "policy.json"
    manifest = json.loads(path.read_text())
    manifest[key] = 0.5 if isinstance(manifest[key], float) else "0" * 64
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


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyArtifactError, match="holds no policy"):
        load_policy(tmp_path)
    save_policy(tmp_path, some_policy())
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(PolicyArtifactError, match=r"policy\.safetensors cannot be read"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(PolicyArtifactError, match=r"policy\.json cannot be read"):
        load_policy(tmp_path)


RULES = (
    Rule("observation.cpu > 0.8", "up"),
    Rule("observation.zone = 'a' AND observation.busy", "down"),
    Rule("observation.load[1] > 100 -- a comment", "up"),
)


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
        PolicyRuleError, match=r"(?s)'sideways' is none of.*rule 1: .*cpuu.*rule 2: .*not one condition"
    ):
        RulePolicy(CONTRACT, (*rules, Rule("true", "sideways")), otherwise="hold")


def test_a_rule_cannot_read_files() -> None:
    with pytest.raises(PolicyRuleError, match="rule 1"):
        RulePolicy(CONTRACT, (Rule("(SELECT count(*) FROM read_text('/etc/hostname')) > 0", "up"),), otherwise="hold")
