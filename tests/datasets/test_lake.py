"""The lake: what a commit checks, and where a lake can be."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from datasets import history, journal, lake_shape
from datasets import lake as lakes
from datasets.duck import duck
from datasets.durable import flush_to_disk
from datasets.journal import LakeError, StagedFile
from datasets.lake import lake_lock, open_lake
from datasets.locking import LockedError, exclusive_lock
from datasets.tables import TABLES, file_schema, table_columns
from tests.datasets.builders import ask, episode, lake_at, step_keys, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")


def test_a_new_lake_is_empty_and_has_every_column(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)

    assert lake.commit_number() == 0
    assert set(lake.versions()) == set(TABLES) == set(table_columns(tiny()))
    for table in TABLES:
        assert ask(lake, f"SELECT * FROM {{{table}}}") == []
    assert ask(lake, "SELECT observation.cpu, final_observation.load FROM {steps}") == []


@pytest.mark.parametrize("name", ["with a space; häß", "it's #1 [new]"])
def test_a_lake_works_in_a_folder_of_any_usual_name(tmp_path: Path, name: str) -> None:
    lake = lake_at(tmp_path / name)
    take_in(lake, write_rows(tmp_path / name / "a.jsonl", episode("e")))

    assert len(step_keys(lake_at(tmp_path / name))) == 3


@pytest.mark.parametrize("name", ["50%", "what?"])
def test_a_folder_that_cannot_hold_a_lake_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(LakeError, match=r"has a '%' or '\?' in it, .* Choose a folder without"):
        lake_at(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_empty_lake_moves_and_grows_on(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "one")
    take_in(lake, write_rows(tmp_path / "one" / "a.jsonl", episode("e")))
    (tmp_path / "one").rename(tmp_path / "two")
    moved = lake_at(tmp_path / "two")

    assert take_in(moved, tmp_path / "two" / "a.jsonl").unchanged == ("a.jsonl",)
    take_in(moved, write_rows(tmp_path / "two" / "b.jsonl", episode("f")))
    assert len(step_keys(moved)) == 6


def test_other_engines_read_the_table(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))
    table = DeltaTable(str(tmp_path / "lake" / "steps"))

    assert pa.table(table.to_pyarrow_table()).sort_by("step")["reward"].to_pylist() == [-1.0] * 3
    assert table.transaction_version("ingest") == 1


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"raw": ["x"]}),
        pa.table({name: pa.array(["x"]) for name in table_columns(tiny())["quarantine"]}),
    ],
)
def test_a_file_of_other_columns_or_types_is_refused(tmp_path: Path, table: pa.Table) -> None:
    lake = lake_at(tmp_path)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(LakeError, match=r"x\.parquet does not have the columns of table 'quarantine'"):
        lake.commit({"quarantine": [StagedFile(tmp_path / "x.parquet", "x.parquet", {}, 1)]})
    assert not lake.journal_path.exists()
    assert lake.commit_number() == 0


def test_a_commit_whose_file_is_gone_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    lake = lake_at(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "commit_table", cut_off)
        with pytest.raises(KeyboardInterrupt):
            take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))
    (entry,) = json.loads(lake.journal_path.read_text())["tables"]["steps"]["add"]
    (lake.root / "steps" / entry["name"]).unlink()

    with pytest.raises(LakeError, match=r"is gone, and commit 1 of the lake cannot be finished without it: restore"):
        lake_at(tmp_path)
    assert ask(lake, "SELECT * FROM {steps}") == []


def test_an_opening_that_died_half_way_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DeltaTable.create
    n_made: list[str] = []

    def create(path: str, **options: Any) -> DeltaTable:
        if len(n_made) == 2:
            raise KeyboardInterrupt
        n_made.append(path)
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create", create)
        with pytest.raises(KeyboardInterrupt):
            lake_at(tmp_path)
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("e")))

    assert len(step_keys(lake_at(tmp_path))) == 3


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    versions = lake_at(tmp_path).versions()

    assert open_lake(tmp_path / "lake", tiny()).versions() == versions


def test_a_lock_that_is_taken_names_its_holder(tmp_path: Path) -> None:
    with (
        lake_lock(lake_at(tmp_path)),
        pytest.raises(LockedError, match=r"The lake .* is in use by process \d+ since .* UTC\. Wait"),
        lake_lock(lake_at(tmp_path), wait_s=0.1),
    ):
        pass
    with lake_lock(lake_at(tmp_path), wait_s=0):
        pass


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "l", "It", wait_s=0):
        raise KeyError
    with exclusive_lock(tmp_path / "l", "It", wait_s=0):
        pass


def test_a_first_contract_may_be_mended_while_nothing_is_stored(tmp_path: Path) -> None:
    open_lake(tmp_path / "lake", tiny())
    mended = tiny(features={"cpu": {"type": "categorical", "min": None, "max": None}, "load": None})

    lake = open_lake(tmp_path / "lake", mended)

    with duck() as connection:
        rows = connection.sql(f"SELECT observation FROM {lake.scan('steps')}").to_arrow_table()
    assert [field.name for field in rows.schema.field("observation").type] == ["cpu", "zone", "busy"]
    assert rows.schema.field("observation").type.field("cpu").type == pa.string()
    assert lake.commit_number() == 0


@pytest.mark.parametrize("change", [{"format": 7, "written_by": "9.9.1"}, {"format": None, "written_by": "9.9.1"}])
def test_a_lake_of_another_version_is_refused_with_both_names(tmp_path: Path, change: dict[str, Any]) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))
    about = lake.root / "lake.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    before = sorted((path, path.stat().st_mtime_ns) for path in lake.root.rglob("*"))

    with pytest.raises(
        LakeError,
        match=rf"has format {change['format']}, written by offline-dqn 9\.9\.1; this is offline-dqn .*, which reads "
        r"and writes format 3\. Nothing was changed",
    ):
        lake_at(tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in lake.root.rglob("*")) == before


def test_a_log_of_many_commits_opens_fast_because_delta_checkpoints_it(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    for n in range(45):
        path = tmp_path / f"{n}.parquet"
        pq.write_table(file_schema(tiny(), "removals").empty_table(), path)
        with lake_lock(lake):
            lake.commit({"removals": [StagedFile(path, f"{n}.parquet", {}, 0)]})

    log = tmp_path / "lake" / "removals" / "_delta_log"
    assert len(list(log.glob("*.checkpoint.parquet"))) == 2
    assert lake.commit_number() == 45
    assert len(lake.files("removals")) == 46


def test_a_reader_during_a_commit_sees_all_of_it_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, real, seen = lake_at(tmp_path), journal.commit_table, list[dict[str, str]]()
    before = lake.scans()
    reader = threading.Thread(target=lambda: seen.append(lake.scans()))

    def commit_table(root: Path, table: str, *args: Any, **options: Any) -> None:
        if table == "steps":  # the quarantine has its part already
            reader.start()
            reader.join(0.3)
            assert reader.is_alive()
        real(root, table, *args, **options)

    monkeypatch.setattr(journal, "commit_table", commit_table)
    take_in(lake, write_rows(tmp_path / "a.jsonl", [*episode("e"), "bad"]))
    reader.join(30)

    (after,) = seen
    assert after == {table: lake.scan(table) for table in TABLES}
    assert {table for table in TABLES if after[table] != before[table]} == {"steps", "quarantine", "files", "batches"}


def test_a_commit_between_the_tables_is_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, real, opened = lake_at(tmp_path), journal.delta_table, list[str]()

    def delta_table(root: Path, table: str) -> Any:
        opened.append(table)
        if len(opened) == 2:
            take_in(lake, write_rows(tmp_path / "a.jsonl", [*episode("e"), "bad"]))
        return real(root, table)

    with monkeypatch.context() as patch:
        patch.setattr(lakes, "delta_table", delta_table)
        scans = lake.scans(("quarantine", "steps"))

    assert scans == {table: lake.scan(table) for table in ("steps", "quarantine")}


def test_tables_reach_the_disk_before_the_journal_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, flushed = lake_at(tmp_path), list[str]()
    real_flush, real_end = flush_to_disk, journal.end_journal

    def flush(path: Path) -> None:
        flushed.append(str(path.relative_to(lake.root)))
        real_flush(path)

    def end_journal(root: Path) -> None:
        flushed.append("end")
        real_end(root)

    monkeypatch.setattr(journal, "flush_to_disk", flush)
    monkeypatch.setattr(lakes, "end_journal", end_journal)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))

    until_end = flushed[: flushed.index("end")]
    version = f"{lake.versions()['steps']:020d}"
    assert until_end[-2:] == [f"steps/_delta_log/{version}.json", "steps/_delta_log"]
    assert {"steps/log_date=2024-05-01", "steps", "batches/_delta_log"} <= set(until_end)


def test_a_checkpoint_reaches_the_disk_before_the_log_it_stands_for_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, flushed = lake_at(tmp_path), set[str]()
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))
    log = lake.root / "steps" / "_delta_log"

    def flush(path: Path) -> None:
        flushed.add(path.name)
        assert (log / f"{0:020d}.json").exists()

    monkeypatch.setattr(journal, "flush_to_disk", flush)
    history.purge_history(lake.root, ["steps"])

    left = {path.name for path in log.iterdir() if path.is_file()}
    assert "_last_checkpoint" in left
    assert flushed == {*left, "_delta_log"}


def test_steps_made_anew_by_a_process_that_died_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    lake_at(tmp_path)
    mended = tiny(features={"cpu": {"type": "categorical", "min": None, "max": None}, "load": None})
    with monkeypatch.context() as patch:
        patch.setattr(lake_shape, "_add_columns_file", die)
        with pytest.raises(KeyboardInterrupt):
            lake_at(tmp_path, mended)

    assert ask(lake_at(tmp_path, mended), "SELECT * FROM {steps}") == []
