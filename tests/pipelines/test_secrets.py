"""Secrets live in the environment: nothing that nights, commands and servers write or print holds one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run, edit
from tests.planted import NEEDLES, PLANTED, found_in, spelled


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in PLANTED.items():
        if variable != "PREFECT_SERVER_API_AUTH_STRING":  # the shared server asks for no login; see test_scheduler
            monkeypatch.setenv(variable, value)


def test_a_secret_is_found_in_any_spelling(tmp_path: Path) -> None:
    secret = "hunter2-of-the/pager"
    for n, written in enumerate(sorted(spelled(secret))):
        (tmp_path / f"{n}").write_bytes(b"before " + written + b" after")
    (tmp_path / "clean").write_text("hunter3")
    assert len(found_in([tmp_path], [secret])) == len(spelled(secret))


@pytest.mark.usefixtures("planted", "prefect_server")
def test_a_night_that_trains_and_one_that_fails_write_and_print_no_secret(workspace: Workspace, run: Run) -> None:
    settings = workspace.root / "offline_dqn.toml"
    edit(settings, "n_updates = 800", "n_updates = 20")
    told = '[notify]\npage = ["OFFLINE_DQN_PAGE_URL"]\nticket = ["OFFLINE_DQN_TICKET_URL"]\ntimeout_s = 2\n'
    told += '[tracing]\nendpoint = "http://127.0.0.1:9/v1/traces"\ntimeout_s = 0.5\n'
    told += '[sentry]\ndsn = "OFFLINE_DQN_SENTRY_DSN"\ntimeout_s = 0.5\n'
    settings.write_text(f'{told}[metrics]\nserver = "http://127.0.0.1:9/metrics"\n{settings.read_text()}')
    contract = workspace.root / "contract.toml"
    contract.write_text(f'{contract.read_text()}\n[privacy]\nhash = ["user_id"]\n')

    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    trained = run(workspace, "nightly", "--force-train", "--json")
    (workspace.logs_path / "elsewhere.jsonl").symlink_to("/etc/hostname")
    failed = run(workspace, "nightly")
    status = run(workspace, "notify", "status")
    releases = run(workspace, "releases")
    asked = run(workspace, "sentry", "test")

    assert (trained.code, failed.code) == (0, 1), failed.err
    assert [
        json.loads(line)["taken"] for line in (workspace.root / "notify" / "sent.jsonl").open()
    ] != []  # it was used
    assert "spans of the trace were not delivered" in trained.out
    assert "Sentry did not take it" in asked.err + asked.out
    printed = "".join(answer.out + answer.err for answer in (trained, failed, status, releases, asked))
    assert [secret for secret in NEEDLES if secret in printed] == []
    database = Path(urlsplit(str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value())).path)
    assert b"night 20" in database.read_bytes() or list(database.parent.glob("*-wal"))  # the right one: it has the run
    searched = [workspace.root, Path(os.environ["PREFECT_HOME"]), database.parent]
    assert found_in(searched, NEEDLES) == []


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("tracking", 'uri = "postgresql://mlflow:hunter2-of-mlflow@db/mlflow"'),
        ("notify", 'page = ["json://pager:hunter2-of-the-pager@host"]'),
        ("metrics", 'push_gateway = "http://ada:hunter2-of-prefect@127.0.0.1:9091"'),
        ("metrics", 'push_gateway = "ada:hunter2-of-prefect@127.0.0.1:9091"'),
        ("store", 'lake = "s3://key:secret-access-key-planted@bucket/lake"'),
        ("nightly", 'database = "postgresql://prefect:hunter2-of-prefect@db/prefect"'),
        ("cost", 'currency = "https://x:hunter2-of-mlflow@y"'),
        ("serve", 'port = "https://x:hunter2-of-mlflow@y"'),
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(
    fresh: Workspace, run: Run, table: str, line: str
) -> None:
    settings = fresh.root / "offline_dqn.toml"
    settings.write_text(f"{settings.read_text()}\n[{table}]\n{line}\n")

    answer = run(fresh, "releases")

    assert answer.code == 1
    assert f"{table}." in answer.err
    assert [secret for secret in NEEDLES if secret in answer.err] == []
