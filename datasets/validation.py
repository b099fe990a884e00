"""The suite that a contract implies: what rows must look like before they enter the lake, and what failed.

Nothing here restates the contract: every expectation is derived from it. Great Expectations runs them on DuckDB over
the Parquet files themselves, so no row is copied into memory. What is compared with recent nights is summed up first,
in one connection, and judged over a table of one row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from datasets.across import Judged, across_expectations, lake_expectations, outcome_expectations
from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.expectations import (
    BatchSummary,
    Expectation,
    batch_expectations,
    outcome_row_expectations,
    step_expectations,
)
from datasets.nights import BatchFacts, outcomes_facts, steps_facts
from datasets.propensities import inverse_averages
from datasets.suite_process import SuiteError, run_suites
from datasets.validate_config import Severity, ValidateConfig

__all__ = [
    "BatchSummary",
    "ExpectationRecord",
    "SuiteError",
    "ValidateConfig",
    "ValidationResult",
    "validate_outcomes",
    "validate_steps",
]

_TABLE_ROWS = "ExpectTableRowCountToBeBetween"


@dataclass(frozen=True)
class ExpectationRecord:
    """One expectation and what was found.

    Attributes:
        name: the expectation's class in Great Expectations.
        column: as the contract names it; "" where it concerns whole rows or the batch.
        says: what is expected, in words.
        observed_value: the number that was judged, or the share of rows that are unexpected.
        unexpected_count: rows that are unexpected.
        examples: up to five unexpected values.
        sentence: the failure in words, with what to do; "" where it succeeded.
        n_rows: rows that were looked at; 0 where the expectation judges one number.
        severity: "hold": a failure holds the batch; "warn": it does not.
        arguments: of the class, beside the column.
    """

    name: str
    column: str
    says: str
    success: bool
    observed_value: float | None
    unexpected_count: int
    examples: tuple[Any, ...]
    sentence: str
    n_rows: int = 0
    severity: Severity = "hold"
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationResult:
    """What a suite found.

    Attributes:
        success: whether everything holds whose failure holds a batch.
        n_rows: rows that were looked at.
        seconds: how long it took, the start of the suite's process included.
        not_judged: what could not be compared with recent nights, each with the reason.
        facts: what later batches are compared with, as JSON values; None where nothing was compared.
    """

    success: bool
    records: tuple[ExpectationRecord, ...]
    n_rows: int
    seconds: float
    not_judged: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None

    @property
    def failures(self) -> tuple[ExpectationRecord, ...]:
        """The records of what failed and holds the batch."""
        return tuple(record for record in self.records if not record.success and record.severity == "hold")

    @property
    def warnings(self) -> tuple[ExpectationRecord, ...]:
        """The records of what failed and only warns."""
        return tuple(record for record in self.records if not record.success and record.severity != "hold")

    def summary(self) -> str:
        """The verdict in words: one sentence if all is well, else one per failure or warning."""
        if self.success and not self.warnings:
            return f"All {len(self.records)} expectations hold on {self.n_rows} rows."
        return " ".join(record.sentence for record in self.failures or self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["records"] = [record | {"examples": list(record["examples"])} for record in values["records"]]
        return values | {"not_judged": list(self.not_judged)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ValidationResult:
        """What `to_json` wrote."""
        records = tuple(ExpectationRecord(**(r | {"examples": tuple(r["examples"])})) for r in values["records"])
        return cls(**(dict(values) | {"records": records, "not_judged": tuple(values["not_judged"])}))


def validate_steps(
    paths: Iterable[str | Path],
    contract: Contract,
    *,
    summary: BatchSummary | None,
    config: ValidateConfig,
    recent: Sequence[BatchFacts] | None = None,
    as_of: datetime | None = None,
) -> ValidationResult:
    """Runs the contract's suite on Parquet files of canonical steps.

    Args:
        paths: the files; may be none.
        summary: the batch's account, which is then validated too; None for a whole lake.
        recent: facts of earlier batches, which this one is compared with; None compares with nothing. The nights of
            a whole lake are compared with each other.
        as_of: when the batch is taken in; needed for the comparison.

    Raises:
        SuiteError: the suite could not be run, for example because a file cannot be read.
    """
    start = time.perf_counter()
    files = _existing(paths)
    stored = _columns_of(files)
    facts, judged = None, Judged((), ())
    if recent is not None and as_of is not None and files:
        with _reading() as connection:
            facts = steps_facts(connection, _source(files), contract, stored, undated=as_of, **_account(summary))
            averages = None
            if contract.behavior.propensity == "logged" and {"behavior_prob", "available_actions", "cluster"} <= stored:
                averages = inverse_averages(connection, _source(files), contract)
        judged = (
            lake_expectations(facts, averages, contract, config, as_of=as_of)
            if summary is None
            else across_expectations(facts, recent, averages, contract, config, as_of=as_of)
        )
    rows = step_expectations(contract, config, stored, fewest_rows=_fewest_rows(summary))
    return _run("steps", rows, files, summary, config, judged, facts, start)


def validate_outcomes(
    paths: Iterable[str | Path],
    *,
    summary: BatchSummary | None,
    config: ValidateConfig,
    recent: Sequence[BatchFacts] = (),
    as_of: datetime,
) -> ValidationResult:
    """Runs the suite of outcomes on Parquet files with the columns decision_id, timestamp and reward.

    Args:
        paths: the files; may be none.
        summary: the batch's account, which is then validated too.
        recent: facts of earlier batches of outcomes, which this one is compared with.
        as_of: when the batch is taken in.

    Raises:
        SuiteError: the suite could not be run, for example because a file cannot be read.
    """
    start = time.perf_counter()
    files = _existing(paths)
    facts, judged = None, Judged((), ())
    if files:
        with _reading() as connection:
            facts = outcomes_facts(connection, _source(files), undated=as_of, **_account(summary))
        judged = outcome_expectations(facts, recent, config, as_of=as_of)
    rows = outcome_row_expectations(_columns_of(files), fewest_rows=_fewest_rows(summary))
    return _run("outcomes", rows, files, summary, config, judged, facts, start)


def _run(
    table: str,
    rows: list[Expectation],
    files: Sequence[str],
    summary: BatchSummary | None,
    config: ValidateConfig,
    judged: Judged,
    facts: BatchFacts | None,
    start: float,
) -> ValidationResult:
    of_batch = [*(batch_expectations(summary, config) if summary is not None else ()), *judged.expectations]
    suites, setup = {table: rows}, [_view(table, rows, _source(files))]
    if of_batch:
        suites["batch"] = of_batch
        setup.append(_view("batch", of_batch, "(SELECT 1)"))
    found = run_suites(setup, {name: _requests(expectations) for name, expectations in suites.items()})
    n_rows = int(found[table][0]["result"].get("observed_value") or 0)
    records = tuple(
        _record(expectation, result, n_rows)
        for name, expectations in suites.items()
        for expectation, result in zip(expectations, found[name], strict=True)
    )
    return ValidationResult(
        success=all(r.success or r.severity != "hold" for r in records),
        records=records,
        n_rows=n_rows,
        seconds=time.perf_counter() - start,
        not_judged=judged.not_judged,
        facts=facts.to_json(n_nights=config.recent.n_nights) if facts else None,
    )


def _existing(paths: Iterable[str | Path]) -> list[str]:
    files = [str(path) for path in paths]
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise SuiteError(
            f"{missing[0]} does not exist ({len(missing)} of {len(files)} files do not). Nothing was validated."
        )
    return files


@contextmanager
def _reading() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose failures to read the files are a SuiteError."""
    with duck() as connection:
        try:
            yield connection
        except duckdb.Error as error:
            raise SuiteError(f"The rows cannot be read: {error}") from error


