"""Incidents: a moment captured whole, its decisions made again offline, and a postmortem from the records."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from datasets.durable import append_record
from pipelines.incident.captured import IncidentError, find_incident, list_incidents, read_incident
from pipelines.incident.moments import moment_of
from pipelines.incident.postmortem import END, examine
from pipelines.incident.reproduce import reproduce
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run


@pytest.fixture(scope="module")
def captured(first_night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an incident of 50 episodes. Not to be changed."""
    from pipelines.incident.capture import capture

    root = tmp_path_factory.mktemp("captured") / "workspace"
    shutil.copytree(first_night, root)
    workspace = open_workspace(root)
    capture(workspace, at=None, by="Ada", note="p95 doubled", n_episodes=50, minutes=10, name="night one")
    return root


@pytest.fixture
def folder(captured: Path, tmp_path: Path) -> Path:
    """A copy of the capture alone, far from its workspace."""
    shutil.copytree(captured / "incidents" / "night one", tmp_path / "copy")
    return tmp_path / "copy"


def test_the_last_episodes_and_every_step_around_the_moment_are_kept(captured: Path) -> None:
    workspace = open_workspace(captured)
    folder = find_incident(workspace, "")
    incident = read_incident(folder)
    ((newest,),) = workspace.query("SELECT max(timestamp) FROM steps").rows
    last = workspace.query(
        "SELECT episode_id FROM steps GROUP BY 1 ORDER BY min(timestamp) DESC, episode_id LIMIT 50"
    ).rows
    window = workspace.query(
        f"SELECT count(*) FROM steps WHERE timestamp >= TIMESTAMPTZ '{newest - timedelta(minutes=10)}'"
    ).rows
    held = set(pq.read_table(folder / "steps.parquet", columns=["episode_id"])["episode_id"].to_pylist())

    assert incident.moment == newest.astimezone(UTC)
    assert {name for (name,) in last} <= held
    assert incident.n_window_steps == window[0][0] > 0
    assert incident.n_episodes == len(held)
    assert incident.releases == (0, 1)
    assert set(incident.decided) == {"0"}  # the first night was written by the rules
    assert {path.name for path in (folder / "records").iterdir()} >= {"contract.toml", "offline_dqn.toml", "releases"}
    n_learnable = pq.read_metadata(folder / "transitions.parquet").num_rows
    assert 0 < n_learnable <= incident.n_steps


def test_a_moment_in_the_past_has_nothing_from_after_its_window(workspace: Workspace, run: Run) -> None:
    ((middle,),) = workspace.query("SELECT quantile_disc(timestamp, 0.5) FROM steps").rows
    answer = run(
        workspace, "incident", "capture", "--at", middle.isoformat(), "--episodes", 5, "--minutes", 5, "--json"
    )
    rows = duckdb.execute(
        f"SELECT min(timestamp), max(timestamp) FROM '{answer.json['folder']}/episodes.parquet' e "
        f"JOIN '{answer.json['folder']}/steps.parquet' USING (episode_id)"
    ).fetchall()

    assert answer.code == 0, answer.err
    assert rows[0][1] < middle + timedelta(hours=2)  # whole episodes of an hour
    assert rows[0][0] > middle - timedelta(hours=4)


def test_what_was_decided_is_made_again_without_the_workspace(folder: Path) -> None:
    found = reproduce(folder)
    (rules,) = found.again

    assert found.holds
    assert (rules.release, rules.n) == (0, rules.n_same + rules.n_rounded)
    assert (rules.n_differ, rules.n_unlogged, found.n_foreign) == (0, 0, 0)
    assert rules.actions is not None
    assert sum(rules.actions.values()) == rules.n


