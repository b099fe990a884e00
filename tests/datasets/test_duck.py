"""Connections that share one DuckDB do not see each other's tables, and sealed ones see no file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from datasets.duck import duck, sealed_duck
from datasets.observation_sql import evaluate_on


def test_what_one_connection_makes_no_other_sees() -> None:
    with duck() as first, duck() as second:
        for number, connection in enumerate((first, second)):
            connection.execute(f"CREATE TABLE t AS SELECT {number} AS a")
            connection.execute(f"CREATE VIEW v AS SELECT a FROM t WHERE a = {number}")
        assert [connection.execute("SELECT a FROM v").fetchall() for connection in (first, second)] == [[(0,)], [(1,)]]
    with duck() as third, pytest.raises(duckdb.CatalogException, match="t does not exist"):
        third.execute("SELECT * FROM t")


def fail_in_a_transaction() -> None:
    with duck() as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS a FROM range(1000)")
        connection.execute("BEGIN")
        connection.execute("SELECT CAST('x' AS INTEGER)").fetchall()


def leave_a_result_half_read() -> None:
    with duck() as connection:
        connection.execute("SELECT * FROM range(1000000)").fetchone()
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fail", "error"),
    [(fail_in_a_transaction, duckdb.ConversionException), (leave_a_result_half_read, ZeroDivisionError)],
)
def test_nothing_stays_behind_whatever_fails(fail: Callable[[], None], error: type[Exception]) -> None:
    def databases() -> int:
        with duck() as connection:
            ((n,),) = connection.execute("SELECT count(*) FROM duckdb_databases()").fetchall()
        return int(n)

    before = databases()
    with pytest.raises(error):
        fail()
    assert databases() == before


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
        with duck() as connection:
            connection.execute(f"COPY (SELECT {value} AS a) TO '{path}' (FORMAT parquet)")
        os.utime(path, (1, 1))  # the same size and instant, other bytes
        with duck() as connection:
            assert connection.execute(f"SELECT a FROM '{path}'").fetchall() == [(value,)]


def test_a_forked_process_has_one_of_its_own() -> None:
    with duck() as connection:
        connection.execute("SELECT 1")
    child = os.fork()
    if child == 0:
        with duck() as connection:
            fine = connection.execute("SELECT count(*) FROM range(100000)").fetchall() == [(100_000,)]
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
