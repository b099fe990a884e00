"""Great Expectations on DuckDB: the classes it lacks, and the loop that runs suites in a process of their own.

Great Expectations closes a connection before it reads the result, which DuckDB answers with an empty one; and its table
inspection wants one database that outlives every query. Here one connection stays open for as long as a suite runs.

Nothing but `datasets.suite_process` starts this module, in its own interpreter.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import json
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Generator
from typing import Any, Literal

import great_expectations as gx
import sqlalchemy
from great_expectations import expectations as gxe
from great_expectations.core.id_dict import IDDict
from great_expectations.datasource.fluent.sql_datasource import SQLDatasource
from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine
from great_expectations.expectations.expectation import Expectation

_UNASKED_S = 1800.0
"""How long a process that was started ahead waits for its first request: a large log takes its time to be read."""
_IDLE_S = 60.0
"""Once it has answered, an idle process ends after this long and gives its memory back."""
_N_EXAMPLES = 5


class _Inspector:
    """Answers the two questions that a suite asks about a table, by keyword.

    SQLAlchemy's own takes them through PostgreSQL's catalog, which takes as long as to read the rows.
    """

    def __init__(self, engine: DuckDBExecutionEngine) -> None:
        self.dialect = engine.engine.dialect
        self._engine = engine

    def get_pk_constraint(self, **_: Any) -> dict[str, list[str]]:
        """Views have none."""
        return {"constrained_columns": []}

    def get_columns(self, *, table_name: str, **_: Any) -> list[dict[str, str]]:
        """Names and types."""
        with self._engine.get_connection() as connection:
            rows = connection.exec_driver_sql(f"DESCRIBE {table_name}").fetchall()
        return [{"name": name, "type": type_} for name, type_, *_ in rows]


class DuckDBExecutionEngine(SqlAlchemyExecutionEngine):
    """An execution engine that keeps one connection open."""

    def get_inspector(self) -> Any:
        """What a suite asks of SQLAlchemy's inspector."""
        return _Inspector(self)

    @contextlib.contextmanager
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
        suites: per table its expectations, each {"type": class name, "kwargs": its arguments, "severity": critical or
            warning, "observe": whether its numbers are wanted even if it holds}.

    Returns:
        Per table one record per expectation, in their order: success, result (as Great Expectations says it; empty
        where an expectation holds and its numbers are not wanted), error.
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
    """Asks for verdicts first, which is one query, and for numbers and examples only where they say something.

    With every other result format Great Expectations looks for unexpected values once per expectation, and most of its
    own work is the bookkeeping of those metrics.
    """
    batch = asset.get_batch(asset.build_batch_request())
    quick = {place: e for place, e in enumerate(expectations) if not e["observe"]}
    found = _validated(batch, quick, {"result_format": "BOOLEAN_ONLY"})
    wanted = {p: e for p, e in enumerate(expectations) if p not in found or not found[p]["success"]}
    found |= _validated(batch, wanted, {"result_format": "SUMMARY", "partial_unexpected_count": _N_EXAMPLES})
    return [found[place] for place in range(len(expectations))]


def _validated(
    batch: Any, expectations: dict[int, dict[str, Any]], result_format: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Records by place. The place travels as meta: the results come back in another order."""
    if not expectations:
        return {}
    suite = gx.ExpectationSuite(
        name="suite",
        expectations=[
            getattr(gxe, e["type"])(**e["kwargs"], severity=e["severity"], meta={"place": place})
            for place, e in expectations.items()
        ],
    )
    with _bookkeeping_remembered():
        results = batch.validate(suite, result_format=result_format).results
    return {result.expectation_config.meta["place"]: _record(result) for result in results}


@contextlib.contextmanager
def _bookkeeping_remembered() -> Generator[None, None, None]:
    """Has what is derived from an expectation, and the keys of metrics, derived once: half of a suite's own work.

    Each expectation is otherwise asked some forty times for its configuration, and each key is a JSON text. Nothing
    changes an expectation while its suite runs, and what is changed in a configuration is a copy.
    """
    expectation_class: Any = Expectation
    key_class: Any = IDDict
    configuration, to_id = vars(Expectation)["configuration"], vars(IDDict)["to_id"]
    # The expectation is kept beside its configuration: its id must not go to another one.
    configurations: dict[int, tuple[Expectation, Any]] = {}
    keys: dict[str, Any] = {}

    def remembered_configuration(expectation: Expectation) -> Any:
        if id(expectation) not in configurations:
            configurations[id(expectation)] = (expectation, configuration.fget(expectation))
        return configurations[id(expectation)][1]

    def remembered_key(values: IDDict, *asked: Any, **named: Any) -> Any:
        content = repr((type(values), values, asked, named))
        if content not in keys:
            keys[content] = to_id(values, *asked, **named)
        return keys[content]

    expectation_class.configuration, key_class.to_id = property(remembered_configuration), remembered_key
    try:
        yield
    finally:
        expectation_class.configuration, key_class.to_id = configuration, to_id


def _record(result: Any) -> dict[str, Any]:
    info = result.exception_info
    errors = [info] if "raised_exception" in info else list(info.values())
    messages = [e["exception_message"] for e in errors if e["raised_exception"]]
    details = result.to_json_dict()["result"] if result.result else {}
    return {"success": bool(result.success), "result": details, "error": "; ".join(messages) or None}


def serve() -> None:
    """Answers requests, one JSON line each, from stdin on stdout until stdin closes or nothing came for a while.

    Ends without the interpreter's own teardown: in it, DuckDB's bindings report every object that the libraries
    around them still hold as leaked.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    _warm_up()
    patience = _UNASKED_S
    while select.select([sys.stdin.fileno()], [], [], patience)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            break
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"answer": _answer(**request)}
        except Exception:  # whatever it is, the process that asked reports it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()
        patience = _IDLE_S
    os._exit(0)


def _answer(ask: str, **arguments: Any) -> Any:
    if ask == "page":
        from datasets.docs_page import render_page

        return render_page(**arguments)
    return run_suites(**arguments)


def _warm_up() -> None:
    """One tiny suite, so that the first real one finds every module loaded; then what is loaded is no longer searched
    for garbage, which would cost each suite a good part of its time."""
    expectation = {"type": "ExpectColumnValuesToNotBeNull", "kwargs": {"column": "a"}, "severity": "critical"}
    with contextlib.suppress(Exception):  # a real request will say what is wrong
        run_suites(["CREATE VIEW warm AS SELECT 1 AS a"], {"warm": [expectation | {"observe": True}]})
    gc.collect()
    gc.freeze()
