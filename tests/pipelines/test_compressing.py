"""A release made smaller: a new candidate, its loss, and no twin of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.encoding import fit_encoder
from datasets.replay import TRAIN
from datasets.snapshot import open_snapshot
from offline_dqn.architecture import Architecture
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.policy import MixturePolicy, QPolicy, save_policy
from pipelines import stages
from pipelines.acting import load_release
from pipelines.training import ensure_version_zero
from pipelines.workspace import Workspace, open_workspace
from tests.offline_dqn.test_policy import some_weights
from tests.pipelines.conftest import Run, write_small_workspace


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two releases of random weights, 1 plain and 2 mixed with version 0. Not to be changed."""
    root = tmp_path_factory.mktemp("compressing") / "workspace"
    workspace = write_small_workspace(root)
    stages.simulate(workspace, n_episodes=300)
    stages.ingest(workspace)
    path, _ = stages.snapshot(workspace)
    replay, _ = open_snapshot(path)
    encoder = fit_encoder(replay.contract, replay.of_split(TRAIN).observations)
    architecture = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(64, 64), n_members=2)
    clone = Architecture(n_inputs=encoder.size, n_actions=3, hidden=(16,))
    policy = QPolicy(
        contract=replay.contract,
        encoder=encoder,
        architecture=architecture,
        weights=some_weights(architecture),
        reward_scale=2.0,
        exploration=0.3,
        choice=Choice(support_threshold=0.5),
        behavior=BehaviorModel(clone, some_weights(clone, 5)),
        snapshot_digest=replay.digest,
        config={"seed": 0},
    )
    ensure_version_zero(workspace)
    mixture = MixturePolicy(policy, load_release(workspace, 0), 0.5)
    for acting in (policy, mixture):
        staged = workspace.registry.new_staging()
        save_policy(staged, acting)
        training: dict[str, Any] = {"snapshot": path.name, "snapshot_digest": replay.digest, "config": {"seed": 0}}
        training |= {"chosen": "cql 1", "selection": {"candidates": []}, "history": [{"step": 1}]}
        (staged / "training.json").write_text(json.dumps(training))
        workspace.registry.register(staged, tags={"snapshot": path.name})
    return root


@pytest.fixture
def workspace(released: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(released, tmp_path / "workspace")
    return open_workspace(tmp_path / "workspace")


def test_a_distilled_release_is_small_and_acts_alike(workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "compress", 1, "--hidden", "16,16", "--int8", "--updates", 800, "--json")

    assert answer.code == 0, answer.err
    made = answer.json
    policy = load_release(workspace, made["release"])
    assert isinstance(policy, QPolicy)
    assert policy.architecture.hidden == (16, 16)
    assert policy.architecture.n_members == 1
    assert isinstance(policy.weights, Int8Weights)
    assert policy.behavior is not None
    assert isinstance(policy.behavior.weights, Int8Weights)
    assert made["bytes_after"] < made["bytes_before"] / 8
    assert made["loss"]["agreement"] > 0.85
    assert abs(made["loss"]["value_loss"]) < 5 * made["loss"]["standard_error"] + 1.0
    training = json.loads((workspace.release_path(made["release"]) / "training.json").read_text())
    assert training["compression"]["release"] == 1
    assert training["config"]["compression"]["int8"] is True
    assert training["compressed_from"] == {"chosen": "cql 1", "selection": {"candidates": []}, "history": [{"step": 1}]}
    assert training["history"] == []
    assert "selection" not in training
    assert workspace.registry.candidate() == made["release"]
    assert next(r for r in workspace.registry.releases() if r.number == made["release"]).gate == "not evaluated"


def test_the_same_compression_is_the_same_release(workspace: Workspace, run: Run) -> None:
    first, second = (run(workspace, "compress", 1, "--int8", "--json").json for _ in range(2))
    other = run(workspace, "compress", first["release"], "--int8", "--json").json

    assert second == {**first, "repeated": True}
    assert first["loss"]["agreement"] > 0.97
    assert first["bytes_after"] < first["bytes_before"] / 2.5
    assert other["loss"]["agreement"] == 1.0  # int8 of int8 codes is the same policy, and still another release
    assert other["release"] != first["release"]


def test_the_partner_of_a_mixture_stays_as_it_is(workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "compress", 2, "--int8")

    assert answer.code == 0, answer.err
    assert "same action" in answer.out
    policy, before = load_release(workspace, 3), load_release(workspace, 2)
    assert isinstance(policy, MixturePolicy)
    assert isinstance(before, MixturePolicy)
    assert policy.partner == before.partner
    assert isinstance(policy.own.weights, Int8Weights)
    assert policy.own.choice == before.own.choice


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((1,), 1, "There is nothing to compress by"),
        ((0, "--int8"), 1, "Release 0 acts by rules"),
        ((9, "--int8"), 1, "There is no release 9"),
        ((1, "--hidden", "many"), 2, "wants whole numbers such as 32,32"),
        ((1, "--hidden", "0"), 2, "wants whole numbers such as 32,32"),
    ],
)
def test_what_cannot_be_compressed_is_a_message(
    arguments: tuple[object, ...], code: int, message: str, workspace: Workspace, run: Run
) -> None:
    answer = run(workspace, "compress", *arguments)

    assert answer.code == code
    assert message in answer.err
