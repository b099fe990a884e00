"""Two workspaces on two machines that share snapshots and releases in a bucket, after the first night of one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from datasets.erased import EPISODE, remember_erased
from datasets.object_store import ObjectStore, StoreUnreachableError, open_store
from datasets.snapshot import EPISODES, SnapshotError, current_snapshot, open_snapshot
from datasets.snapshot_bucket import unchecked_snapshots
from datasets.splits import SPLITS, SplitLedger, fix_splits, read_ledger
from pipelines import stages
from pipelines.backup import back_up, restore
from pipelines.lapsing import record_lapses
from pipelines.night_artifacts import page_link
from pipelines.promoting import promote, reject
from pipelines.scheduler_app import PAGES_URL, pages_route
from pipelines.serving.acting_releases import ActingReleases
from pipelines.serving.releases_watch import ReleasesWatch
from pipelines.snapshots import list_snapshots
from pipelines.storing import StoringError, download_folders, upload_folders
from pipelines.training import newest_snapshot, train
from pipelines.upkeep import retain
from pipelines.workspace import Workspace, open_workspace
from reports.registry import RegistryError
from reports.release_records import RecordsError
from tests.pipelines.conftest import Run

OLD = "2020-01-01T00:00:00+00:00"


def in_bucket(workspace: Workspace, address: str) -> Workspace:
    """The workspace with snapshots and releases in a bucket, which nothing was copied to yet."""
    settings = workspace.root / "offline_dqn.toml"
    places = f'[store]\nsnapshots = "{address}/snapshots"\nreleases = "{address}/releases"\n\n'
    settings.write_text(places + settings.read_text())
    return open_workspace(workspace.root)


def second_machine(first: Workspace, root: Path) -> Workspace:
    """A workspace with the same settings that has seen nothing of the bucket; its lake is a copy of the first one's."""
    shutil.copytree(first.root, root, ignore=shutil.ignore_patterns("snapshots", "releases", "mlflow.db", ".store"))
    return open_workspace(root)


@pytest.fixture
def first(workspace: Workspace, bucket_address: str) -> Workspace:
    """After its first night, whose snapshot and release were then copied to a bucket."""
    shared = in_bucket(workspace, bucket_address)
    done = upload_folders(shared, snapshots=shared.root / "snapshots", releases=shared.root / "releases")
    assert done.releases == (0, 1)
    for kind in ("snapshots", "releases"):
        (shared.root / kind).rename(shared.root / f"{kind}-before")
    return open_workspace(shared.root)


@pytest.fixture
def second(first: Workspace, tmp_path: Path) -> Workspace:
    return second_machine(first, tmp_path / "second")


def test_what_was_moved_is_the_same_and_decides_the_same(first: Workspace, second: Workspace) -> None:
    for workspace in (first, second):
        assert [(r.number, r.gate, r.damage, r.aliases) for r in workspace.registry.releases()] == [
            (0, "baseline", "", ()),
            (1, "passed", "", ("champion",)),
        ]
        assert [(p.to_release, p.reviewer) for p in workspace.registry.history()] == [(1, "Ada")]
        rows = workspace.query("SELECT release, gate, is_champion FROM releases").rows
        assert sorted(tuple(row) for row in rows) == [(0, "baseline", False), (1, "passed", True)]
    kept = first.root / "snapshots-before" / newest_snapshot(second).name
    assert open_snapshot(newest_snapshot(second))[1] == open_snapshot(kept)[1]
    assert [r.releases for r in list_snapshots(second)] == [(1,)]
    # The same snapshot, settings and budget: the recorded decision stands, and nothing is spent for it.
    assert stages.evaluate(second, 1).passed
    assert train(second, newest_snapshot(second)).repeated


