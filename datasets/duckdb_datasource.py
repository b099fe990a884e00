"""Great Expectations on DuckDB: the classes it lacks, and the loop that runs suites in a process of their own.

Great Expectations closes a connection before it reads the result, which DuckDB answers with an empty one; and its table
inspection wants one database that outlives every query. Here one connection stays open for as long as a suite runs.

Nothing but `datasets.suite_process` starts this module, in its own interpreter.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import great_expectations as gx
import sqlalchemy
from great_expectations import expectations as gxe
from great_expectations.datasource.fluent.sql_datasource import SQLDatasource
from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine

_IDLE_S = 60.0
"""An idle process ends after this long and gives its memory back."""
_N_EXAMPLES = 5


class DuckDBExecutionEngine(SqlAlchemyExecutionEngine):
    """An execution engine that keeps one connection open."""

    @contextmanager
    def get_connection(self) -> Generator[sqlalchemy.Connection, None, None]:
        """The one connection."""
        if self._connection is None:
            self._connection = self.engine.connect()
        yield self._connection


class DuckDBDatasource(SQLDatasource):
    """A data source whose one in-memory database is shared by its engine and its inspector.

    The name of the class adds `add_duckdb` to every context's data sources.
    """

    type: Literal["duckdb"] = "duckdb"  # type: ignore[assignment]  # narrows the literal "sql" of its base

    @property
    def execution_engine_type(self) -> builtins.type[SqlAlchemyExecutionEngine]:
        """The engine that works on DuckDB."""
        return DuckDBExecutionEngine

    def _create_engine(self) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine("duckdb:///:memory:", poolclass=sqlalchemy.StaticPool)

    def get_execution_engine(self) -> SqlAlchemyExecutionEngine:
        """One engine on the inspector's own database; the base builds a second one on another."""
        if self._execution_engine is None:
            # Its default copies the whole view into memory, twice.
            self._execution_engine = DuckDBExecutionEngine(engine=self.get_engine(), create_temp_table=False)
        return self._execution_engine


def run_suites(setup: list[str], suites: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Runs one suite per table.

    Args:
        setup: SQL statements that make the tables.
        suites: per table its expectations, each {"type": class name, "kwargs": its arguments}.

    Returns:
        Per table one record per expectation, in their order: success, result (as Great Expectations says it), error.
    """
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]  # it takes the plain dict
    source = context.data_sources.add_duckdb(name="steps", connection_string="duckdb:///:memory:")
    try:
        with source.get_engine().begin() as connection:
            for statement in setup:
                connection.exec_driver_sql(statement)
        # All assets before the first suite: adding one opens a transaction, a suite leaves its own open.
        assets = {table: source.add_table_asset(table, table) for table in suites}
        return {table: _run_suite(assets[table], expectations) for table, expectations in suites.items()}
    finally:
        source.get_execution_engine().close()
        source.get_engine().dispose()


def _run_suite(asset: Any, expectations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The place in the list travels as meta: the results come back in another order.
    suite = gx.ExpectationSuite(
        name=asset.name,
        expectations=[
            getattr(gxe, e["type"])(**e["kwargs"], meta={"place": place}) for place, e in enumerate(expectations)
        ],
    )
    batch = asset.add_batch_definition_whole_table("whole").get_batch()
    validation = batch.validate(
        suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": _N_EXAMPLES}
    )
    results = sorted(validation.results, key=lambda result: result.expectation_config.meta["place"])
    return [_record(result.to_json_dict()) for result in results]


def _record(result: dict[str, Any]) -> dict[str, Any]:
    info = result["exception_info"]
    errors = [info] if "raised_exception" in info else list(info.values())
    messages = [e["exception_message"] for e in errors if e["raised_exception"]]
    return {"success": result["success"], "result": result["result"], "error": "; ".join(messages) or None}


def serve() -> None:
    """Answers requests, one JSON line each, from stdin on stdout until stdin closes or nothing came for a while.

    Ends without the interpreter's own teardown: in it, DuckDB's bindings report every object that the libraries
    around them still hold as leaked.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    while select.select([sys.stdin.fileno()], [], [], _IDLE_S)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            break
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"results": run_suites(request["setup"], request["suites"])}
        except Exception:  # whatever it is, the process that asked reports it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()
    os._exit(0)
