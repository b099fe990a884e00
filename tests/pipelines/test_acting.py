"""What a release would do: the policy of the release itself, and every problem of a file at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.contract import contract_from_json
from offline_dqn.guarded import GuardedPolicy, learned_part
from offline_dqn.rule_policy import Rule, RulePolicy
from pipelines import acting
from pipelines.acting import load_release
from pipelines.training import ensure_version_zero
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit

OBSERVATION = {"cpu": 0.9, "request_rate": 170.0, "replicas": 2, "pending": 0, "p95_ms": 300, "hour": 3.0, "zone": "a"}

Write = Callable[..., Path]


@pytest.fixture
def lines(tmp_path: Path) -> Write:
    """Writes the given lines: text as it stands, anything else as JSON."""

    def write(*values: object) -> Path:
        path = tmp_path / "observations.jsonl"
        path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values))
        return path

    return write


def test_a_line_is_an_observation_or_holds_one(workspace: Workspace, run: Run, lines: Write) -> None:
    path = lines(OBSERVATION, "", {"observation": OBSERVATION}, {"observation": OBSERVATION, "available_actions": None})

    answer = run(workspace, "act", 1, path)
    rows = [json.loads(line) for line in answer.out.splitlines()]

    assert answer.code == 0
    assert len(rows) == 3
    assert rows[0] == rows[1] == rows[2]
    assert run(workspace, "act", 1, path, "--json").json == {"release": 1, "decisions": rows}
    assert sorted(rows[0]["probabilities"].values()) == pytest.approx([0.7 / 3, 0.7 / 3, 0.3 + 0.7 / 3], abs=1e-6)
    assert rows[0]["action"] == max(rows[0]["q_values"], key=rows[0]["q_values"].get)


def test_a_bin_acts_with_its_number(tmp_path: Path, lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = contract_from_json(
        {
            "name": "pool",
            "gamma": 0.9,
            "features": {"load": {"type": "numeric"}},
            "actions": {"bins": [0, 10, 50, 100], "values": [1, 20, 60]},
        },
        "test",
    )
    policy = RulePolicy(contract, (Rule("observation.load > 1", "[50, 100]"),), otherwise="[0, 10)")
    monkeypatch.setattr(acting, "load_release", lambda *_, **__: policy)
    monkeypatch.setattr(Workspace, "contract", contract)
    (tmp_path / "offline_dqn.toml").touch()

    found = acting.act(Workspace(tmp_path), 1, lines({"load": 2.0}, {"load": 0.0}))

    assert [(row["action"], row["action_value"]) for row in found] == [("[50, 100]", 60.0), ("[0, 10)", 1.0)]


def test_onnxruntime_says_the_same(workspace: Workspace, run: Run, lines: Write) -> None:
    edit(workspace.root / "contract.toml", '"scale_up"]\n', '"scale_up", "restart"]\n')
    path = lines(
        OBSERVATION, {"observation": {**OBSERVATION, "zone": "unheard of"}, "available_actions": ["hold", "scale_up"]}
    )

    ours, theirs = (
        run(workspace, "act", 1, path, "--engine", engine, "--json").json["decisions"] for engine in ("numpy", "onnx")
    )

    for row, other in zip(ours, theirs, strict=True):
        assert other["action"] == row["action"]
        assert other["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
        assert (row["q_values"] is None) == (other["q_values"] is None)
        if row["q_values"]:
            assert other["q_values"].pop("restart") is row["q_values"].pop("restart") is None
            assert other["q_values"] == pytest.approx(row["q_values"], rel=1e-4)


def test_version_zero_says_the_same_in_onnxruntime(workspace: Workspace, run: Run, lines: Write) -> None:
    path = lines(OBSERVATION, {**OBSERVATION, "cpu": 0.5}, {**OBSERVATION, "cpu": 0.2, "replicas": 3})

    ours, theirs = (run(workspace, "act", 0, path, "--engine", engine, "--json").json for engine in ("numpy", "onnx"))

    assert theirs == ours


def test_rules_without_a_graph_say_so(fresh: Workspace, run: Run, lines: Write) -> None:
    edit(fresh.root / "offline_dqn.toml", '"observation.cpu > 0.6"', '"sqrt(observation.cpu) > 0.8"')
    ensure_version_zero(open_workspace(fresh.root))

    answer = run(fresh, "act", 0, lines(OBSERVATION), "--engine", "onnx")

    assert answer.code == 1
    assert "Release 0 acts by rules, and these have no graph" in answer.err


def test_masks_hold(workspace: Workspace, run: Run, lines: Write) -> None:
    path = lines(
        {"observation": OBSERVATION, "available_actions": ["hold"]},
        {**OBSERVATION, "available_actions": ["hold", "scale_up"]},
    )

    only, two = run(workspace, "act", 1, path, "--json").json["decisions"]

    assert (only["action"], only["probabilities"]) == ("hold", {"scale_down": 0.0, "hold": 1.0, "scale_up": 0.0})
    assert two["probabilities"]["scale_down"] == 0.0
    assert sum(two["probabilities"].values()) == pytest.approx(1.0)


def test_version_zero_acts_by_its_rules(workspace: Workspace, run: Run, lines: Write) -> None:
    path = lines(OBSERVATION, {**OBSERVATION, "cpu": 0.5}, {**OBSERVATION, "cpu": 0.2, "replicas": 3})

    rows = run(workspace, "act", 0, path, "--json").json["decisions"]

    assert [row["action"] for row in rows] == ["scale_up", "hold", "scale_down"]
    assert rows[0]["q_values"] is None


def test_an_empty_file_has_no_decisions(workspace: Workspace, run: Run, lines: Write) -> None:
    assert run(workspace, "act", 1, lines(""), "--json").json == {"release": 1, "decisions": []}
    assert run(workspace, "act", 1, lines("\n\n")).out == ""


def test_every_problem_of_a_file_is_listed_with_its_line(workspace: Workspace, run: Run, lines: Write) -> None:
    path = lines(
        OBSERVATION,
        "{not json",
        "",
        [1, 2],
        {k: v for k, v in OBSERVATION.items() if k not in {"cpu", "zone"}},
        {**OBSERVATION, "cpu": 1.5, "colour": "red"},
        {"observation": OBSERVATION, "available_actions": ["hold", "fly"]},
        {"observation": OBSERVATION, "available_actions": []},
        {"observation": OBSERVATION, "available_actions": "hold"},
        {"observation": 5},
        '{"cpu": NaN}',
    )

    answer = run(workspace, "act", 1, path, "--json")

    assert (answer.code, answer.out) == (1, "")
    for problem in [
        "has 17 problems, so nothing acted",
        "line 2: is not valid JSON",
        "line 4: wants a JSON object, found [1, 2]",
        "line 5: cpu is missing",
        "line 5: zone is missing",
        "line 6: 'colour' is no feature of the contract 'autoscaler'",
        "line 6: cpu is 1.5, outside [0.0, 1.0]",
        "line 7: 'fly' is no action of this release (scale_down, hold, scale_up)",
        "line 8: available_actions is empty, so there is nothing to choose from",
        'line 9: available_actions wants a list of actions, found "hold"',
        "line 10: observation wants a JSON object, found 5",
        "and 7 more",
    ]:
        assert problem in answer.err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_a_message(
    content: bytes | None, workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "observations.jsonl"
    if content is not None:
        path.write_bytes(content)

    answer = run(workspace, "act", 1, path)

    assert answer.code == 1
    assert f"{path} {'does not exist' if content is None else 'cannot be read as text'}" in answer.err


def test_an_unknown_or_altered_release_does_not_act(workspace: Workspace, run: Run, lines: Write) -> None:
    unknown = run(workspace, "act", 9, lines(OBSERVATION))
    weights = workspace.release_path(1) / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    altered = run(workspace, "act", 1, lines(OBSERVATION))

    assert (unknown.code, altered.code) == (1, 1)
    assert "There is no release 9" in unknown.err
    assert "there are: 0, 1." in unknown.err
    assert "Release 1 is not what was registered: policy.safetensors is altered" in altered.err


@pytest.mark.parametrize("engine", ["numpy", "onnx"])
def test_the_shield_of_the_current_contract_holds_for_an_older_release(
    workspace: Workspace, run: Run, lines: Write, engine: str
) -> None:
    contract = workspace.root / "contract.toml"
    contract.write_text(
        contract.read_text()
        + "[constraints.cool]\nforbid = \"action = 'scale_up' AND observation.cpu < 0.5\"\n"
        + '[constraints.stop]\nforbid = "observation.cpu > 0.95"\n'
    )
    path = lines(OBSERVATION, {**OBSERVATION, "cpu": 0.1}, {**OBSERVATION, "cpu": 0.99})

    free, cool, stopped = run(workspace, "act", 1, path, "--engine", engine, "--json").json["decisions"]

    assert (free["forbidden"], free["decided_by"]) == ({}, "policy")
    # So idle under so many requests was never seen: version 0 acts, behind the same shield.
    assert (cool["forbidden"], cool["decided_by"], cool["guard"]) == ({"scale_up": "cool"}, "guard", "strange")
    assert cool["probabilities"]["scale_up"] == 0.0
    assert cool["probabilities"]["scale_up"] == 0.0
    assert sum(cool["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert stopped["decided_by"] == "shield"
    assert stopped["action"] == "hold"
    assert stopped["probabilities"]["hold"] == 1.0
    assert set(stopped["forbidden"].values()) == {"stop"}


def test_a_constraint_that_fails_on_an_observation_lets_nothing_act(
    workspace: Workspace, run: Run, lines: Write
) -> None:
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text() + '[constraints.odd]\nforbid = "CAST(observation.zone AS INTEGER) = 1"\n')

    answer = run(workspace, "act", 1, lines(OBSERVATION))

    assert answer.code == 1
    assert "odd, `CAST(observation.zone AS INTEGER) = 1`, fails in row 0 of 1" in answer.err


def test_a_release_acts_under_a_contract_that_has_grown(workspace: Workspace, run: Run, lines: Write) -> None:
    before = run(workspace, "act", 1, lines(OBSERVATION), "--json").json["decisions"][0]
    contract = workspace.root / "contract.toml"
    edit(contract, '"scale_up"]\n', '"scale_up", "restart"]\n')

    after = run(workspace, "act", 1, lines(OBSERVATION), "--json").json["decisions"][0]

    assert after["probabilities"] == {**before["probabilities"], "restart": 0.0}
    assert after["q_values"] == {**before["q_values"], "restart": None}


def test_a_release_refuses_a_contract_that_lost_its_action(workspace: Workspace, run: Run, lines: Write) -> None:
    edit(workspace.root / "contract.toml", '"scale_up"]\n', '"grow"]\n')

    answer = run(workspace, "act", 1, lines(OBSERVATION))

    assert answer.code == 1
    assert "scale_up" in answer.err


def test_what_acts_is_what_was_registered(workspace: Workspace) -> None:
    policy = load_release(workspace, 1)

    assert policy.actions == ("scale_down", "hold", "scale_up")
    assert isinstance(policy, GuardedPolicy)
    assert learned_part(policy).exploration == 0.7
