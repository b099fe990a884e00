"""Quarantine, signatures and erasure from a shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from datasets.signing import KEY_VARIABLE as SIGNING_KEY
from pipelines import erasing
from pipelines.cli import app
from pipelines.workspace import Workspace, open_workspace
from tests.datasets.builders import episode, step_row, suite_says, write_rows

CONTRACT_TOML = """
name = "tiny"
gamma = 0.9
[features.cpu]
type = "numeric"
max = {highest}
[actions]
names = ["down", "hold", "up"]
[privacy]
hash = ["user"]
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with one batch: two whole episodes, a row that is too hot, and a line that is no JSON."""
    suite_says(monkeypatch, True)
    monkeypatch.setenv("OFFLINE_DQN_PRIVACY_KEY", "k" * 40)
    root = tmp_path / "small"
    root.mkdir()
    (root / "contract.toml").write_text(CONTRACT_TOML.format(highest=1.0))
    (root / "offline_dqn.toml").write_text('[ingest]\nas_of = "newest"\n')
    rows = [
        *episode("e-stays", user="mara"),
        *episode("e-leaves", user="noor"),
        step_row("hot", observation={"cpu": 1.5}),
    ]
    write_rows(root / "logs" / "steps" / "a.jsonl", [*rows, '{"user": "noor", '])
    assert run("ingest", root).exit_code == 0
    return open_workspace(root)


def run(command: str, root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [*command.split(), "--workspace", str(root), *options])


def n_steps(root: Path) -> int:
    return int(open_workspace(root).query("SELECT count(*) FROM steps").rows[0][0])


def test_quarantine_is_listed_shown_and_replayed(small: Workspace) -> None:
    listed = json.loads(run("quarantine list", small.root, "--json").stdout)
    assert (listed["n_rows"], [group["n_sealed"] for group in listed["reasons"]]) == (2, [0, 1])

    shown = run("quarantine show", small.root, "--reason", "the line")
    assert "(sealed: it could not be redacted; --unseal opens it)" in shown.stdout
    assert '{"user": "noor",' in run("quarantine show", small.root, "--reason", "the line", "--unseal").stdout

    (small.root / "contract.toml").write_text(CONTRACT_TOML.format(highest=2.0))
    replayed = json.loads(run("quarantine replay", small.root, "--json").stdout)["replayed"]
    assert [(r["n_tried"], r["n_left"], r["n_passed_over"]) for r in replayed] == [(1, 0, 1)]
    assert n_steps(small.root) == 7
    assert "Nothing in quarantine fits" in run("quarantine replay", small.root, "--reason", "nothing").stdout


def test_a_subject_is_erased_from_everything_that_was_made(small: Workspace) -> None:
    small.drift_path.mkdir()
    for night, source in (("2026-01-05", "e-leaves"), ("2026-01-06", "e-leaves-not")):
        (small.drift_path / f"{night}.html").write_text(f"<p>confined to {source}</p>")
    small.nights_path.write_text('{"warnings": ["3 rows of e-leaves"]}\n{"warnings": ["e-leaves-not"]}\n')
    evidence = small.root / "serving" / "canary_evidence" / "1.jsonl"
    evidence.parent.mkdir(parents=True)
    evidence.write_text(
        "".join(json.dumps({"episode_id": name, "cluster": name}) + "\n" for name in ("e-stays", "e-leaves"))
    )
    (small.root / "notes.txt").write_text("ask noor about e-leaves")

    dry = json.loads(run("erase", small.root, "--key", "user=noor", "--dry-run", "--json").stdout)
    assert (dry["n_rows"]["steps"], dry["dry_run"], n_steps(small.root)) == (3, True, 6)
    done = json.loads(run("erase", small.root, "--key", "user=noor", "--json").stdout)

    assert done["n_rows"] == {"steps": 3, "outcomes": 0, "quarantine": 1, "held": 0}
    assert (done["log_files"], done["still_named_in"]) == (["logs/steps/a.jsonl"], ["notes.txt"])
    assert small.nights_path.read_text() == '{"warnings": ["3 rows of (erased)"]}\n{"warnings": ["e-leaves-not"]}\n'
    assert [page.name for page in small.drift_path.iterdir()] == ["2026-01-06.html"]  # a page is made again on demand
    named = [(row["episode_id"], row["cluster"]) for row in map(json.loads, evidence.read_text().splitlines())]
    assert named[0] == ("e-stays", "e-stays")
    assert named[1][0] == named[1][1]
    assert named[1][0].startswith("(erased ")
    assert n_steps(small.root) == 3
    write_rows(small.root / "logs" / "steps" / "b.jsonl", episode("e-again", user="noor"))
    assert json.loads(run("ingest", small.root, "--json").stdout)["batch"]["n_erased"] == 3
    assert "No erasure was cut off" in run("erase", small.root, "--finish").stdout
    refused = run("erase", small.root, "--key", "mail=x")
    assert (refused.exit_code, "is no key by which rows can be found" in refused.stderr) == (1, True)


@pytest.mark.parametrize("again", ["finish", "erase"])
def test_an_erasure_that_was_cut_off_before_its_traces_went_is_finished(
    small: Workspace, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    small.nights_path.write_text('{"warnings": ["3 rows of e-leaves"]}\n')

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasing, "_erase_traces", cut_off)
        with pytest.raises(KeyboardInterrupt):
            erasing.erase(small, episode=None, named="user=noor")
    assert "e-leaves" in small.nights_path.read_text()
    if again == "finish":
        assert "Erasure finished" in run("erase", small.root, "--finish").stdout
    else:
        assert run("erase", small.root, "--key", "user=noor").exit_code == 0

    assert small.nights_path.read_text() == '{"warnings": ["3 rows of (erased)"]}\n'
    assert n_steps(small.root) == 3
    assert "No erasure was cut off" in run("erase", small.root, "--finish").stdout


def test_only_signed_logs_are_taken_where_signatures_are_required(
    small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small.root / "offline_dqn.toml").write_text('[ingest]\nas_of = "newest"\nrequire_signature = true\n')
    log = write_rows(small.root / "logs" / "steps" / "b.jsonl", episode("e-new"))
    missing = run("ingest", small.root)
    assert (missing.exit_code, f"{SIGNING_KEY} is not set" in missing.stderr) == (1, True)
    monkeypatch.setenv(SIGNING_KEY, "s" * 40)

    held = run("ingest", small.root)
    assert held.exit_code == 1
    assert "b.jsonl is held: there is no manifest" in held.stderr
    assert n_steps(small.root) == 6

    assert CliRunner().invoke(app, ["sign", str(log)]).exit_code == 0
    assert run("ingest", small.root).exit_code == 0
    assert n_steps(small.root) == 9
    with log.open("a") as file:
        file.write(json.dumps(step_row("e-new", 3)) + "\n")
    assert "was changed, or has grown, since it was signed" in run("ingest", small.root).stderr
    assert n_steps(small.root) == 9
