"""The registry with MLflow in a real PostgreSQL: shared by many, away and back, and never a password shown."""

from __future__ import annotations

import json
import shutil
import threading
import traceback
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from reports.registry import VOUCHED, Registry, RegistryError
from reports.shared_tracking import IDENTITY, SharedTracking, TrackingError
from tests.postgres_server import PASSWORD, PostgresServer, postgres_server
from tests.reports.test_registry import add_release

VARIABLE = "OFFLINE_DQN_MLFLOW_URI"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def _filled(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with MLflow's tables, made by two that came at once: making them takes seconds, copying does not."""
    address = server.create("filled")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(VARIABLE, address)
        roots = [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")]
        failures: list[BaseException] = []

        def make(root: Path) -> None:
            try:
                shared_registry(root).releases()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=make, args=(root,)) for root in roots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    return "filled"


@pytest.fixture
def address(server: PostgresServer, _filled: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, server.url(_filled))
    return server.url(_filled)


def shared_registry(root: Path, wait_s: float = 30.0) -> Registry:
    shared = SharedTracking(VARIABLE, wait_s, root)
    return Registry(root / "mlflow.db", root / "releases", "autoscaler", shared)


def names(server: PostgresServer) -> list[str]:
    return [str(name) for (name,) in server.rows("filled", "SELECT name FROM registered_models ORDER BY 1")]


@pytest.mark.usefixtures("address")
def test_two_workspaces_of_one_name_share_a_database_and_never_meet(server: PostgresServer, tmp_path: Path) -> None:
    first, second = shared_registry(tmp_path / "a"), shared_registry(tmp_path / "b")
    training = {"config": {"gamma": 0.9}, "history": [{"step": 1.0, "loss": 0.5}]}
    add_release(first, "baseline")
    assert [add_release(first, training=training), add_release(second, "baseline"), add_release(second)] == [1, 0, 1]
    first.promote(1, reviewer="Ada")

    assert [(r.number, r.aliases, r.damage) for r in first.releases()] == [(0, (), ""), (1, ("champion",), "")]
    assert [(r.number, r.aliases, r.damage) for r in second.releases()] == [(0, (), ""), (1, ("candidate",), "")]
    assert not (tmp_path / "a" / "mlflow.db").exists()
    (name,) = [n for n in names(server) if n.endswith(json.loads((tmp_path / "a" / IDENTITY).read_text())["id"])]
    assert name.startswith("autoscaler-")
    assert server.rows("filled", "SELECT value FROM metrics WHERE key = 'loss'") == [(0.5,)]


@pytest.mark.usefixtures("address")
def test_an_altered_release_is_found_although_every_file_of_the_workspace_agrees(tmp_path: Path) -> None:
    registry = shared_registry(tmp_path)
    add_release(registry)
    policy, manifest = tmp_path / "releases" / "1" / "policy.json", tmp_path / "releases" / "1" / "release.json"
    policy.write_text("[]")
    values = json.loads(manifest.read_text())
    values["files"]["policy.json"] = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # of "[]"
    manifest.write_text(json.dumps(values))

    with pytest.raises(RegistryError, match=r"Release 1 is not what was registered: release\.json was altered"):
        registry.promote(1, reviewer="Ada")


@pytest.mark.usefixtures("address")
def test_a_moved_workspace_stays_itself_and_a_copied_one_becomes_another(
    server: PostgresServer, tmp_path: Path
) -> None:
    add_release(shared_registry(tmp_path / "a"))
    known = names(server)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert [r.damage for r in shared_registry(tmp_path / "moved").releases()] == [""]
    assert names(server) == known

    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    copy = shared_registry(tmp_path / "copy")
    assert (add_release(copy), [r.damage for r in copy.releases()]) == (2, ["", ""])
    assert len(names(server)) == len(known) + 1
    assert [r.number for r in shared_registry(tmp_path / "moved").releases()] == [1]


def test_workspaces_that_share_their_releases_are_one_there(tmp_path: Path) -> None:
    shared = [SharedTracking(VARIABLE, 0.0, tmp_path / name, "s3://bucket/releases") for name in "ab"]
    assert {one.model_name("autoscaler") for one in shared} == {
        "autoscaler-" + sha256(b"s3://bucket/releases").hexdigest()[:12]
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("address")
def test_what_a_backup_vouched_for_is_asked_once_where_the_database_is_new(tmp_path: Path) -> None:
    registry = shared_registry(tmp_path / "a")
    add_release(registry)
    add_release(registry)
    with registry.locked():
        vouched = {str(n): sorted(d) for n, d in registry.vouched().items()}
    restored = tmp_path / "restored"
    shutil.copytree(tmp_path / "a" / "releases", restored / "releases")
    (restored / "releases" / VOUCHED).write_text(json.dumps(vouched))
    manifest = restored / "releases" / "2" / "release.json"
    manifest.write_text(manifest.read_text().replace('"passed"', '"baseline"'))

    assert [r.damage for r in shared_registry(restored).releases()] == ["", "release.json was altered"]
    assert not (restored / "releases" / VOUCHED).exists()
    assert [r.damage for r in shared_registry(restored).releases()] == ["", "release.json was altered"]


@pytest.mark.usefixtures("address")
def test_a_database_that_comes_back_in_time_is_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    registry = shared_registry(tmp_path)
    add_release(registry, "baseline")
    server.stop()
    back = threading.Timer(2.0, server.start)
    back.start()
    try:
        assert add_release(registry) == 1
    finally:
        back.join()


@pytest.mark.usefixtures("address")
def test_while_the_database_is_away_rolling_back_works_and_the_rest_says_what_to_do(
    server: PostgresServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = shared_registry(tmp_path, wait_s=0.0)
    add_release(registry, "baseline")
    add_release(registry)
    add_release(registry)
    registry.promote(1, reviewer="Ada")
    capfd.readouterr()
    server.stop()
    try:
        with pytest.raises(TrackingError, match=rf"address in {VARIABLE}\) cannot be used: .*refused") as told:
            registry.promote(2, reviewer="Ada")
        with pytest.raises(TrackingError):
            shared_registry(tmp_path, wait_s=0.0).releases()
        assert registry.champion() == 1
        rules = tmp_path / "releases" / "0" / "policy.json"
        content = rules.read_text()
        rules.write_text("[]")
        with pytest.raises(RegistryError, match=r"policy\.json is altered"):
            registry.rollback(reviewer="Ada")
        rules.write_text(content)
        assert shared_registry(tmp_path, wait_s=0.0).rollback(reviewer="Ada").to_release == 0
        with pytest.raises(RegistryError, match="Release 0 is the champion already"):
            registry.rollback(0, reviewer="Ada")
        with pytest.raises(RegistryError, match="Release 1 was rolled back from"):
            registry.rollback(1, reviewer="Ada")
    finally:
        server.start()

    assert "A rollback works without it." in str(told.value)
    assert PASSWORD not in str(told.value) + "".join(capfd.readouterr())
    assert [r.aliases for r in registry.releases()] == [("champion",), (), ("candidate",)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is not set, and"),
        ("mysql://u:" + PASSWORD + "@h/d", "holds no address that is understood"),
        (PASSWORD, "holds no address that is understood"),
        ("https://u:" + PASSWORD + "\u2100@h", "holds no address that is understood"),
        ("https://u:" + PASSWORD + "@[h", "holds no address that is understood"),
    ],
)
def test_an_address_that_is_none_is_told_and_not_quoted(
    value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(TrackingError, match=said) as told:
        shared_registry(tmp_path).releases()
    assert PASSWORD not in "".join(traceback.format_exception(told.value))


def test_a_wrong_password_is_told_at_once(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address.replace(PASSWORD, "guessed"))
    with pytest.raises(TrackingError, match="password authentication failed for user") as told:
        shared_registry(tmp_path).releases()
    assert "guessed" not in str(told.value)
