"""A workspace may be moved, its files may be wrong, and its contract may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import stages
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit

OBSERVATION = '{"cpu":0.9,"request_rate":90.0,"replicas":2,"pending":0,"p95_ms":300,"hour":3.0,"zone":"a"}'


def test_every_command_works_in_a_moved_workspace(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    assert run(workspace, "query", "SELECT 1").code == 0  # builds the catalog at the old place
    moved = tmp_path / "elsewhere" / "a workspace"
    moved.parent.mkdir()
    shutil.move(workspace.root, moved)
    (tmp_path / "observations.jsonl").write_text(OBSERVATION)

    for arguments in [
        ["query", "SELECT count(*) FROM transitions"],
        ["batches", "list"],
        ["releases"],
        ["nights"],
        ["plan"],
        ["drift"],
        ["simulate", "--episodes", "48"],
        ["ingest"],
        ["snapshot"],
        ["evaluate", "1"],
        ["act", "1", str(tmp_path / "observations.jsonl")],
        ["rollback", "--to", "0"],
        ["promote", "1", "--reviewer", "Ada"],
    ]:
        answer = run(moved, *arguments, "--json")
        assert answer.code == 0, (arguments, answer.err)
        assert str(workspace.root) not in answer.out, arguments


def test_keys_that_are_wrong_are_named_with_the_nearest_known_one(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_update = 800\nbatch_size = 0")

    answer = run(workspace, "drift", "--json")

    assert (answer.code, answer.out) == (1, "")
    assert "offline_dqn.toml has 2 problems" in answer.err
    assert "train.n_update: unknown key; did you mean 'n_updates'?" in answer.err
    assert "train.batch_size: Input should be greater than 0 (found 0)" in answer.err


def test_a_table_that_is_misspelt_is_named(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "[evaluate]", "[evaluation]")

    assert "evaluation: unknown key; did you mean 'evaluate'?" in run(workspace, "query", "SELECT 1").err


def test_a_contract_that_is_wrong_is_named_with_the_nearest_known_key(workspace: Workspace, run: Run) -> None:
    contract = workspace.root / "contract.toml"
    edit(contract, "[features.hour]         # of the day, UTC\ntype", "[features.hour]\nexogenus = true\ntype")

    answer = run(workspace, "query", "SELECT 1")

    assert answer.code == 1
    assert (
        "contract.toml has 1 problem:\n  features.hour.exogenus: unknown key; did you mean 'exogenous'?" in answer.err
    )


def test_a_file_that_is_not_toml_names_the_line(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = ")

    answer = run(workspace, "drift")

    assert answer.code == 1
    assert "offline_dqn.toml is not valid TOML" in answer.err
    assert "line" in answer.err


def test_a_contract_may_grow_after_the_lake_was_written(workspace: Workspace, run: Run) -> None:
    contract = workspace.root / "contract.toml"
    edit(contract, "max = 16.0", "max = 32.0")
    edit(contract, '"scale_up"]\n', '"scale_up", "restart"]\n')
    contract.write_text(contract.read_text() + '\n[features.queue]\ntype = "numeric"\nnullable = true\n')

    asked = run(workspace, "query", "SELECT count(*) AS n, count(observation.queue) AS known FROM steps", "--json")
    assert asked.json["rows"] == [{"n": 12000, "known": 0}]

    edit(workspace.root / "offline_dqn.toml", "[snapshot]", "[validate]\nmax_null_share = 1.0\n\n[snapshot]")
    grown = open_workspace(workspace.root)
    stages.simulate(grown, n_episodes=48)
    assert stages.ingest(grown).batch.counts.n_lake == 288  # type: ignore[union-attr]  # there was a new night
    assert stages.evaluate(grown, 1).repeated
    assert run(workspace, "drift").code == 0
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 20")
    assert run(workspace, "snapshot").code == 0
    trained = run(workspace, "train", "--json")
    assert (trained.code, trained.json["release"]) == (0, 2)
    assert run(workspace, "evaluate", 2).code in {0, 3}


def test_a_contract_that_no_longer_fits_the_lake_is_refused_with_every_difference(
    workspace: Workspace, run: Run
) -> None:
    contract = workspace.root / "contract.toml"
    stages.simulate(workspace, n_episodes=24)
    edit(contract, "max = 16.0", "max = 8.0")
    edit(contract, '["scale_down", "hold", "scale_up"]', '["hold", "scale_up"]')
    edit(contract, "action = 'scale_down'", "action = 'hold'")  # a rule must name an action there is

    for arguments in [["query", "SELECT 1"], ["ingest"], ["drift"], ["batches", "list"], ["snapshot"]]:
        answer = run(workspace, *arguments)

        assert answer.code == 1, arguments
        assert "The contract no longer fits the lake" in answer.err
        assert "features.replicas: range max was 16.0 and is 8.0" in answer.err
        assert "actions.names lost 'scale_down', which logged rows may hold; keep it" in answer.err
        assert "Undo these changes, or start a new workspace" in answer.err


@pytest.mark.parametrize("lost", ["contract.toml", "offline_dqn.toml"])
def test_a_workspace_that_lost_a_file_is_none(lost: str, workspace: Workspace, run: Run) -> None:
    (workspace.root / lost).unlink()

    assert "it lacks contract.toml or offline_dqn.toml" in run(workspace, "releases").err


def test_the_simulator_lets_the_rules_of_the_workspace_act(fresh: Workspace) -> None:
    edit(fresh.root / "offline_dqn.toml", 'otherwise = "hold"', 'otherwise = "scale_up"')
    edit(fresh.root / "offline_dqn.toml", "0.6", "2.0")
    edit(fresh.root / "offline_dqn.toml", "0.3", "-1.0")
    edited = open_workspace(fresh.root)
    stages.simulate(edited, n_episodes=500)
    stages.ingest(edited)

    ((up, probability),) = edited.query(
        "SELECT avg((action = 'scale_up')::INT), min(behavior_prob) FILTER (action = 'scale_up') FROM steps"
    ).rows

    assert probability == pytest.approx(0.3 + 0.7 / 3)  # the rules never say anything else
    assert up == pytest.approx(probability, abs=0.04)
