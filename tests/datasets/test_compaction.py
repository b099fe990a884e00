"""Compaction: fewer files, the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from datasets import compaction, journal
from datasets.compaction import LakeConfig, compact
from datasets.duck import duck
from datasets.history import vacuum
from datasets.journal import AlteredFilesError, LakeError
from datasets.lake import Lake
from datasets.named_bytes import altered_files
from datasets.tables import TABLES
from tests.datasets.builders import ask, change_bytes, episode, lake_at, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")


def many_batches(folder: Path, n: int = 5) -> Lake:
    lake = lake_at(folder)
    for i in range(n):
        later = episode(f"later{i}", timestamp="2024-05-02T00:00:00Z") if i == 0 else []
        take_in(lake, write_rows(folder / f"{i}.jsonl", [*episode(f"e{n - i}"), *later, f"bad {i}"]))
    return lake


def contents(lake: Lake) -> dict[str, list[tuple[object, ...]]]:
    return {table: ask(lake, f"SELECT * FROM {{{table}}} ORDER BY ALL") for table in TABLES}


def n_files(lake: Lake, table: str) -> int:
    return len(lake.files(table))


def test_files_get_fewer_and_every_row_stays_as_it_is(tmp_path: Path) -> None:
    lake = many_batches(tmp_path)
    before = contents(lake)

    done = compact(lake, LakeConfig(), above=1)

    assert contents(lake) == before
    assert {table: n_files(lake, table) for table in ("steps", "quarantine", "files", "batches")} == {
        "steps": 3,  # two nights, and the empty file
        "quarantine": 2,
        "files": 2,
        "batches": 2,
    }
    assert (done.n_before, done.n_rows) == (28, 15 + 5 + 5 + 5)
    assert set(done.tables) == {"steps", "quarantine", "files", "batches"}
    assert not lake.staging_path.exists()


def test_a_merged_file_is_sorted_and_compressed_like_any_other(tmp_path: Path) -> None:
    lake = many_batches(tmp_path)
    compact(lake, LakeConfig(), above=1)
    (merged,) = [file for file in lake.files("steps") if "log_date=2024-05-01" in file]

    with duck() as connection:
        rows = connection.execute(f"SELECT episode_id, step FROM read_parquet('{merged}')").fetchall()
    assert rows == sorted(rows)
    assert pq.read_metadata(merged).row_group(0).column(0).compression == "ZSTD"


def test_only_what_has_too_many_files_is_merged(tmp_path: Path) -> None:
    lake = many_batches(tmp_path, 3)
    versions = lake.versions()

    assert compact(lake, LakeConfig(compact_above=3)).tables == ()
    assert lake.versions() == versions
    assert compact(lake, LakeConfig(compact_above=2)).tables == ("quarantine", "files", "batches", "steps")
    assert compact(lake, LakeConfig(compact_above=1)).tables == ()


@pytest.mark.parametrize("table", ["steps", "quarantine"])
def test_changed_bytes_are_never_merged_under_a_name_that_vouches_for_them(tmp_path: Path, table: str) -> None:
    lake = many_batches(tmp_path, 3)
    file, versions = change_bytes(lake, table), lake.versions()

    with pytest.raises(AlteredFilesError, match="Restore these files from a backup") as told:
        compact(lake, LakeConfig(), above=1)

    assert str(file) in str(told.value)
    assert lake.versions() == versions
    assert altered_files(lake.files(table)) == [str(file)]


def test_large_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = many_batches(tmp_path, 3)
    monkeypatch.setattr(compaction, "_LARGE", 1)

    assert compact(lake, LakeConfig(), above=1).tables == ()


def test_open_readers_keep_the_old_files_until_they_are_vacuumed(tmp_path: Path) -> None:
    lake = many_batches(tmp_path, 3)
    before = lake.scan("steps")
    compact(lake, LakeConfig(), above=1)

    with duck() as connection:
        assert connection.execute(f"SELECT count(*) FROM {before}").fetchone() == (12,)
    assert vacuum(lake.root, "steps", hours=24) == []
    assert len(vacuum(lake.root, "steps", hours=0)) == 3
    assert vacuum(lake.root, "steps", hours=0) == []


def test_a_pinned_version_survives_the_vacuum(tmp_path: Path) -> None:
    lake = many_batches(tmp_path, 3)
    pinned = lake.versions()["steps"]
    compact(lake, LakeConfig(), above=1)

    assert vacuum(lake.root, "steps", hours=0, keep_versions=[pinned, 999]) == []
    assert DeltaTable(str(lake.root / "steps"), version=pinned).to_pyarrow_table().num_rows == 12


def test_followers_of_the_table_learn_that_no_row_changed(tmp_path: Path) -> None:
    lake = many_batches(tmp_path, 2)
    compact(lake, LakeConfig(), above=1)
    log = sorted((lake.root / "steps" / "_delta_log").glob("*.json"))[-1].read_text()

    assert log.count('"dataChange":false') == 3  # two removed, one added
    assert '"dataChange":true' not in log


def test_repeats_are_still_found_afterwards(tmp_path: Path) -> None:
    lake = many_batches(tmp_path, 4)
    compact(lake, LakeConfig(), above=1)
    report = take_in(lake, write_rows(tmp_path / "again.jsonl", [*episode("e1"), *episode("new")]))

    assert report.batch is not None
    assert (report.batch.counts.n_duplicates, report.batch.counts.n_lake) == (3, 3)
    assert take_in(lake, tmp_path / "0.jsonl").unchanged == ("0.jsonl",)


def test_files_of_an_earlier_contract_take_on_its_later_columns(tmp_path: Path) -> None:
    many_batches(tmp_path, 2)
    grown = lake_at(tmp_path, tiny(features={"memory": {"type": "numeric", "nullable": True}}))
    observation = {"cpu": 0.5, "zone": None, "busy": None, "load": [1.0, 2.0], "memory": 7.0}
    take_in(grown, write_rows(tmp_path / "c.jsonl", episode("new", observation=observation)))
    shown = "SELECT episode_id, step, observation.memory, observation.load FROM {steps} ORDER BY 1, 2"
    before = ask(grown, shown)
    assert "union_by_name" in grown.scan("steps")

    compact(grown, LakeConfig(), above=1)
    assert ask(grown, shown) == before
    assert "union_by_name" in grown.scan("steps")  # the other night has one file, of the earlier columns

    take_in(grown, write_rows(tmp_path / "d.jsonl", episode("n", timestamp="2024-05-02T00:00:00Z")))
    compact(grown, LakeConfig(), above=1)
    assert "union_by_name" not in grown.scan("steps")
    assert [row for row in ask(grown, shown) if row[0] != "n"] == before


@pytest.mark.parametrize("place", ["quarantine", "steps"])
def test_killed_half_way_the_next_command_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    lake = many_batches(tmp_path, 3)
    before, real = contents(lake), journal.commit_table

    def cut_off(root: Path, table: str, *args: object, **options: object) -> None:
        if table == place:
            raise KeyboardInterrupt
        real(root, table, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(journal, "commit_table", cut_off)
        with pytest.raises(KeyboardInterrupt):
            compact(lake, LakeConfig(), above=1)

    assert contents(lake_at(tmp_path)) == before
    assert n_files(lake, "quarantine") == 2
    assert not lake.journal_path.exists()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = many_batches(tmp_path, 3)
    before = (contents(lake), lake.versions())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_merge", full)
        with pytest.raises(LakeError, match=r"No space left on device\. Nothing of the compaction is in it"):
            compact(lake, LakeConfig(), above=1)
    assert (contents(lake), lake.versions()) == before
    assert not lake.staging_path.exists()


def test_a_file_that_lost_rows_is_never_merged_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = many_batches(tmp_path, 3)
    real = compaction.scan_files
    monkeypatch.setattr(compaction, "scan_files", lambda files, **o: f"(SELECT * FROM {real(files, **o)} LIMIT 2)")

    with pytest.raises(
        LakeError, match=r"hold 3 rows, and the merged one 2: one of them is damaged\. Nothing was changed"
    ):
        compact(lake, LakeConfig(), above=1)
