"""What each command prints and how it ends: 0 done, 1 failed, 2 wrong usage, 3 a negative verdict."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from datasets.locking import exclusive_lock
from pipelines import command, console, stages
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, chatter, edit, finish, start_command

COMMANDS = [
    ["simulate"],
    ["ingest"],
    ["validate"],
    ["query", "SELECT 1"],
    ["snapshot"],
    ["drift"],
    ["train"],
    ["evaluate", "1"],
    ["plan"],
    ["act", "1", "observations.jsonl"],
    ["nightly"],
    ["nights"],
    ["releases"],
    ["ledger"],
    ["promote", "1", "--reviewer", "Ada"],
    ["rollback"],
    ["batches", "list"],
    ["batches", "show", "b"],
    ["batches", "release", "b"],
    ["batches", "reject", "b"],
]


def name(command: list[str]) -> str:
    return " ".join(command[: 2 if command[0] == "batches" else 1])


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_a_workspace_that_does_not_exist_is_a_failure_that_says_how_to_make_one(
    command: list[str], run: Run, tmp_path: Path
) -> None:
    answer = run(tmp_path / "nowhere", *command, "--json")

    assert (answer.code, answer.out) == (1, "")
    assert f"nowhere does not exist. Name one with --workspace, or make one: offline-dqn init {tmp_path}" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_a_folder_that_is_no_workspace_says_what_it_lacks(command: list[str], run: Run, tmp_path: Path) -> None:
    answer = run(tmp_path, *command)

    assert (answer.code, answer.out) == (1, "")
    assert "is no workspace: it lacks contract.toml or offline_dqn.toml" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["evaluate"],
        ["evaluate", "one"],
        ["promote", "1"],
        ["query"],
        ["query", "SELECT 1", "--format", "xml"],
        ["simulate", "--night", "0"],
        ["simulate", "--traffic", "0"],
        ["batches"],
        ["batches", "show"],
        ["act", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str], run: Run) -> None:
    answer = run(None, *arguments)

    assert answer.code == 2
    assert "Usage: offline-dqn" in answer.err + answer.out


def test_init_writes_once(run: Run, tmp_path: Path) -> None:
    made = run(None, "init", tmp_path / "new", "--scenario", "autoscaler", "--json")
    assert (made.code, made.json) == (0, {"workspace": str(tmp_path / "new"), "scenario": "autoscaler"})

    again = run(None, "init", tmp_path / "new")
    assert again.code == 1
    assert "already holds contract.toml; nothing was changed. Choose another folder." in again.err

    unknown = run(None, "init", tmp_path / "other", "--scenario", "nope")
    assert (unknown.code, (tmp_path / "other").exists()) == (1, False)
    assert "There is no scenario 'nope'. Known: autoscaler, blank." in unknown.err


def test_a_blank_workspace_has_no_simulator(run: Run, tmp_path: Path) -> None:
    assert "edit contract.toml" in run(None, "init", tmp_path / "blank").out

    answer = run(tmp_path / "blank", "simulate")

    assert answer.code == 1
    assert "has no simulator: its offline_dqn.toml lacks the table [simulate]" in answer.err


def test_simulate_writes_the_night_with_the_traffic_it_is_asked_for(fresh: Workspace, run: Run, tmp_path: Path) -> None:
    quiet = run(fresh, "simulate", "--episodes", "200", "--json").json
    busy = run(fresh, "simulate", "--episodes", "200", "--night", "7", "--traffic", "1.6", "--json").json
    trace = tmp_path / "trace.csv"
    hours = [
        f"2026-01-05T{hour:02}:{minute:02}:00Z,{1000 + hour}"
        for hour in range(24)
        for minute in (0, 10, 20, 30, 40, 50)
    ]
    trace.write_text("\n".join(["timestamp,requests", *hours]))
    traced = run(fresh, "simulate", "--episodes", "200", "--trace", trace, "--json")

    assert (quiet["night"], quiet["n_steps"], quiet["policy_version"]) == (1, 1200, "0")
    assert (busy["night"], Path(busy["path"]).name) == (7, "night-0007.jsonl")
    assert busy["mean_return"] < quiet["mean_return"]  # more requests need more replicas
    assert (traced.code, traced.json["night"]) == (0, 8)

    wrong = run(fresh, "simulate", "--trace", tmp_path / "nowhere.csv")
    assert (wrong.code, "nowhere.csv" in wrong.err) == (1, True)


def test_simulate_lets_the_champion_act(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "simulate", "--episodes", "24", "--json").json["policy_version"] == "1"


def test_query_prints_a_table_csv_and_json(workspace: Workspace, run: Run) -> None:
    sql = (
        "SELECT count(*) AS n, min(timestamp) AS first, {'a': [1, 2]} AS nested, NULL AS none, 'nan'::DOUBLE AS nan "
        "FROM steps"
    )

    table = run(workspace, "query", sql)
    as_csv = run(workspace, "query", sql, "--format", "csv")
    as_json = run(workspace, "query", sql, "--format", "json")

    assert "12000" in table.out
    rows = list(csv.reader(io.StringIO(as_csv.out)))
    assert rows == [
        ["n", "first", "nested", "none", "nan"],
        ["12000", "2026-01-05 00:00:00+00:00", '{"a": [1, 2]}', "", "nan"],
    ]
    found = {"n": 12000, "first": "2026-01-05 00:00:00+00:00", "nested": {"a": [1, 2]}, "none": None, "nan": None}
    assert as_json.json == {"columns": list(found), "rows": [found]}
    assert run(workspace, "query", sql, "--json").out == as_json.out


def test_a_query_without_a_row_names_its_columns_in_a_line(workspace: Workspace, run: Run) -> None:
    wide = ", ".join(f"1 AS column_{i}" for i in range(40))
    shown = run(workspace, "query", f"SELECT * FROM (SELECT {wide}) WHERE false")
    assert shown.out == f"no rows; columns: {', '.join(f'column_{i}' for i in range(40))}\n"


def test_only_the_table_of_a_query_rounds_its_numbers(workspace: Workspace, run: Run) -> None:
    sql = (
        "SELECT 0.1::DOUBLE + 0.2::DOUBLE AS sum, [2::DOUBLE / 3] AS third, -1234567.891::DOUBLE AS large, "
        "1e-17::DOUBLE / 3 AS small, 0::DOUBLE AS zero, 123456789 AS whole"
    )

    table = run(workspace, "query", sql).out.split()
    exact = run(workspace, "query", sql, "--format", "csv").out.splitlines()[1]

    assert table[6:] == ["0.3", "[0.666667]", "-1234568.0", "3.33333e-18", "0.0", "123456789"]
    assert exact.startswith("0.30000000000000004,[0.6666666666666666],-1234567.891,")
    assert run(workspace, "query", sql, "--json").json["rows"][0]["sum"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT * FROM nope", "Table with name nope does not exist"),
        ("SELEC 1", "That is not SQL that DuckDB understands"),
        ("", "answers exactly one SELECT and changes nothing; this is nothing"),
        ("DROP VIEW steps", "answers exactly one SELECT and changes nothing; this is DROP"),
        ("SELECT 1; SELECT 2", "answers exactly one SELECT and changes nothing; this is SELECT, SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "Cannot access file"),
        ("COPY steps TO '/tmp/steps.csv'", "answers exactly one SELECT and changes nothing; this is COPY"),
    ],
)
def test_query_refuses_with_a_reason(sql: str, says: str, workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "query", sql, "--json")

    assert (answer.code, answer.out) == (1, "")
    assert says in answer.err


def test_the_views_that_a_query_names_exist(workspace: Workspace, run: Run) -> None:
    for view in ("steps", "transitions", "episodes", "quarantine", "batches", "files", "releases"):
        assert run(workspace, "query", f"SELECT count(*) AS n FROM {view}", "--json").code == 0

    rows = run(workspace, "query", "SELECT release, gate, is_champion FROM releases ORDER BY 1", "--json").json["rows"]
    assert rows == [
        {"release": 0, "gate": "baseline", "is_champion": False},
        {"release": 1, "gate": "passed", "is_champion": True},
    ]


def test_validate_ends_with_3_where_the_suite_fails(fresh: Workspace, workspace: Workspace, run: Run) -> None:
    passed = run(workspace, "validate", "--json")
    failed = run(fresh, "validate")

    assert (passed.code, passed.json["success"]) == (0, True)
    assert failed.code == 3
    assert "FAILED" in failed.out
    assert "found 0" in failed.out


def test_the_stages_say_what_they_lack(fresh: Workspace, run: Run) -> None:
    for arguments, says in [
        (["ingest"], "holds no log: looked for files ending in .jsonl"),
        (["snapshot"], "There is no episode to freeze"),
        (["train"], "There is no snapshot to train on. `offline-dqn snapshot` freezes one"),
        (["evaluate", "1"], "There is no release 1"),
        (["plan"], "Ingest logs first"),
        (["batches", "show", "b-1"], "`offline-dqn batches list` shows all"),
    ]:
        answer = run(fresh, *arguments, "--json")

        assert (answer.code, answer.out) == (1, ""), arguments
        assert says in answer.err


def test_train_and_evaluate_again_return_what_stands(workspace: Workspace, run: Run) -> None:
    recorded = (workspace.release_path(1) / "evaluation.json").read_bytes()

    trained = run(workspace, "train", "--json")
    evaluated = run(workspace, "evaluate", "1", "--json")

    assert (trained.code, trained.json["release"], trained.json["repeated"]) == (0, 1, True)
    assert (evaluated.code, evaluated.json["repeated"], evaluated.json["passed"]) == (0, True, True)
    assert evaluated.json["evaluation"] == json.loads(recorded)
    assert (workspace.release_path(1) / "evaluation.json").read_bytes() == recorded
    assert "as recorded before" in run(workspace, "evaluate", "1").out


def test_a_refused_evaluation_ends_with_3_and_cannot_be_promoted(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 801")
    edit(workspace.root / "offline_dqn.toml", "smallest_sample_size = 10", "smallest_sample_size = 1e9")
    release = run(workspace, "train", "--json").json["release"]

    unjudged = run(workspace, "promote", release, "--reviewer", "Ada", "--json")
    refused = run(workspace, "evaluate", release, "--json")
    promoted = run(workspace, "promote", release, "--reviewer", "Ada", "--json")

    assert release == 2
    assert (unjudged.code, unjudged.out) == (3, "")
    assert "its gate is 'not evaluated', not 'passed'. Run `offline-dqn evaluate 2` first." in unjudged.err
    assert (refused.code, refused.json["passed"], refused.json["repeated"]) == (3, False, False)
    assert (promoted.code, promoted.out) == (3, "")
    assert "Release 2 cannot be promoted: its gate is 'refused', not 'passed'" in promoted.err
    assert workspace.registry.champion() == 1


def test_version_zero_cannot_be_evaluated(workspace: Workspace, run: Run) -> None:
    answer = run(workspace, "evaluate", "0")

    assert answer.code == 1
    assert "Release 0 was not trained on a snapshot, so there is nothing to judge it on." in answer.err


def test_plan_reads_the_lake_or_files(workspace: Workspace, run: Run) -> None:
    from_lake = run(workspace, "plan", "--json")
    from_file = run(workspace, "plan", workspace.logs_path, "--json")

    assert (from_lake.code, from_file.code) == (0, 0)
    assert from_lake.json == from_file.json
    assert "What this log can decide" in run(workspace, "plan").out
    assert "does not exist" in run(workspace, "plan", "/nowhere.jsonl").err


def test_a_stage_that_another_process_is_at_says_who(workspace: Workspace, run: Run) -> None:
    with exclusive_lock(workspace.root / ".lock", "the workspace", wait_s=0):
        for arguments in (["snapshot"], ["train"], ["evaluate", "1"]):
            answer = run(workspace, *arguments)

            assert answer.code == 1
            assert f"is in use by process {os.getpid()} since" in answer.err


def test_a_file_that_cannot_be_used_is_a_message(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(Workspace, "query", full)

    answer = run(workspace, "query", "SELECT 1")

    assert answer.code == 1
    assert "/somewhere could not be used: No space left on device" in answer.err


def test_a_user_without_a_name_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)

    assert command.user_name() == f"user {os.getuid()}"


def test_json_has_neither_nan_nor_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": float("nan"), "b": [float("-inf"), 1.5], 3: (None, True)})

    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "3": [null, true]}\n'


@pytest.mark.long
def test_what_a_command_prints_is_its_own(workspace: Workspace) -> None:
    """As processes of their own, so that what libraries print at start and exit is seen too."""
    stages.simulate(workspace, n_episodes=48)
    edit(workspace.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 60")
    for arguments, codes in [
        (["ingest"], {0}),
        (["query", "SELECT count(*) AS n FROM steps"], {0}),
        (["train"], {0}),
        (["evaluate", "2"], {0, 3}),
        (["ingest", "/nowhere.jsonl"], {1}),
    ]:
        answer = finish(start_command(workspace, *arguments, "--json"))

        assert answer.code in codes, (arguments, answer.err)
        assert chatter(answer) == [], arguments
        if codes != {1}:
            assert answer.out.count("\n") == 1, arguments
            assert isinstance(answer.json, dict)
