"""The catalog: views that any DuckDB opens, and questions that cannot change or read anything else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from datasets import catalog
from datasets.catalog import CatalogError, QueryError, current_catalog, query_catalog, refresh_catalog
from datasets.compaction import LakeConfig, compact
from datasets.contract import Contract
from datasets.history import purge_history
from datasets.lake import Lake, lake_lock
from datasets.locking import ReadOnlyError
from datasets.rewriting import Rewrite, rewrite_rows
from tests.datasets.builders import NOON, episode, lake_at, step_row, suite_says, take_in, tiny, write_rows


def built(folder: Path, contract: Contract | None = None, *rows: object) -> Lake:
    patch = pytest.MonkeyPatch()
    suite_says(patch, True)
    lake = lake_at(folder, contract)
    rows = rows or (*episode("e"), "bad", step_row("gap", 0), step_row("gap", 2), step_row("late", reward=99))
    take_in(lake, write_rows(folder / "a.jsonl", rows))  # type: ignore[arg-type]  # rows
    refresh_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[{"release": 1, "gate": "passed"}])
    patch.undo()
    return lake


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    built(folder)
    return folder


def asked(folder: Path, sql: str) -> list[tuple[object, ...]]:
    return list(query_catalog(folder / "lake.duckdb", sql, folders=[folder / "lake"]).rows)


def test_views_show_what_is_in_the_lake(workspace: Path) -> None:
    assert asked(workspace, "SELECT count(*), avg(observation.cpu) FROM steps") == [(5, 0.5)]
    assert asked(workspace, "SELECT episode_id, complete, damage FROM episodes ORDER BY 1") == [
        ("e", True, None),
        ("gap", True, "1 steps are missing"),
    ]
    assert asked(workspace, "SELECT episode_id, position, next_observation.zone FROM transitions ORDER BY 2") == [
        ("e", 0, "a"),
        ("e", 1, "a"),
        ("e", 2, None),
    ]
    assert asked(workspace, "SELECT status, n_in, n_lake, n_quarantined FROM batches") == [("lake", 7, 5, 2)]
    assert asked(workspace, "SELECT count(*) FROM quarantine WHERE reason LIKE '%99%'") == [(1,)]
    assert asked(workspace, "SELECT path, n_lines FROM files") == [("a.jsonl", 7)]
    assert asked(workspace, "SELECT release, gate, value FROM releases") == [(1, "passed", None)]


def test_columns_are_named(workspace: Path) -> None:
    result = query_catalog(workspace / "lake.duckdb", "SELECT 1 AS one, 'x' AS two", folders=[])

    assert (result.columns, result.rows) == (("one", "two"), ((1, "x"),))


WRITES = [
    "COPY (SELECT 1) TO '{out}'",
    "COPY steps TO '{out}' (FORMAT parquet)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "EXPORT DATABASE '{out}'",
    "CREATE TABLE x AS SELECT 1",
    "CREATE OR REPLACE VIEW steps AS SELECT 1",
    "DROP VIEW steps",
    "INSERT INTO releases (release) VALUES (2)",
    "DELETE FROM releases",
    "UPDATE releases SET gate = 'passed'",
    "ATTACH '{out}' AS other",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "CALL pragma_database_list()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CHECKPOINT",
    "VACUUM",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{out}'",
    "BEGIN TRANSACTION",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("sql", WRITES)
def test_what_is_not_one_select_is_refused(workspace: Path, tmp_path: Path, sql: str) -> None:
    with pytest.raises(QueryError, match="`query` answers exactly one SELECT and changes nothing; this is"):
        asked(workspace, sql.format(out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


READS = [
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM glob('{secret}*')",
    "SELECT * FROM read_text('{lake}/../secret.csv')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM query('SELECT * FROM read_csv(''{secret}'')')",
    "SELECT (SELECT content FROM read_text('{secret}'))",
    "WITH x AS (FROM read_csv('{secret}')) SELECT * FROM x",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM parquet_metadata('{secret}')",
]


@pytest.mark.parametrize("sql", READS)
def test_other_files_are_out_of_reach(workspace: Path, sql: str) -> None:
    secret = workspace / "secret.csv"
    secret.write_text("a\nsecret-text\n")
    with pytest.raises(QueryError, match="DuckDB cannot answer that") as caught:
        asked(workspace, sql.format(secret=secret, lake=workspace / "lake"))
    assert "secret-text" not in str(caught.value)


def test_nothing_of_that_changed_the_catalog(workspace: Path) -> None:
    assert asked(workspace, "SELECT count(*) FROM steps") == [(5,)]
    assert asked(workspace, "SELECT release FROM releases") == [(1,)]


def test_mistakes_are_explained(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="That is not SQL that DuckDB understands"):
        asked(workspace, "SELEC 1")
    with pytest.raises(QueryError, match="nope"):
        asked(workspace, "SELECT * FROM nope")
    with pytest.raises(QueryError, match="DuckDB cannot answer that"):
        asked(workspace, "SELECT ?")
    with pytest.raises(QueryError, match=r"lake\.duckdb does not exist"):
        asked(tmp_path, "SELECT 1")


def test_two_threads_may_ask_at_the_same_time(workspace: Path) -> None:
    answers: list[object] = []

    def ask_often() -> None:
        for _ in range(5):
            try:
                answers.append(asked(workspace, "SELECT count(*) FROM steps"))
            except QueryError as error:
                answers.append(error)

    threads = [threading.Thread(target=ask_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [[(5,)]] * 15


def test_plain_duckdb_opens_it_in_another_process_and_folder(workspace: Path, tmp_path: Path) -> None:
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True)\n"
        "for view in ('transitions', 'steps'): print(c.execute(f'SELECT count(*) FROM {view}').fetchall())"
    )
    path = str(workspace / "lake.duckdb")
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=tmp_path, check=True)

    assert found.stdout == "[(3,)]\n[(5,)]\n"


def test_a_moved_workspace_works_after_a_refresh(tmp_path: Path) -> None:
    built(tmp_path / "before")
    shutil.move(tmp_path / "before", tmp_path / "after it moved")
    lake = lake_at(tmp_path / "after it moved")
    path = tmp_path / "after it moved" / "lake.duckdb"
    refresh_catalog(lake, path, as_of=NOON, releases=[])

    assert asked(path.parent, "SELECT count(*) FROM steps") == [(5,)]
    assert asked(path.parent, "SELECT count(*) FROM releases") == [(0,)]


def test_it_is_rebuilt_only_when_something_changed(tmp_path: Path) -> None:
    lake = built(tmp_path)
    path = tmp_path / "lake.duckdb"
    before = path.stat().st_ino
    refresh_catalog(lake, path, as_of=NOON, releases=[{"release": 1, "gate": "passed"}])
    assert path.stat().st_ino == before

    refresh_catalog(lake, path, as_of=NOON + timedelta(days=1), releases=[{"release": 1, "gate": "passed"}])
    assert path.stat().st_ino != before


def test_a_damaged_catalog_is_built_anew(tmp_path: Path) -> None:
    lake = built(tmp_path)
    path = tmp_path / "lake.duckdb"
    path.write_bytes(b"no database" * 1000)
    refresh_catalog(lake, path, as_of=NOON, releases=[])

    assert asked(tmp_path, "SELECT count(*) FROM steps") == [(5,)]
    assert [p.name for p in tmp_path.glob(".lake*")] == []


def test_strange_names_and_folders_are_only_names(tmp_path: Path) -> None:
    evil = "x'); DROP VIEW steps; --"
    folder = tmp_path / "it's a [strange] földer; #1"
    contract = tiny(
        features={"select": {"type": "numeric", "nullable": True}}, actions={"names": ["down", "hold", evil]}
    )
    row = step_row("e';--", 0, action=evil, observation={"select": 3}) | {"terminated": True}
    built(folder, contract, row)

    answer = asked(folder, 'SELECT action, observation."select", episode_id FROM transitions')
    assert answer == [(evil, 3.0, "e';--")]


def nights(folder: Path, n: int) -> Lake:
    """One batch a night from the first of May on, each with an episode of its own."""
    patch = pytest.MonkeyPatch()
    suite_says(patch, True)
    lake = lake_at(folder)
    for day in range(1, n + 1):
        at = f"2024-05-{day:02d}T10:00:00Z"
        take_in(lake, write_rows(folder / f"{day}.jsonl", episode(f"e{day}", timestamp=at)))
    refresh_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[])
    patch.undo()
    return lake


def files_read(folder: Path, sql: str) -> str:
    """What DuckDB says about the Parquet files that it opened for a question."""
    with duckdb.connect(str(folder / "lake.duckdb"), read_only=True) as connection:
        ((_, shown),) = connection.execute(f"EXPLAIN ANALYZE {sql}").fetchall()
    return " ".join(re.findall(r"(?:Scanning Files: \d+/\d+|Total Files Read: \d+)", shown))


def row_groups_read(folder: Path, sql: str) -> int:
    """Row groups whose statistics did not rule them out."""
    with duckdb.connect(str(folder / "lake.duckdb"), read_only=True) as connection:
        connection.execute("SET enable_profiling = 'json'")
        connection.execute(f"SET profiling_output = '{folder / 'profile.json'}'")
        connection.execute(sql).fetchall()
    query = json.loads((folder / "profile.json").read_text())["query"]
    return int(query["total_row_groups_scanned"])


def test_a_question_about_some_nights_opens_only_their_files(tmp_path: Path) -> None:
    nights(tmp_path, 10)

    one = "SELECT count(*) FROM steps WHERE log_date = DATE '2024-05-03'"
    some = "SELECT avg(reward) FROM steps WHERE log_date BETWEEN '2024-05-02' AND '2024-05-04' AND reward < 0"
    newest = "SELECT avg(reward) FROM steps WHERE log_date = (SELECT max(log_date) FROM steps)"
    assert files_read(tmp_path, one) == "Scanning Files: 1/11 Total Files Read: 1"
    assert files_read(tmp_path, some) == "Scanning Files: 3/11 Total Files Read: 3"
    assert "Total Files Read: 1 " in files_read(tmp_path, newest) + " "


def test_a_question_about_some_hours_reads_only_the_rows_around_them(tmp_path: Path) -> None:
    nights(tmp_path, 10)
    hours = "timestamp BETWEEN TIMESTAMPTZ '2024-05-03 09:00+00' AND TIMESTAMPTZ '2024-05-03 11:00+00'"

    assert asked(tmp_path, f"SELECT count(*) FROM steps WHERE {hours}") == [(3,)]
    assert row_groups_read(tmp_path, f"SELECT sum(reward) FROM steps WHERE {hours}") == 1
    assert row_groups_read(tmp_path, "SELECT sum(reward) FROM steps") >= 10


def test_the_views_are_at_the_last_commit_whatever_it_was(tmp_path: Path) -> None:
    lake = nights(tmp_path, 4)

    compact(lake, LakeConfig(), above=1)
    purge_history(lake.root, ["batches"])
    assert asked_now(lake, tmp_path) == (12, 12, 0)
    with lake_lock(lake):
        rewrite_rows(lake, {"steps": Rewrite("episode_id = 'e2'")}, reason="old", at=NOON, purge=True)
    assert asked_now(lake, tmp_path) == (9, 12, 3)


def asked_now(lake: Lake, folder: Path) -> tuple[object, ...]:
    refresh_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[])
    (row,) = asked(folder, "SELECT (SELECT count(*) FROM steps), sum(n_lake), sum(n_removed) FROM batches")
    return row


def test_a_full_disk_leaves_the_views_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = built(tmp_path)

    def full(*_: object) -> None:
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_build", full)
        with pytest.raises(CatalogError, match=r"could not be rebuilt: .*No space left.* The lake itself is complete"):
            refresh_catalog(lake, tmp_path / "lake.duckdb", as_of=NOON, releases=[])
    assert asked(tmp_path, "SELECT count(*) FROM steps") == [(5,)]
    assert [path.name for path in tmp_path.glob(".lake*")] == []


def test_where_nothing_can_be_written_the_views_are_made_for_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = built(tmp_path)
    before = (tmp_path / "lake.duckdb").read_bytes()

    def read_only(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        with (
            pytest.raises(ReadOnlyError, match=r"The lake .* cannot be changed here: Read-only file system"),
            lake_lock(lake),
        ):
            pass
        with current_catalog(lake, tmp_path / "lake.duckdb", as_of=NOON, releases=[]) as path:
            answer = query_catalog(path, "SELECT count(*) FROM releases", folders=[tmp_path / "lake"])
    assert answer.rows == ((0,),)
    assert not path.exists()
    assert (tmp_path / "lake.duckdb").read_bytes() == before
