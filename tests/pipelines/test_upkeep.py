"""Compaction and retention of a workspace: from a shell, after an ingest, and never what a release rests on."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable

from datasets.clocks import ClockError
from datasets.durable import append_record
from datasets.journal import AlteredFilesError
from datasets.snapshot import read_summary
from pipelines import stages, upkeep
from pipelines.workspace import Workspace, open_workspace
from reports.history import Promotion
from tests.datasets.builders import change_bytes
from tests.pipelines.conftest import Run, edit


def configured(workspace: Workspace, table: str) -> Workspace:
    path = workspace.root / "offline_dqn.toml"
    path.write_text(f"{path.read_text()}\n{table}\n")
    return open_workspace(workspace.root)


def n_files(workspace: Workspace, table: str) -> int:
    return len(workspace.open_lake().files(table))


def test_an_ingest_merges_files_once_there_are_too_many(workspace: Workspace) -> None:
    opened = configured(workspace, "[lake]\ncompact_above = 2")
    for _ in range(2):
        stages.simulate(opened, n_episodes=8)
        stages.ingest(opened)

    assert n_files(opened, "batches") == 2
    assert opened.query("SELECT count(*), sum(n_lake) FROM batches").rows == ((3, 12_096),)


def test_an_ingest_that_meets_changed_bytes_keeps_its_rows_and_names_the_file(workspace: Workspace, run: Run) -> None:
    opened = configured(workspace, "[lake]\ncompact_above = 1")
    file = change_bytes(opened.open_lake(), "batches", values="n_quarantined + 1 AS n_quarantined")
    stages.simulate(opened, n_episodes=8)
    answer = run(opened, "ingest")

    told = " ".join(answer.err.split())
    assert (answer.code, "the new rows are in, but files were not merged: Bytes of the lake" in told) == (0, True)
    assert (str(file) in told, "Restore these files from a backup" in told) == (True, True)
    assert opened.query("SELECT count(*) FROM batches").rows == ((2,),)
    with pytest.raises(AlteredFilesError, match=file.name):
        stages.snapshot(opened)


def test_the_lake_is_compacted_from_a_shell(workspace: Workspace, run: Run) -> None:
    stages.simulate(workspace, n_episodes=8)
    stages.ingest(workspace)
    before = workspace.query("SELECT count(*), bit_xor(hash(COLUMNS(*))) FROM steps").rows
    done = run(workspace, "compact", "--json").json
    again = run(workspace, "compact")

    assert (done["n_after"] < done["n_before"], "batches" in done["tables"]) == (True, True)
    assert (again.code, "nothing to merge" in again.out) == (0, True)
    assert workspace.query("SELECT count(*), bit_xor(hash(COLUMNS(*))) FROM steps").rows == before


def old_snapshots(workspace: Workspace, n: int) -> list[Path]:
    """Copies of the workspace's snapshot, the first one 100 days old, each later one a day younger."""
    (frozen,) = [path.parent for path in workspace.snapshots_path.glob("*/snapshot.json")]
    made = []
    for place in range(n):
        path = workspace.snapshots_path / f"{place:016x}"
        shutil.copytree(frozen, path)
        at = time.time() - (100 - place) * 86_400
        os.utime(path / "snapshot.json", (at, at))
        made.append(path)
    return made


def rests_on(workspace: Workspace, release: int, snapshot: Path) -> None:
    folder = workspace.release_path(release)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps({"snapshot": snapshot.name}))


def promoted(workspace: Workspace, *releases: int) -> None:
    for release in releases:
        promotion = Promotion(datetime.now(UTC), "promote", None, release, "Ada", "")
        append_record(workspace.releases_path / "history.jsonl", promotion.to_json())


def test_old_snapshots_go_unless_something_rests_on_them(workspace: Workspace, run: Run) -> None:
    opened = configured(workspace, "[retention]\nsnapshot_days = 30")
    unused, former, rejected, champion, candidate = old_snapshots(opened, 5)
    for release, path in enumerate([former, rejected, champion, candidate], start=2):
        rests_on(opened, release, path)
    promoted(opened, 2, 4)
    everything = sorted(opened.snapshots_path.iterdir())
    curves = [opened.root / "tensorboard" / path.name for path in (unused, champion)]
    for folder in curves:
        folder.mkdir(parents=True)

    would = run(opened, "retain", "--dry-run", "--json").json
    assert sorted(opened.snapshots_path.iterdir()) == everything
    done = run(opened, "retain", "--json").json

    assert would["snapshots"] == done["snapshots"] == [unused.name, rejected.name]
    assert sorted(opened.snapshots_path.iterdir()) == [p for p in everything if p not in (unused, rejected)]
    assert run(opened, "retain", "--json").json["snapshots"] == []
    assert [folder.exists() for folder in curves] == [False, True]


def test_rows_go_by_the_age_of_their_night_and_queries_see_it(workspace: Workspace, run: Run) -> None:
    opened = two_more_nights(workspace)

    would = run(opened, "retain", "--dry-run", "--json").json["n_rows"]
    done = run(opened, "retain", "--json").json["n_rows"]

    assert would == done
    assert done["steps"] == 12_000
    assert opened.query("SELECT count(*), count(DISTINCT log_date) FROM steps").rows == ((96, 2),)
    assert opened.query("SELECT sum(n_lake - n_removed) FROM batches").rows == ((96,),)


def two_more_nights(workspace: Workspace) -> Workspace:
    """Three nights in the lake, of which the first is too old."""
    for _ in range(2):
        stages.simulate(workspace, n_episodes=8)
    stages.ingest(workspace)
    return configured(workspace, "[retention]\nsteps_days = 1")


def test_a_clock_that_ran_ahead_does_not_make_a_night_remove_every_row(workspace: Workspace, run: Run) -> None:
    configured(workspace, "[retention]\nsteps_days = 30")
    ahead = open_workspace(workspace.root, datetime(2027, 1, 5, tzinfo=UTC))

    with pytest.raises(ClockError, match="Retention would leave no row: the newest step is of 2026-01-05 23:50 UTC"):
        upkeep.retain(ahead)

    assert ahead.query("SELECT count(*) FROM steps").rows == ((12_000,),)
    edit(workspace.root / "offline_dqn.toml", 'as_of = "newest"', 'as_of = "now"')
    assert run(workspace, "retain", "--json").json["n_rows"]["steps"] == 12_000  # by hand, as the message says


def test_the_champions_versions_of_the_lake_can_still_be_opened(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen_from = read_summary(next(workspace.snapshots_path.glob("*/snapshot.json")).parent).lake_versions["steps"]
    opened = two_more_nights(workspace)
    real = upkeep.vacuum
    monkeypatch.setattr(upkeep, "vacuum", lambda *a, **o: real(*a, **{**o, "hours": 0}))

    def rows_then() -> int:
        return int(DeltaTable(str(opened.root / "lake" / "steps"), version=frozen_from).to_pyarrow_table().num_rows)

    upkeep.retain(opened)
    assert rows_then() == 12_000

    edit(opened.root / "offline_dqn.toml", "steps_days = 1", "steps_days = 1\npinned_days = 0")
    upkeep.retain(open_workspace(opened.root))
    with pytest.raises(FileNotFoundError):
        rows_then()
