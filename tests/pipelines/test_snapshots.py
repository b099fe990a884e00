"""Snapshots from a shell: listed, shown, verified, exported, and what erasure leaves of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.journal import AlteredFilesError
from datasets.redaction import redact_snapshot
from datasets.snapshot import current_snapshot, open_snapshot
from pipelines import stages
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit


def snapshot_path(workspace: Workspace) -> Path:
    return next(workspace.snapshots_path.glob("*/snapshot.json")).parent


def test_snapshots_are_listed_with_the_releases_that_rest_on_them(workspace: Workspace, run: Run) -> None:
    path = snapshot_path(workspace)
    listed = run(workspace, "snapshot", "list", "--json").json["snapshots"]
    shown = run(workspace, "snapshot", "list")

    assert [(s["name"], s["state"], s["releases"]) for s in listed] == [(path.name, "as frozen", [1])]
    assert (shown.code, path.name in shown.out, "train" in shown.out) == (0, True, True)


def test_one_is_shown_by_the_beginning_of_its_digest(workspace: Workspace, run: Run) -> None:
    path = snapshot_path(workspace)
    shown = run(workspace, "snapshot", "show", path.name[:5], "--json").json
    unknown = run(workspace, "snapshot", "show", "zzz")

    assert shown["summary"]["digest"].startswith(path.name)
    assert "damaged" in run(workspace, "snapshot", "show").out
    assert (unknown.code, f"No snapshot begins with 'zzz'. There are: {path.name}." in unknown.err) == (1, True)


def test_a_changed_byte_is_found_and_the_file_named(workspace: Workspace, run: Run) -> None:
    intact = run(workspace, "snapshot", "verify")
    file = snapshot_path(workspace) / "rewards.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    changed = run(workspace, "snapshot", "verify")
    as_json = run(workspace, "snapshot", "verify", "--json")

    assert (intact.code, "every file is what was frozen" in intact.out) == (0, True)
    assert (changed.code, f"{file} is not what was frozen" in changed.err) == (1, True)
    assert (as_json.code, as_json.json["changed"]) == (1, ["rewards.npy"])


def test_options_before_a_command_are_refused_not_ignored(workspace: Workspace, run: Run) -> None:
    answer = run(None, "snapshot", "--workspace", str(workspace.root), "list")
    assert (answer.code, "options go behind the command" in answer.err) == (2, True)


def test_freezing_again_without_anything_new_gives_the_same(workspace: Workspace, run: Run) -> None:
    again = run(workspace, "snapshot", "--json").json
    assert again["path"] == str(snapshot_path(workspace))


def test_a_changed_salt_is_refused(workspace: Workspace, run: Run) -> None:
    edit(workspace.root / "offline_dqn.toml", "[snapshot]", '[snapshot]\nsalt = "other"')
    answer = run(workspace, "snapshot")
    assert (answer.code, "The splits of a workspace never change" in answer.err) == (1, True)


def test_coverage_can_be_asked_for(workspace: Workspace, run: Run) -> None:
    sql = "SELECT action, sum(n_steps) AS n FROM coverage WHERE split = 'train' GROUP BY action ORDER BY action"
    answer = run(workspace, "query", sql, "--json").json["rows"]
    replay, _ = open_snapshot(snapshot_path(workspace))
    train = replay.of_split(0)

    assert {row["action"]: row["n"] for row in answer} == {
        name: int((train.actions == code).sum()) for code, name in enumerate(train.contract.actions.names)
    }
    report = (workspace.release_path(1) / "report.html").read_text()
    assert "The observations were cut into" in report


def test_what_rests_on_an_erased_snapshot_cannot_be_replayed_but_drift_goes_on(workspace: Workspace, run: Run) -> None:
    path = snapshot_path(workspace)
    replay, _ = open_snapshot(path)
    successor = redact_snapshot(path, {str(replay.episode_ids[0])})
    listed = run(workspace, "snapshot", "list", "--json").json["snapshots"]
    shown = run(workspace, "snapshot", "show", path.name)

    assert successor is not None
    assert {s["name"]: s["state"] for s in listed} == {path.name: "erased", successor.name: "redacted"}
    assert (shown.code, "is not replayable: erased" in shown.err, successor.name in shown.err) == (1, True, True)
    assert current_snapshot(path) == successor
    assert "cannot be read" not in stages.measure(workspace).decision.sentence  # what is left is the reference


def test_a_snapshot_goes_to_minari_and_comes_back_as_a_workspace(
    workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("minari", reason="the extra `exchange` is not installed")
    out = tmp_path / "out"
    exported = run(workspace, "snapshot", "export", out, "--to", "minari", "--split", "select", "--json").json
    again = run(workspace, "snapshot", "export", out, "--to", "minari")
    imported = run(None, "import", out, tmp_path / "back", "--first-day", "2024-01-01", "--json").json
    back = open_workspace(tmp_path / "back")
    taken = run(back, "ingest", "--json").json["batch"]

    assert (again.code, "exists already; nothing was written" in again.err) == (1, True)
    assert exported["n_steps"] == imported["n_steps"] == taken["n_in"] == taken["n_lake"] > 0
    assert back.contract.features == workspace.contract.features
    assert run(None, "import", out, tmp_path / "back").code == 1


def test_a_snapshot_goes_to_d3rlpy(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the extra `exchange` is not installed")
    done = run(workspace, "snapshot", "export", tmp_path / "d.h5", "--to", "d3rlpy", "--split", "gate", "--json")
    assert done.code == 0
    assert "gate episodes judge" in done.err
    assert (tmp_path / "d.h5").exists()


def test_no_snapshot_is_frozen_from_a_lake_with_a_changed_byte(workspace: Workspace, run: Run) -> None:
    (file,) = (Path(f) for f in workspace.open_lake().files("steps") if not Path(f).name.startswith("columns-"))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)

    with pytest.raises(AlteredFilesError, match="are not those that were written"):
        stages.snapshot(workspace)
    checked = run(workspace, "validate")

    assert checked.code == 1
    assert str(file) in checked.err
    assert "Restore these files from a backup" in checked.err