def test_a_rollback_on_one_machine_acts_in_the_server_of_the_other(first: Workspace, second: Workspace) -> None:
    news = ReleasesWatch(second, every_s=0.05)
    assert news.look()
    acting = ActingReleases(second)
    assert acting.current.champion.number == 1
    with pytest.raises(RegistryError, match="Release 1 is the champion already"):
        promote(second, 1, reviewer="Grace", note="again", override=True)
    first.registry.rollback(0, reviewer="Ada", note="it scales too late")
    for watching in (news, acting):
        watching.start()
    try:
        until = time.monotonic() + 30
        while acting.current.champion.number != 0 and time.monotonic() < until:
            time.sleep(0.05)
        assert acting.current.champion.number == 0
        assert news.age_s is not None
        assert news.age_s < 30
    finally:
        news.stop()
        acting.stop()


def test_a_server_whose_bucket_is_away_serves_what_it_has_seen_last(
    first: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise StoreUnreachableError("Cannot look for s3://b/journal.jsonl: the store does not answer.")

    news = ReleasesWatch(first, every_s=5.0)
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "find", away)
        assert [news.look(), news.look()] == [False, False]
        assert ActingReleases(open_workspace(first.root, follow=False)).current.champion.number == 1
    assert news.look()
    said = [record.message for record in caplog.records if record.name == "offline_dqn.serve"]
    assert sum("cannot be asked, and what acts goes on" in line for line in said) == 1
    assert said[-1] == "the bucket of the releases answers again"