def _account(summary: BatchSummary | None) -> dict[str, int]:
    if summary is None:
        return {"n_new": 0, "n_quarantined": 0}
    return {"n_new": summary.n_lake + summary.n_quarantined, "n_quarantined": summary.n_quarantined}


def _fewest_rows(summary: BatchSummary | None) -> int:
    """A batch of nothing but repeats and unfinished lines is empty for a good reason."""
    return 0 if summary is not None and summary.n_in == summary.n_duplicates + summary.n_pending else 1


def _source(files: Sequence[str]) -> str:
    if not files:
        return "(SELECT 1 WHERE false)"
    listed = ", ".join(literal(file) for file in files)
    return f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"


def _columns_of(files: Sequence[str]) -> frozenset[str]:
    """Columns of the files, and the observation's fields as `observation.x`: older files lack newer features."""
    if not files:
        return frozenset()
    with _reading() as connection:
        columns = [c[0] for c in connection.execute(f"SELECT * FROM {_source(files)} LIMIT 0").description or []]
        fields = list[str]()
        if "observation" in columns:
            found = connection.execute(f"SELECT observation.* FROM {_source(files)} LIMIT 0").description or []
            fields = [f"observation.{field[0]}" for field in found]
    return frozenset([*columns, *fields])


def _view(table: str, expectations: Sequence[Expectation], source: str) -> str:
    """The flat view: one column per value that is looked at, under names that need no quoting anywhere."""
    columns = ", ".join(f"{sql} AS {name}" for sql, name in _columns(expectations).items())
    return f"CREATE VIEW {table} AS SELECT {columns} FROM {source}"