def test_decisions_that_are_not_the_releases_own_are_named(folder: Path, run: Run) -> None:
    table = pq.read_table(folder / "steps.parquet")
    probabilities = table["behavior_prob"].to_pylist()
    altered = [0.99, *probabilities[1:]]
    place = table.schema.get_field_index("behavior_prob")
    pq.write_table(table.set_column(place, "behavior_prob", [altered]), folder / "steps.parquet")
    with pytest.raises(IncidentError, match=r"not what was captured: steps\.parquet changed"):
        reproduce(folder)
    _seal(folder)

    answer = run(None, "incident", "reproduce", "--folder", folder)

    assert answer.code == 3
    assert "was logged with probability 0.99, the release gives it" in " ".join(answer.err.split())


def test_a_release_that_was_damaged_then_is_told(folder: Path) -> None:
    (folder / "releases" / "0" / "policy.json").write_text("{}")
    _seal(folder)
    (rules,) = reproduce(folder).again

    assert not reproduce(folder).holds
    assert "policy.json" in rules.problem


def _seal(folder: Path) -> None:
    """As if it had been captured as it is now."""
    from dataclasses import replace

    from pipelines.incident.captured import digests_of, write_description

    write_description(folder, replace(read_incident(folder), files=digests_of(folder)))


def test_evidence_is_not_written_over_and_a_capture_is_whole_or_not_there(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.incident import capture as capturing

    assert run(workspace, "incident", "capture", "--name", "a", "--episodes", 3, "--minutes", 1).code == 0
    again = run(workspace, "incident", "capture", "--name", "a")
    assert again.code == 1
    assert "evidence is not written over" in again.err

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(capturing, "_copy_records", dies)
    with pytest.raises(KeyboardInterrupt):
        capturing.capture(workspace, at=None, by="Ada", note="", n_episodes=3, name="b")
    assert [incident.name for incident in list_incidents(workspace)] == ["a"]
    assert not list((workspace.root / "incidents").glob(".*"))


@pytest.mark.parametrize("name", ["../outside", "a/b", ".hidden", "/tmp/x"])
def test_a_name_cannot_leave_the_folder_of_incidents(workspace: Workspace, run: Run, name: str) -> None:
    answer = run(workspace, "incident", "capture", "--name", name)
    assert answer.code == 1
    assert "is no name for a folder" in answer.err


def test_bad_moments_and_names_are_explained(workspace: Workspace, run: Run) -> None:
    none = run(workspace, "incident", "postmortem")
    early = run(workspace, "incident", "capture", "--at", "2001-01-01")
    odd = run(workspace, "incident", "capture", "--at", "yesterday")

    assert "holds no incident" in none.err
    assert "The lake has nothing from before 2001-01-01" in early.err
    assert "'yesterday' is no instant. Write it as" in odd.err
    assert moment_of("2026-01-07T10:30:00+02:00") == datetime(2026, 1, 7, 8, 30, tzinfo=UTC)
    with pytest.raises(IncidentError, match="is no captured incident"):
        reproduce(workspace.root)


def test_logs_that_the_lake_lacks_are_told(workspace: Workspace, run: Run) -> None:
    newest = sorted(workspace.logs_path.glob("*"))[-1]
    lines = newest.read_text().splitlines()
    (workspace.logs_path / "later.jsonl").write_text(lines[-1] + "\n")

    answer = run(workspace, "incident", "capture", "--episodes", 3, "--minutes", 1)

    assert answer.code == 0
    assert "later.jsonl hold rows that the lake has not taken in" in " ".join(answer.err.split())


def test_where_nobody_was_told_the_postmortem_counts_from_the_promotion(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback", "--reviewer", "Ada").code == 0
    assert run(workspace, "incident", "capture", "--episodes", 2, "--minutes", 5, "--name", "i").code == 0

    steps = {step.what: step for step in examine(workspace, find_incident(workspace, "i"), release=1).steps}

    assert steps["told of it"].s is None
    assert steps["rolled back"].since == "its promotion; nobody was told"


def test_the_postmortem_tells_what_happened_and_how_long_each_step_took(workspace: Workspace, run: Run) -> None:
    history = [json.loads(line) for line in (workspace.releases_path / "history.jsonl").read_text().splitlines()]
    promoted = datetime.fromisoformat(history[-1]["at"])
    told = {"level": "page", "receiver": "PAGER", "causes": ["promise"], "taken": True, "problem": ""}
    sent = {"at": (promoted + timedelta(milliseconds=5)).isoformat(), **told, "title": "[page] <b>it</b> | broke"}
    append_record(workspace.root / "notify" / "sent.jsonl", sent)
    assert run(workspace, "disable", "--reviewer", "Ada", "--note", "pager").code == 0
    assert run(workspace, "rollback", "--reviewer", "Ada").code == 0
    assert run(workspace, "incident", "capture", "--episodes", 20, "--minutes", 5, "--name", "i").code == 0
    assert run(workspace, "incident", "reproduce").code == 0
    assert run(workspace, "exclude", "--where", "reward < -5", "--note", "they lied").code == 0
    found = examine(workspace, find_incident(workspace, "i"), release=1)
    took = {step.what: step.s for step in found.steps}

    answer = run(workspace, "incident", "postmortem", "--release", 1, "--json")
    page = Path(answer.json["page"])
    text = page.read_text()

    assert took["told of it"] == pytest.approx(0.005)
    assert found.suspect == 1
    assert found.events[0].kind == "promoted"
    assert all(took[what] is not None for what in ("disabled", "rolled back", "captured", "source taken out"))
    assert took["retrained without it"] is None
    assert "| retrained without it | the alert | did not happen |" in text
    assert "&lt;b&gt;it&lt;/b&gt; \\| broke" in text  # what people and logs say is text, never markup
    assert "Taken out: x1" in text
    assert "version 0, by the kill switch" in text

    page.write_text(text.replace("## Root cause", "## Root cause\n\nA collector lied."))
    assert run(workspace, "exclude", "lift", "x1", "--note", "n").code == 0
    assert run(workspace, "incident", "postmortem", "--release", 1).code == 0
    again = page.read_text()
    assert "A collector lied." in again
    assert "lifted" in again

    page.write_text(again.replace(END, ""))
    refused = run(workspace, "incident", "postmortem")
    assert refused.code == 1
    assert "so nothing was written" in " ".join(refused.err.split())


def test_an_erased_episode_leaves_every_capture_which_stays_whole(workspace: Workspace, run: Run) -> None:
    ((episode,),) = workspace.query("SELECT max_by(episode_id, timestamp) FROM steps").rows
    note = f"look at {episode}"
    assert (
        run(workspace, "incident", "capture", "--name", "i", "--episodes", 5, "--minutes", 1, "--note", note).code == 0
    )
    folder = find_incident(workspace, "i")
    assert run(workspace, "erase", "--episode", episode).code == 0

    left = duckdb.execute(f"SELECT count(*) FROM '{folder}/steps.parquet' WHERE episode_id = '{episode}'").fetchall()
    incident = read_incident(folder)

    assert left == [(0,)]
    assert incident.redacted_at is not None
    assert incident.note == "look at (erased)"
    assert reproduce(folder).holds  # which checks every byte first
    assert not [path for path in folder.rglob("*.parquet") if episode in str(pq.read_table(path).to_pylist())]


def test_an_erasure_that_was_cut_off_in_a_capture_is_finished_by_the_next(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.incident import redaction

    ((episode,),) = workspace.query("SELECT max_by(episode_id, timestamp) FROM steps").rows
    assert run(workspace, "incident", "capture", "--name", "i", "--episodes", 5, "--minutes", 1).code == 0
    folder = find_incident(workspace, "i")

    def dies(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(redaction, "_erase_text", dies)
        run(workspace, "erase", "--episode", episode)
    with pytest.raises(IncidentError, match="not what was captured"):
        reproduce(folder)
    assert run(workspace, "erase", "--finish").code == 0
    assert reproduce(folder).holds
