"""A DuckDB that is used again is as good as a new one, and a sealed one sees no file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets.duck
from datasets.duck import duck, sealed_duck
from datasets.observation_sql import evaluate_on

ROOT = Path(__file__).resolve().parents[2]


def test_what_one_connection_makes_no_other_sees() -> None:
    with duck() as first, duck() as second:
        for number, connection in enumerate((first, second)):
            connection.execute(f"CREATE TABLE t AS SELECT {number} AS a")
            connection.execute(f"CREATE VIEW v AS SELECT a FROM t WHERE a = {number}")
        assert [connection.execute("SELECT a FROM v").fetchall() for connection in (first, second)] == [[(0,)], [(1,)]]
    with duck() as third, pytest.raises(duckdb.CatalogException, match="t does not exist"):
        third.execute("SELECT * FROM t")


def kept(connection: duckdb.DuckDBPyConnection) -> str:
    """Which DuckDB a connection is to: each has a folder of its own."""
    ((folder,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    return str(folder)


def test_a_duckdb_is_used_again_with_nothing_left_in_it() -> None:
    with duck() as connection:
        first = kept(connection)
        connection.execute("CREATE TABLE t AS SELECT 1 AS a; CREATE MACRO abs(x) AS 7; SET VARIABLE v = 3")
        connection.register("rows", pa.table({"a": [1]}))
        connection.execute("SELECT * FROM range(1000000)").fetchone()  # a result that is not read to its end
    with duck() as connection:
        assert kept(connection) == first
        assert connection.execute("SELECT abs(-2), getvariable('v')").fetchall() == [(2, None)]
        for table in ("t", "rows"):
            with pytest.raises(duckdb.CatalogException, match=f"{table} does not exist"):
                connection.execute(f"SELECT * FROM {table}")


def fail_in_a_transaction() -> str:
    with duck() as connection:
        found = kept(connection)
        connection.execute("BEGIN; CREATE TABLE t (a INTEGER)")
        with suppress(duckdb.ConversionException):
            connection.execute("SELECT CAST('x' AS INTEGER)").fetchall()
    return found


def break_it() -> str:
    found = ""
    with suppress(duckdb.InternalException), duck() as connection:
        found = kept(connection)
        raise duckdb.InternalException("an altered file")
    return found


@pytest.mark.parametrize("fail", [fail_in_a_transaction, break_it])
def test_after_a_failure_the_next_connection_works(fail: Callable[[], str]) -> None:
    failed = fail()
    with duck() as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
        assert connection.execute("SELECT * FROM t").fetchall() == [(1,)]
        if fail is break_it:
            assert kept(connection) != failed


def test_the_error_of_the_query_is_the_one_that_is_raised() -> None:
    def query() -> None:
        with duck() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT CAST('x' AS INTEGER)").fetchall()

    with pytest.raises(duckdb.ConversionException, match="Could not convert"):
        query()


@pytest.mark.parametrize("setting", ["threads = 1", "memory_limit = '50MB'", "preserve_insertion_order = false"])
def test_nobody_changes_the_settings_of_the_next(setting: str) -> None:
    with duck() as connection, pytest.raises(duckdb.InvalidInputException, match="locked"):
        connection.execute(f"SET {setting}")


def test_it_spills_wherever_the_current_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr("datasets.duck.MEMORY", "60MB")
    monkeypatch.setattr("datasets.duck._idle", {"open": [], "sealed": []})
    gone.rmdir()
    with duck() as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS a, random() AS b FROM range(8000000)")
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(8_000_000,)]
        folder = Path(kept(connection))
        assert list(folder.iterdir())
    for instance in datasets.duck._idle["open"]:
        instance.close()
    assert not folder.exists()


def test_threads_work_side_by_side() -> None:
    found: dict[int, int] = {}

    def count(number: int) -> None:
        for _ in range(20):
            with duck() as connection:
                connection.execute(f"CREATE TABLE t AS SELECT range AS a FROM range({number})")
                ((found[number],),) = connection.execute("SELECT count(*) FROM t").fetchall()

    threads = [threading.Thread(target=count, args=(number,)) for number in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {10: 10, 20: 20, 30: 30}


def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for value in (1, 2):
        pq.write_table(pa.table({"a": [value]}), path)
        os.utime(path, (1, 1))  # the same size and instant, other bytes
        with duck() as connection:
            assert connection.execute(f"SELECT a FROM '{path}'").fetchall() == [(value,)]


@pytest.mark.parametrize("queries", [True, False])
def test_a_forked_process_has_one_of_its_own_and_ends_well(queries: bool) -> None:
    with duck() as connection:
        own = kept(connection)
    child = os.fork()
    if child == 0:
        fine = True
        if queries:
            with duck() as connection:
                count = "SELECT count(DISTINCT a % 1000) FROM (SELECT range AS a FROM range(2000000))"
                fine = connection.execute(count).fetchall() == [(1000,)] and kept(connection) != own
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with duck() as connection:
        assert kept(connection) == own


def test_a_process_that_forks_and_its_child_end_without_a_crash() -> None:
    code = """
import os, sys
from datasets.duck import duck, sealed_duck
for connect in (duck, sealed_duck):
    with connect() as connection:
        connection.execute("SELECT count(*) FROM range(100000)").fetchall()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(SELECT count(*) FROM '{file}')", "disabled"),
        ("1) AS DOUBLE) FROM steps; CREATE MACRO abs(x) AS 7; SELECT CAST((1", "more than one expression"),
    ],
)
def test_sealed_sql_reads_no_file_and_changes_nothing(expression: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    rows = pa.table({"row": [0], "a": [-1.0]})
    with pytest.raises(duckdb.Error, match=said):
        evaluate_on(rows, [expression.replace("{file}", str(tmp_path / "secret.csv"))], "DOUBLE")
    assert evaluate_on(rows, ["abs(a)"], "DOUBLE")[0].tolist() == [1.0]
    with sealed_duck() as connection, pytest.raises(duckdb.Error, match="locked"):
        connection.execute("SET enable_external_access = true")
