"""The registry with a real MLflow tracking server that asks for a login (its app `basic-auth`), on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.descent import descendants, end_all
from pipelines.prefect_server import free_port
from reports.registry import Registry
from reports.shared_tracking import SharedTracking, TrackingError
from tests.reports.test_registry import add_release

PASSWORD = "long-hunter2-of-mlflow"
VARIABLE = "OFFLINE_DQN_MLFLOW_URI"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As docs/security.md starts it."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    (home / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{home}/users.db\n"
        "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-this-test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes for what nobody asks of it here
    }
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port",
             str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{home}/mlflow.db"],
            env={**os.environ, **secrets}, cwd=home, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (home / "log").read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        end_all([*descendants(server.pid), server.pid], grace_s=5)
        server.wait()


def shared_registry(root: Path) -> Registry:
    return Registry(root / "mlflow.db", root / "releases", "autoscaler", SharedTracking(VARIABLE, 0.0, root))


def test_releases_are_registered_there_with_the_login_and_not_without(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what is set for the login is gone after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv(VARIABLE, f"http://{address}")
    with pytest.raises(TrackingError, match=r"cannot be used: .*[Aa]uthenticat"):
        shared_registry(tmp_path / "a").releases()

    monkeypatch.setenv(VARIABLE, f"http://admin:{PASSWORD}@{address}")
    registry = shared_registry(tmp_path / "a")
    add_release(registry, "baseline")
    add_release(registry, training={"config": {"gamma": 0.9}, "history": [{"step": 1.0, "loss": 0.5}]})
    registry.promote(1, reviewer="Ada")
    assert [(r.number, r.aliases, r.damage) for r in registry.releases()] == [(0, (), ""), (1, ("champion",), "")]

    monkeypatch.setenv(VARIABLE, f"http://admin:guessed@{address}")
    with pytest.raises(TrackingError, match="cannot be used") as told:
        shared_registry(tmp_path / "b").releases()
    assert "guessed" not in str(told.value)


def test_every_page_of_it_asks_for_the_login(address: str) -> None:
    api = "/api/2.0/mlflow/registered-models/search"
    answers = {path: httpx.get(f"http://{address}{path}", timeout=30).status_code for path in ("/", api)}
    assert answers == {"/": 401, api: 401}
    assert httpx.get(f"http://{address}{api}", auth=("admin", PASSWORD), timeout=30).status_code == 200
