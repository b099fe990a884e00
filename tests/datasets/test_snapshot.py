"""Snapshots: what is frozen, what is left out, and that not a byte of it may change."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import freezing, snapshot_writer
from datasets.contract import Contract
from datasets.freezing import NoEpisodesError, freeze_snapshot, read_episodes
from datasets.lake import Lake
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.settings import SettingsError, build_settings
from datasets.snapshot import SnapshotError, SnapshotSummary, changed_files, open_snapshot
from datasets.snapshot_config import SnapshotConfig
from datasets.splits import split_of
from tests.datasets.builders import NOON, episode, lake_at, step_row, suite_says, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

CONFIG = SnapshotConfig(train_share=0.4, select_share=0.3)


def lake_of(folder: Path, *files: list[Any], contract: Contract | None = None) -> Lake:
    lake = lake_at(folder, contract)
    for n, rows in enumerate(files):
        take_in(lake, write_rows(folder / f"{n}.jsonl", rows))
    return lake


def frozen(lake: Lake, as_of: datetime = NOON, **options: Any) -> tuple[Replay, SnapshotSummary]:
    path, summary = freeze_snapshot(lake, CONFIG, lake.root.parent / "snapshots", as_of=as_of, **options)
    replay, read = open_snapshot(path)
    assert read.digest == summary.digest
    return replay, summary


def night(k: int, n: int = 20) -> list[dict[str, Any]]:
    """n episodes of night k."""
    return [
        step_row(f"n{k}-{i}", step, timestamp=f"2024-05-{k + 1:02d}T10:{i:02d}:{step:02d}Z", reward=-float(i % 3))
        for i in range(n)
        for step in range(3)
    ]


# --- arrays


def test_arrays_hold_the_log(tmp_path: Path) -> None:
    rows = [
        step_row("a", 0, action="up", reward=-2, available_actions=["up", "hold"], policy_version="v1"),
        step_row("a", 1, observation={"cpu": 0.25, "zone": None, "busy": None, "load": None}),
        step_row("a", 2, observation={"zone": "never seen"}),
        step_row(
            "b", 0, timestamp="2024-05-01T09:00:00Z", terminated=False, truncated=True, final_observation={"cpu": 1}
        ),
    ]
    replay, _ = frozen(lake_of(tmp_path, rows))

    assert replay.episode_ids.tolist() == ["b", "a"]  # by start
    assert replay.offsets.tolist() == [0, 1, 4]
    assert replay.actions.tolist() == [1, 2, 1, 1]
    assert replay.rewards.tolist() == [-1, -2, -1, -1]
    assert replay.terminated.tolist() == [False, False, False, True]
    assert replay.truncated.tolist() == [True, False, False, False]
    assert replay.next_row.tolist() == [4, 2, 3, -1]
    assert replay.available.tolist() == [[True] * 3, [False, True, True], *[[True] * 3] * 3]
    assert replay.policy_versions.tolist() == ["", "v1"]
    assert replay.nights.tolist() == [date(2024, 5, 1)] * 2
    assert replay.starts is not None
    assert replay.starts.astype(str).tolist() == ["2024-05-01T09:00:00.000000", "2024-05-01T10:00:00.000000"]
    assert replay.subset(np.array([False, True])).starts == replay.starts[1:]
    assert replay.clusters.tolist() == [0, 1]
    observations = replay.observations
    np.testing.assert_array_equal(observations.columns["cpu"], [0.5, 0.5, 0.25, 0.5, 1.0])
    assert observations.vocabularies["zone"] == ("a", "never seen")
    assert observations.columns["zone"].tolist() == [0, 0, -1, 1, -1]
    np.testing.assert_array_equal(observations.columns["busy"], [1, 1, np.nan, 1, np.nan])
    nan = [np.nan, np.nan]
    np.testing.assert_array_equal(observations.columns["load"], [[0, 1], [0, 1], nan, [0, 1], nan])


def test_next_row_of_every_kind_of_end(tmp_path: Path) -> None:
    rows = [
        step_row("a-terminated", 0, terminated=True),
        step_row("b-final", 0, truncated=True, final_observation={"cpu": 0.75}),
        step_row("c-no-final", 0, truncated=True),
        step_row("d-idle", 0),
        *episode("e-long"),
    ]
    replay, summary = frozen(lake_of(tmp_path, rows))

    assert replay.next_row.tolist() == [-1, 7, -1, -1, 5, 6, -1]
    assert replay.truncated.tolist() == [False, True, True, True, False, False, False]
    assert replay.observations.columns["cpu"][7] == 0.75
    assert summary.n_unusable_ends == 2


def test_idle_ends_may_be_terminal(tmp_path: Path) -> None:
    replay, summary = frozen(lake_of(tmp_path, [step_row("d")], contract=tiny(episodes={"on_timeout": "terminated"})))

    assert (replay.terminated.tolist(), replay.truncated.tolist()) == ([True], [False])
    assert summary.n_unusable_ends == 0


def test_rows_before_a_feature_was_added_have_it_missing(tmp_path: Path) -> None:
    lake_of(tmp_path, episode("old"))
    both = {"memory": {"type": "numeric", "nullable": True}, "rack": {"type": "categorical", "nullable": True}}
    lake = lake_at(tmp_path, tiny(features=both))
    take_in(lake, write_rows(tmp_path / "new.jsonl", episode("z", observation={"memory": 4, "rack": "r"})))
    replay, _ = frozen(lake)

    np.testing.assert_array_equal(replay.observations.columns["memory"], [np.nan] * 3 + [4.0] * 3)
    assert replay.observations.columns["rack"].tolist() == [-1] * 3 + [0] * 3


def test_probabilities_that_were_not_logged_are_nan(tmp_path: Path) -> None:
    contract = tiny(behavior={"propensity": "estimated"})
    replay, _ = frozen(lake_of(tmp_path, [step_row("a", behavior_prob=None), step_row("b")], contract=contract))

    np.testing.assert_array_equal(replay.behavior_prob, [np.nan, 0.5])


# --- what is left out


def test_open_and_damaged_episodes_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        *episode("whole"),
        *episode("other"),
        step_row("gap", 0),
        step_row("gap", 2),
        step_row("lost", 0),
        step_row("lost", 1, reward=99),
        "no episode at all",
        step_row("open", 0, timestamp=NOON.isoformat()),
    ]
    replay, summary = frozen(lake_of(tmp_path, rows))

    assert sorted(replay.episode_ids) == ["other", "whole"]
    assert (summary.n_open, summary.n_damaged, summary.n_unplaced) == (1, 2, 1)
    assert summary.damage == {"some of its rows are in quarantine": 1, "some steps are missing": 1}
    assert summary.damaged_share == 3 / 5


def test_what_had_not_happened_at_as_of_is_not_there(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, episode("e"))
    _, before = frozen(lake)
    take_in(lake, write_rows(tmp_path / "later.jsonl", [step_row("z", timestamp="2024-06-01T00:00:00Z")]))
    _, after = frozen(lake)

    assert after.digest == before.digest


def test_a_lake_without_a_whole_episode_says_why(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [step_row("gap", 0), step_row("gap", 2), step_row("open", timestamp=NOON.isoformat())])
    with pytest.raises(NoEpisodesError, match=r"no episode to freeze: 1 are still open at 2024-05-02 12:00 UTC, 1 are"):
        frozen(lake)
    assert read_episodes(lake, CONFIG, as_of=NOON) is None


# --- digest


def test_equal_data_have_an_equal_digest_whatever_the_files_and_their_order(tmp_path: Path) -> None:
    rows = night(0)
    digests = {
        frozen(lake_of(tmp_path / name, *files))[1].digest
        for name, files in {
            "whole": [rows],
            "reversed": [rows[::-1]],
            "halves": [rows[31:], rows[:31]],
            "repeated": [rows[:40], [step_row("n0-0", 0, timestamp="2024-05-01T10:00:00Z", reward=-0.0), *rows[20:]]],
        }.items()
    }
    assert len(digests) == 1


def test_digest_depends_on_data_contract_and_splits(tmp_path: Path) -> None:
    lake = lake_of(tmp_path / "a", night(0))
    same = frozen(lake)[1].digest
    others = [
        freeze_snapshot(lake, SnapshotConfig(salt="x"), tmp_path / "s", as_of=NOON)[1].digest,
        freeze_snapshot(lake_at(tmp_path / "a", tiny(gamma=0.8)), CONFIG, tmp_path / "t", as_of=NOON)[1].digest,
        frozen(lake_of(tmp_path / "b", night(0)[:-1]))[1].digest,
    ]
    assert frozen(lake)[1].digest == same
    assert len({same, *others}) == 4


@pytest.mark.parametrize(("block", "run"), [(1, 1), (2, 2), (5, 1)])
def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, run: int) -> None:
    odd = [
        step_row("final", 0, timestamp="2024-05-01T08:00:00Z", truncated=True, final_observation={"zone": "q"}),
        step_row("masked", 0, timestamp="2024-04-30T08:00:00Z", available_actions=["hold"], observation={"zone": None}),
        *episode("long", 9, observation={"zone": "b"}, terminated=None, truncated=None),
    ]
    lake = lake_of(tmp_path, [*night(0), *odd], night(1, 3))
    as_of = datetime(2024, 5, 9, tzinfo=UTC)
    path, whole = freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=as_of)
    monkeypatch.setattr(freezing, "rows_per_block", lambda _: block)
    monkeypatch.setattr(freezing, "_BLOCKS_PER_RUN", run)
    other, pieces = freeze_snapshot(lake, CONFIG, tmp_path / "t", as_of=as_of)

    assert pieces.digest == whole.digest
    for file in path.glob("*.npy"):
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_equal_data_keep_the_snapshot_that_is_there(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, episode("e"))
    first, summary = freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=NOON)
    made = (first / "snapshot.json").stat().st_mtime_ns
    second, again = freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=NOON + timedelta(hours=1))

    assert (second, again) == (first, summary)
    assert (first / "snapshot.json").stat().st_mtime_ns == made


def test_freezing_again_mends_a_snapshot_whose_bytes_have_changed(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, episode("e"))
    path, _ = freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=NOON)
    (path / "rewards.npy").write_bytes(b"x")
    freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=NOON)

    assert changed_files(path) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, episode("e"))
    (tmp_path / "s" / ".new" / ".spill").mkdir(parents=True)
    (tmp_path / "s" / ".new" / "rewards.npy").write_text("half")
    freeze_snapshot(lake, CONFIG, tmp_path / "s", as_of=NOON)

    assert not (tmp_path / "s" / ".new").exists()


# --- verified on open


def test_arrays_are_mapped_not_read(made: Path) -> None:
    replay, _ = open_snapshot(made)
    arrays = [*replay.observations.columns.values(), replay.rewards, replay.available, replay.next_row, replay.offsets]
    assert all(isinstance(values, np.memmap) and not values.flags.writeable for values in arrays)
    assert not isinstance(replay.subset(np.ones(replay.n_episodes, dtype=bool)).rewards, np.memmap)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    suite_says(patch, True)
    lake = lake_of(tmp_path_factory.mktemp("made"), episode("e"))
    path, _ = freeze_snapshot(lake, CONFIG, lake.root.parent / "snapshots", as_of=NOON)
    patch.undo()
    return path


def test_one_changed_byte_in_any_file_is_found(made: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in made.iterdir())
    assert {"snapshot.json", "episodes.parquet", "rewards.npy", "offsets.npy", "observation.0.npy"} <= set(names)
    for name in names:
        copy = tmp_path / name
        shutil.copytree(made, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(SnapshotError, match=r"is not what was frozen|holds no readable snapshot"):
            open_snapshot(copy)


@pytest.mark.parametrize("where", [("contract", "gamma"), ("summary", "n_damaged"), ("summary", "judge_since")])
def test_a_changed_fact_in_the_description_is_found(made: Path, tmp_path: Path, where: tuple[str, str]) -> None:
    shutil.copytree(made, tmp_path / "s")
    written = json.loads((made / "snapshot.json").read_text())
    written[where[0]][where[1]] = 0.5
    (tmp_path / "s" / "snapshot.json").write_text(json.dumps(written))

    with pytest.raises(SnapshotError, match=r"snapshot\.json is not what was frozen \(missing or changed\)\. Delete"):
        open_snapshot(tmp_path / "s")


def test_missing_files_and_folders_and_other_formats_are_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"nowhere holds no readable snapshot .*`offline-dqn snapshot` makes one"):
        open_snapshot(tmp_path / "nowhere")
    shutil.copytree(made, tmp_path / "s")
    (tmp_path / "s" / "rewards.npy").unlink()
    with pytest.raises(SnapshotError, match=r"rewards\.npy is not what was frozen"):
        open_snapshot(tmp_path / "s")
    for text, message in {
        '{"format": 99}': "is of snapshot format 99",
        "[]": "no readable",
        "\xff": "no readable",
    }.items():
        (tmp_path / "s" / "snapshot.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(SnapshotError, match=message):
            open_snapshot(tmp_path / "s")


def test_a_full_disk_leaves_no_half_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_of(tmp_path, episode("e"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot_writer.pq, "write_table", full)  # type: ignore[attr-defined]  # a module that it imports
        with pytest.raises(SnapshotError, match=r"could be written .*No space left.* There is no new snapshot"):
            frozen(lake)
    assert list((tmp_path / "snapshots").glob("[!.]*")) == []
    frozen(lake)


# --- splits


@given(st.text(min_size=1), st.text())
def test_a_cluster_is_always_on_the_same_side(cluster: str, salt: str) -> None:
    wide = SnapshotConfig(train_share=0.5, select_share=0.3)
    assert split_of(cluster, salt, wide) == split_of(cluster, salt, wide) in {TRAIN, SELECT, GATE}


def test_shares_are_kept_on_average() -> None:
    splits = [split_of(f"c{i}", "salt", CONFIG) for i in range(4000)]

    assert [round(splits.count(s) / 4000, 1) for s in (TRAIN, SELECT, GATE)] == [0.4, 0.3, 0.3]


def test_splits_stay_when_more_nights_arrive(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, night(0))
    first, _ = frozen(lake)
    take_in(lake, write_rows(tmp_path / "more.jsonl", [*night(2), *night(1)]))
    second, _ = frozen(lake, as_of=NOON + timedelta(days=5))

    before, after = (dict(zip(r.episode_ids, r.split, strict=True)) for r in (first, second))
    assert len(after) == 60
    assert all(after[name] == split for name, split in before.items())


def test_episodes_of_a_cluster_are_on_one_side(tmp_path: Path) -> None:
    rows = [{**row, "service": f"s{i // 3 % 7}"} for i, row in enumerate(night(0, 42))]
    replay, _ = frozen(lake_of(tmp_path, rows, contract=tiny(episodes={"cluster": "service"})))

    sides = {(int(c), int(s)) for c, s in zip(replay.clusters, replay.split, strict=True)}
    assert len(sides) == len(set(replay.clusters)) == 7


def test_judges_live_after_the_change(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [*night(0), *night(1)])
    as_of = datetime(2024, 5, 9, tzinfo=UTC)
    everything, _ = frozen(lake, as_of=as_of)
    replay, summary = frozen(lake, as_of=as_of, judge_since=date(2024, 5, 2))

    early = everything.nights < np.datetime64("2024-05-02")
    judged = everything.split != TRAIN
    assert summary.n_before_change == int((early & judged).sum()) > 0
    assert set(replay.episode_ids) == set(everything.episode_ids[~(early & judged)])
    assert (replay.nights[replay.split != TRAIN] >= np.datetime64("2024-05-02")).all()
    assert summary.judge_since == "2024-05-02"


def test_episodes_started_later_can_be_read_alone(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [*night(0), *night(1)])
    replay = read_episodes(
        lake, CONFIG, as_of=datetime(2024, 5, 9, tzinfo=UTC), started_after=datetime(2024, 5, 1, 23, tzinfo=UTC)
    )
    assert replay is not None
    assert {name[:2] for name in replay.episode_ids} == {"n1"}


def test_shares_must_leave_a_gate() -> None:
    with pytest.raises(SettingsError, match="leave nothing for the gate"):
        build_settings(SnapshotConfig, {"train_share": 0.7, "select_share": 0.3}, "test")


def test_new_damage_makes_another_snapshot_of_the_same_episodes(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("good")))
    before, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    take_in(lake, write_rows(tmp_path / "b.jsonl", [step_row("bad", 0, reward=-99.0)]))

    after, summary = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)

    assert after != before
    assert summary.n_unplaced == 1
    assert open_snapshot(after)[1].damaged_share == pytest.approx(0.5)
