"""The suite that a contract implies: what canonical steps must look like before they enter the lake, and what failed.

Nothing here restates the contract: every expectation is derived from it. Great Expectations runs them on DuckDB over
the Parquet files themselves, so no row is copied into memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.expectations import BatchSummary, Expectation, ValidateConfig, batch_expectations, step_expectations
from datasets.suite_process import SuiteError, run_suites

__all__ = ["BatchSummary", "ExpectationRecord", "SuiteError", "ValidateConfig", "ValidationResult", "validate_steps"]


@dataclass(frozen=True)
class ExpectationRecord:
    """One expectation and what was found.

    Attributes:
        name: the expectation's class in Great Expectations.
        column: as the contract names it; "" where it concerns whole rows or the batch.
        says: what is expected, in words.
        observed_value: the count, or the share of rows that are unexpected.
        unexpected_count: rows that are unexpected.
        examples: up to five unexpected values.
        sentence: the failure in words, with what to do; "" where it succeeded.
    """

    name: str
    column: str
    says: str
    success: bool
    observed_value: float | None
    unexpected_count: int
    examples: tuple[Any, ...]
    sentence: str


@dataclass(frozen=True)
class ValidationResult:
    """What a suite found.

    Attributes:
        n_rows: steps that were looked at.
        seconds: how long it took, the start of the suite's process included.
    """

    success: bool
    records: tuple[ExpectationRecord, ...]
    n_rows: int
    seconds: float

    @property
    def failures(self) -> tuple[ExpectationRecord, ...]:
        """The records of what failed."""
        return tuple(record for record in self.records if not record.success)

    def summary(self) -> str:
        """The verdict in words: one sentence if all is well, else one per failure."""
        if self.success:
            return f"All {len(self.records)} expectations hold on {self.n_rows} steps."
        return " ".join(record.sentence for record in self.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["records"] = [record | {"examples": list(record["examples"])} for record in values["records"]]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ValidationResult:
        """What `to_json` wrote."""
        records = tuple(ExpectationRecord(**(r | {"examples": tuple(r["examples"])})) for r in values["records"])
        return cls(**(dict(values) | {"records": records}))


def validate_steps(
    paths: Iterable[str | Path], contract: Contract, *, summary: BatchSummary | None, config: ValidateConfig
) -> ValidationResult:
    """Runs the contract's suite on Parquet files of canonical steps.

    Args:
        paths: the files; may be none.
        summary: the batch's account, which is then validated too; None for a whole lake.

    Raises:
        SuiteError: the suite could not be run, for example because a file cannot be read.
    """
    start = time.perf_counter()
    files = [str(path) for path in paths]
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise SuiteError(
            f"{missing[0]} does not exist ({len(missing)} of {len(files)} files do not). Nothing was validated."
        )
    suites = {"steps": step_expectations(contract, config, _columns_of(files), fewest_rows=_fewest_rows(summary))}
    if summary is not None:
        suites["batch"] = batch_expectations(summary, config)
    setup = [_view("steps", suites["steps"], _source(files))]
    if summary is not None:
        setup.append(_view("batch", suites["batch"], "(SELECT 1)"))
    found = run_suites(setup, {table: [_request(i, e) for i, e in enumerate(es)] for table, es in suites.items()})
    n_rows = int(found["steps"][0]["result"].get("observed_value") or 0)
    records = tuple(
        _record(table, expectation, result)
        for table, expectations in suites.items()
        for expectation, result in zip(expectations, found[table], strict=True)
    )
    return ValidationResult(all(r.success for r in records), records, n_rows, time.perf_counter() - start)


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
    with duck() as connection:
        try:
            columns = connection.execute(f"SELECT * FROM {_source(files)} LIMIT 0").description or []
            fields = connection.execute(f"SELECT observation.* FROM {_source(files)} LIMIT 0").description or []
        except duckdb.Error as error:
            raise SuiteError(f"The steps cannot be read: {error}") from error
    return frozenset([*(c[0] for c in columns), *(f"observation.{f[0]}" for f in fields)])


def _view(table: str, expectations: Sequence[Expectation], source: str) -> str:
    """The flat view: one column per expectation, under names that need no quoting anywhere."""
    columns = ", ".join(f"{e.sql} AS {_column(i)}" for i, e in enumerate(expectations))
    return f"CREATE VIEW {table} AS SELECT {columns} FROM {source}"


def _column(place: int) -> str:
    return f"column_{place}"


def _request(place: int, expectation: Expectation) -> dict[str, Any]:
    column = {} if expectation.type == "ExpectTableRowCountToBeBetween" else {"column": _column(place)}
    return {"type": expectation.type, "kwargs": column | expectation.arguments}


def _record(table: str, expectation: Expectation, found: Mapping[str, Any]) -> ExpectationRecord:
    if found["error"] is not None:  # neither kept nor broken: nothing is known, which must not pass for either
        raise SuiteError(f"'{expectation.column} {expectation.says}' could not be checked: {found['error']}")
    result = found["result"]
    n_rows, n_unexpected = int(result.get("element_count") or 0), int(result.get("unexpected_count") or 0)
    examples = tuple(_plain(value) for value in result.get("partial_unexpected_list") or () if value is not None)
    observed = result.get("observed_value", n_unexpected / n_rows if n_rows else None)
    record = ExpectationRecord(
        name=expectation.type,
        column=expectation.column,
        says=expectation.says,
        success=bool(found["success"]),
        observed_value=observed,
        unexpected_count=n_unexpected,
        examples=examples,
        sentence="",
    )
    return (
        record
        if record.success
        else replace(record, sentence=_sentence(expectation, record, 0 if table == "batch" else n_rows))
    )


def _sentence(expectation: Expectation, record: ExpectationRecord, n_rows: int) -> str:
    """In words; `n_rows` is 0 where the expectation is about one number instead of the steps' values."""
    demand = f"{record.column} {record.says}".strip()
    if n_rows:
        such_as = f", for example {', '.join(str(e) for e in record.examples)}" if record.examples else ""
        found = (
            f"not so in {record.unexpected_count} of {n_rows} steps ({record.unexpected_count / n_rows:.2%}){such_as}"
        )
    else:
        value = record.examples[0] if record.examples else record.observed_value
        found = f"found {value:g}" if isinstance(value, float) else f"found {value}"
    return f"Expected that {demand}: {found}. {expectation.remedy}"


def _plain(value: Any) -> Any:
    """A JSON value; a number that is not finite, which JSON lacks, as its text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