def test_the_report_of_a_release_in_a_bucket_is_shown_under_its_number(
    first: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(Starlette(routes=[pages_route(first.root)]))
    monkeypatch.setenv(PAGES_URL, "http://127.0.0.1:4200/offline-dqn")
    report = (first.release_path(1) / "report.html").relative_to(first.root)
    assert report.parts[0] == ".store"
    link = page_link(first, report)
    assert link.startswith("[releases/1/report.html](http://127.0.0.1:4200/offline-dqn/releases/1/report.html)")
    shown = client.get("/offline-dqn/releases/1/report.html")
    assert (shown.status_code, shown.content) == (200, (first.root / report).read_bytes())
    assert client.get("/offline-dqn/releases/1/release.json").status_code == 404


@pytest.mark.parametrize("later", [retain, stages.snapshot])
def test_who_was_erased_leaves_what_a_dead_machine_had_stored(
    first: Workspace, later: Callable[[Workspace], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "set_checked", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.snapshot(first)
    (path,) = unchecked_snapshots(first.snapshots_path)
    gone = str(open_snapshot(path)[0].episode_ids[0])
    remember_erased(first.open_lake().root, {EPISODE: [gone]}, at=datetime.now(UTC))  # by another machine, meanwhile

    with suppress(SnapshotError):  # frozen again, the lake is refused here: it still holds the episode
        later(first)

    left = current_snapshot(path)
    assert left != path
    assert gone not in open_snapshot(left)[0].episode_ids
    assert unchecked_snapshots(first.snapshots_path) == []


def test_a_rejection_and_a_lapse_are_everybodys(first: Workspace, second: Workspace) -> None:
    with first.registry.staging() as staged:
        (staged / "policy.json").write_text("{}")
        release = first.registry.register(staged, gate="passed", tags={"judged_against": "1", "evaluated_at": OLD})
    second.follow_buckets()
    assert len(record_lapses(second)) == 1
    assert record_lapses(first) == []  # it is entered
    reject(second, release, reviewer="Grace", note="too thirsty")
    with pytest.raises(RegistryError, match="was rejected by Grace"):
        first.registry.promote(release, reviewer="Ada")


def test_an_exclusion_is_seen_where_the_episodes_were_never_fetched(second: Workspace, run: Run) -> None:
    snapshot = newest_snapshot(second)
    assert not (snapshot / EPISODES).exists()
    done = run(second, "exclude", "--where", "reward < -1", "--note", "its collector lied", "--json")

    assert done.code == 0, done.err
    assert [(t["release"], t["unknown"], t["rules"]) for t in done.json["releases"]] == [(1, "", ["x1"])]
    assert (snapshot / EPISODES).exists()


def test_a_backup_keeps_what_was_decided_and_says_what_stays_in_the_bucket(first: Workspace, tmp_path: Path) -> None:
    done = back_up(first, tmp_path / "kept.tar")
    address = first.config.store.snapshots
    assert f"the snapshots stay in {address} and are not in the archive" in done.warning
    restore(tmp_path / "kept.tar", tmp_path / "restored")
    restored = open_workspace(tmp_path / "restored")
    assert [(r.number, r.damage) for r in restored.registry.releases()] == [(0, ""), (1, "")]
    assert stages.evaluate(restored, 1).passed
    open_snapshot(newest_snapshot(restored))


def later_by_a_night(folder: Path) -> SplitLedger:
    """What the next snapshot fixes, of a workspace whose latest nights judge."""
    ledger = read_ledger(folder)
    assert ledger is not None
    return replace(ledger, trained_until=(ledger.trained_until or date(2026, 1, 1)) + timedelta(days=1))


def test_a_lost_bucket_is_noticed_and_filled_again_from_a_copy(
    first: Workspace, bucket_address: str, tmp_path: Path
) -> None:
    store = open_store(bucket_address)
    store.delete([each.key for each in store.list()])
    with pytest.raises(RecordsError, match="lacks decisions that this machine has seen"):
        open_workspace(first.root)
    copy = first.releases_path.rename(tmp_path / "copy")
    empty = open_workspace(first.root)
    done = upload_folders(empty, snapshots=first.root / "snapshots-before", releases=copy)
    assert done.releases == (0, 1)
    assert open_workspace(first.root).registry.champion() == 1
    open_workspace(first.root).registry.rollback(0, reviewer="Ada")
    fix_splits(first.snapshots_path, later_by_a_night(first.snapshots_path), None)
    again = upload_folders(empty, snapshots=first.root / "snapshots-before", releases=copy)  # others have gone on
    assert (again, open_workspace(first.root).registry.champion()) == (done, 0)
    earlier = first.root / "snapshots-before" / SPLITS
    earlier.write_text(earlier.read_text().replace("0.45", "0.4"))
    with pytest.raises(StoringError, match="split by rules or nights of their own"):
        upload_folders(empty, snapshots=first.root / "snapshots-before", releases=None)
    (copy / "history.jsonl").write_bytes((copy / "history.jsonl").read_bytes().replace(b"Ada", b"Eve"))
    with pytest.raises(StoringError, match=r"holds releases already, and those in .* are not the ones that it began"):
        upload_folders(empty, snapshots=None, releases=copy)


def test_releases_and_snapshots_come_back_into_folders(first: Workspace, tmp_path: Path) -> None:
    done = download_folders(first, snapshots=first.root / "snapshots", releases=first.root / "releases")
    assert (done.releases, len(done.snapshots)) == ((0, 1), 1)
    settings = first.root / "offline_dqn.toml"
    settings.write_text(settings.read_text().partition("\n\n")[2])
    back = open_workspace(first.root)
    assert back.releases_path == first.root / "releases"
    assert [(r.number, r.damage) for r in back.registry.releases()] == [(0, ""), (1, "")]
    open_snapshot(newest_snapshot(back))
    with pytest.raises(StoringError, match="exists already; nothing was copied"):
        download_folders(first, snapshots=None, releases=first.root / "releases")
    assert not list(tmp_path.glob("*.part"))


def test_the_commands_say_where_things_lie_and_what_is_missing(first: Workspace, fresh: Workspace, run: Run) -> None:
    shown = run(first, "store", "show", "--json").json
    assert [(each["name"], each["n_objects"] > 5) for each in shown["places"]] == [
        ("snapshots", True),
        ("releases", True),
    ]
    refused = run(fresh, "store", "upload", "releases")
    assert refused.code == 1
    assert "[store] releases is the folder 'releases'; nothing was copied" in " ".join(refused.err.split())
    assert run(fresh, "store", "upload", "lakes").code == 2
