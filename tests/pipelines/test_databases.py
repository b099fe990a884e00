"""Prefect's and MLflow's databases in a real PostgreSQL: a night, a backup, and what is refused. More in
drill_databases.py, which `make databases` runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pipelines.prefect_database import DATABASE_URL, PrefectDatabaseError, one_migration, one_scheduler, use_postgres
from pipelines.workspace import Workspace, open_workspace
from reports.shared_tracking import TrackingError
from tests.pipelines.conftest import Run, finish, start_command
from tests.planted import found_in
from tests.postgres_server import PASSWORD, PostgresServer, postgres_server

VARIABLE = "OFFLINE_DQN_MLFLOW_URI"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


def use_tracking(workspace: Workspace) -> None:
    """Names the variable in the settings."""
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(f'[tracking]\nuri = "{VARIABLE}"\nwait_s = 60\n{settings.read_text()}')


def test_a_night_and_a_backup_with_both_databases_in_postgresql(
    server: PostgresServer, workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow, prefect = server.create("mlflow"), server.create("prefect")
    use_tracking(workspace)
    monkeypatch.setenv(VARIABLE, mlflow)

    own = {DATABASE_URL: prefect, "PREFECT_API_URL": None, "PREFECT_HOME": None}
    night = finish(start_command(workspace, "nightly", "--json", **own), 400)
    listed = run(workspace, "releases", "--json")
    made = run(workspace, "backup", tmp_path / "kept.tar", "--json")
    restored = run(None, "restore", tmp_path / "kept.tar", tmp_path / "restored")
    there = run(tmp_path / "restored", "releases", "--json")

    assert (night.code, listed.code, made.code, restored.code) == (0, 0, 0, 0), night.err
    assert server.rows("prefect", "SELECT state_type FROM flow_run") == [("COMPLETED",)]
    assert there.json["releases"] == listed.json["releases"]
    assert [release["damage"] for release in listed.json["releases"]] == ["", ""]
    assert made.json["warning"] == ""
    ((n_models,),) = server.rows("mlflow", "SELECT count(*) FROM registered_models")
    assert n_models == 2  # the restored workspace is one of its own there
    said = "".join(a.out + a.err for a in (night, listed, made, restored, there))
    assert PASSWORD not in said
    assert found_in([workspace.root, tmp_path / "restored"], [PASSWORD]) == []
    assert not list(open_workspace(tmp_path / "restored").root.glob("releases/vouched.json"))


def test_while_mlflow_is_away_a_backup_is_made_and_warns(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tracking(workspace)
    monkeypatch.setenv(VARIABLE, f"postgresql://owner:{PASSWORD}@127.0.0.1:9/mlflow")

    made = run(workspace, "backup", tmp_path / "kept.tar")

    assert made.code == 0
    assert "warning: releases are restored as their folders are, for nobody vouched for them" in made.err
    assert PASSWORD not in made.out + made.err


def test_one_database_holds_one_scheduler_and_neither_takes_the_others_place(
    server: PostgresServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_URL, server.create("shared").replace("postgresql", "postgres", 1))
    monkeypatch.delenv("PREFECT_CLIENT_RETRY_EXTRA_CODES", raising=False)
    use_postgres()
    assert os.environ[DATABASE_URL].startswith("postgresql+asyncpg://owner:")
    with one_scheduler(5):
        with pytest.raises(PrefectDatabaseError, match="Another scheduler works on this database"), one_scheduler(5):
            pass
        with one_migration(5):  # a night is no scheduler
            pass
    with one_scheduler(5):
        pass

    with psycopg.connect(server.url("shared")) as connection:
        connection.execute("CREATE TABLE registered_models (x int)")
    with pytest.raises(PrefectDatabaseError, match="names MLflow's database, and Prefect needs one of its own"):
        one_migration(5).__enter__()
    with psycopg.connect(server.url("shared")) as connection:
        connection.execute("ALTER TABLE registered_models RENAME TO flow_run")
    use_tracking(workspace)
    monkeypatch.setenv(VARIABLE, server.url("shared"))
    with pytest.raises(TrackingError, match="names Prefect's database, and MLflow needs one of its own"):
        open_workspace(workspace.root).registry.releases()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"postgresql://owner:{PASSWORD}@127.0.0.1:9/prefect", "cannot be used: .*refused"),
        (f"oracle://owner:{PASSWORD}@127.0.0.1:9/prefect", "holds no address that Prefect understands"),
    ],
    ids=["away", "none"],
)
def test_a_night_whose_prefect_database_is_away_or_none_says_so_and_shows_no_password(
    fresh: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

    monkeypatch.setenv(DATABASE_URL, address)
    monkeypatch.setenv("PREFECT_CLIENT_RETRY_EXTRA_CODES", "")
    impatient = {PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 1}
    with temporary_settings(impatient, restore_defaults={PREFECT_API_URL}):
        answer = run(fresh, "nightly")

    assert answer.code == 1
    assert re.search(said, answer.err)
    assert PASSWORD not in answer.out + answer.err