def _columns(expectations: Sequence[Expectation]) -> dict[str, str]:
    """Names by SQL. Two expectations of one value share a column, and so what is counted of it."""
    return {sql: f"column_{place}" for place, sql in enumerate(dict.fromkeys(e.sql for e in expectations))}


def _requests(expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    columns = _columns(expectations)
    return [_request(e, columns[e.sql]) for e in expectations]


def _request(expectation: Expectation, column: str) -> dict[str, Any]:
    counts = expectation.type == _TABLE_ROWS
    return {
        "type": expectation.type,
        "kwargs": ({} if counts else {"column": column}) | expectation.arguments,
        "severity": "critical" if expectation.severity == "hold" else "warning",
        # Where some rows may be unexpected, how many are is worth knowing although it holds.
        "observe": counts or expectation.arguments.get("mostly", 1.0) < 1.0,
    }


def _record(expectation: Expectation, found: Mapping[str, Any], n_rows: int) -> ExpectationRecord:
    if found["error"] is not None:  # neither kept nor broken: nothing is known, which must not pass for either
        raise SuiteError(f"'{expectation.column} {expectation.says}' could not be checked: {found['error']}")
    result = found["result"]
    n_unexpected = int(result.get("unexpected_count") or 0)
    observed = expectation.value
    if observed is None:
        observed = result.get("observed_value", n_unexpected / n_rows if n_rows else None)
    record = ExpectationRecord(
        name=expectation.type,
        column=expectation.column,
        says=expectation.says,
        success=bool(found["success"]),
        observed_value=observed,
        unexpected_count=n_unexpected,
        examples=tuple(_plain(v) for v in result.get("partial_unexpected_list") or () if v is not None),
        sentence="",
        n_rows=0 if expectation.value is not None or expectation.type == _TABLE_ROWS else n_rows,
        severity=expectation.severity,
        arguments=expectation.arguments,
    )
    return record if record.success else replace(record, sentence=_sentence(expectation, record))


def _sentence(expectation: Expectation, record: ExpectationRecord) -> str:
    demand = f"{record.column} {record.says}".strip()
    if record.n_rows:
        share = record.unexpected_count / record.n_rows
        such_as = f", for example {', '.join(str(e) for e in record.examples)}" if record.examples else ""
        found = f"not so in {record.unexpected_count} of {record.n_rows} rows ({share:.2%}){such_as}"
    else:
        value = record.observed_value
        found = f"found {value:g}" if isinstance(value, float) else f"found {value}"
    return f"Expected that {demand}: {found}. {expectation.remedy}"


def _plain(value: Any) -> Any:
    """A JSON value; a number that is not finite, which JSON lacks, as its text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
