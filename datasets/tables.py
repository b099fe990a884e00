"""The tables of the lake: their columns, how their rows are sorted, and how their files are read as one relation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePath

import pyarrow as pa

from datasets.contract import Contract
from datasets.duck import FEATURE_TYPES, duck, literal, quoted

TABLES = ("quarantine", "files", "outcomes", "removals", "exclusions", "batches", "steps")
"""In the order in which a batch commits them: `steps` last, because its commit is the one that counts."""

SORTED_BY = {
    "quarantine": "source, source_line",
    "files": "commit_number, path",
    "outcomes": "decision_id, timestamp",
    "removals": "commit_number, batch_id",
    "exclusions": "commit_number",
    "batches": "commit_number",
    "steps": "episode_id, step, timestamp",
}
"""How rows lie inside a file."""

COLUMNS_FILE = "columns-"
"""How the name of an empty file begins that gives a table its columns where it has no row."""

EMPTY_LOG_DATE = "1970-01-01"
"""The partition in which the empty file of `steps` lies."""


def table_columns(contract: Contract) -> dict[str, dict[str, str]]:
    """DuckDB types of every column of every table, in the order of TABLES."""
    observation = ", ".join(f"{quoted(name)} {FEATURE_TYPES[f.type]}" for name, f in contract.features.items())
    hashed = ", ".join(f"{quoted(name)} VARCHAR" for name in contract.privacy.hash)
    keys = {"keys": f"STRUCT({hashed})"} if hashed else {}
    number = {"action_value": "DOUBLE"} if contract.actions.bins is not None else {}
    return {
        "quarantine": {
            "raw": "VARCHAR",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "reason": "VARCHAR",
            "episode_id": "VARCHAR",
            "decision_id": "VARCHAR",
            "identity": "VARCHAR",
            "header": "VARCHAR[]",
            "file_digest": "VARCHAR",
            "kind": "VARCHAR",
            "batch_id": "VARCHAR",
            "quarantined_at": "TIMESTAMPTZ",
        },
        "files": {
            "path": "VARCHAR",
            "kind": "VARCHAR",
            "digest": "VARCHAR",
            "n_bytes": "BIGINT",
            "n_lines": "BIGINT",
            "digest_seen": "VARCHAR",
            "head": "VARCHAR",
            "status": "VARCHAR",
            "contract_digest": "VARCHAR",
            "batch_id": "VARCHAR",
            "commit_number": "BIGINT",
        },
        "outcomes": {
            "decision_id": "VARCHAR",
            "timestamp": "TIMESTAMPTZ",
            "reward": "DOUBLE",
            "terminated": "BOOLEAN",
            "truncated": "BOOLEAN",
            "final_observation": f"STRUCT({observation})",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "batch_id": "VARCHAR",
        },
        "removals": {
            "table": "VARCHAR",
            "batch_id": "VARCHAR",
            "n_rows": "BIGINT",
            "reason": "VARCHAR",
            "removed_at": "TIMESTAMPTZ",
            "commit_number": "BIGINT",
        },
        "exclusions": {
            "exclusion_id": "VARCHAR",
            "action": "VARCHAR",
            "source": "VARCHAR",
            "batch_id": "VARCHAR",
            "condition": "VARCHAR",
            "reviewer": "VARCHAR",
            "note": "VARCHAR",
            "settled_at": "TIMESTAMPTZ",
            "n_rows": "BIGINT",
            "commit_number": "BIGINT",
        },
        "batches": {
            "batch_id": "VARCHAR",
            "kind": "VARCHAR",
            "status": "VARCHAR",
            "settled_at": "TIMESTAMPTZ",
            "as_of": "TIMESTAMPTZ",
            "n_files": "BIGINT",
            "n_in": "BIGINT",
            "n_lake": "BIGINT",
            "n_quarantined": "BIGINT",
            "n_duplicates": "BIGINT",
            "n_held": "BIGINT",
            "n_pending": "BIGINT",
            "n_erased": "BIGINT",
            "dropped_columns": "VARCHAR[]",
            "note": "VARCHAR",
            "validation": "VARCHAR",
            "commit_number": "BIGINT",
        },
        "steps": {
            "episode_id": "VARCHAR",
            "step": "INTEGER",
            "timestamp": "TIMESTAMPTZ",
            "observation": f"STRUCT({observation})",
            "action": "VARCHAR",
            **number,
            "available_actions": "VARCHAR[]",
            "reward": "DOUBLE",
            "terminated": "BOOLEAN",
            "truncated": "BOOLEAN",
            "final_observation": f"STRUCT({observation})",
            "behavior_prob": "DOUBLE",
            "behavior_probs": "DOUBLE[]",
            "cluster": "VARCHAR",
            **keys,
            "decision_id": "VARCHAR",
            "policy_version": "VARCHAR",
            "decided_by": "VARCHAR",
            "source": "VARCHAR",
            "source_line": "BIGINT",
            "batch_id": "VARCHAR",
            "log_date": "DATE",
        },
    }


def partition_columns(table: str) -> list[str]:
    """The columns whose values are in the names of a table's folders instead of its files."""
    return ["log_date"] if table == "steps" else []


def arrow_schema(contract: Contract, table: str) -> pa.Schema:
    """The Arrow schema of a table, partition columns included."""
    return _schema_of(tuple(table_columns(contract)[table].items()))


def file_schema(contract: Contract, table: str) -> pa.Schema:
    """The Arrow schema of a table's Parquet files."""
    partition = partition_columns(table)
    return pa.schema([field for field in arrow_schema(contract, table) if field.name not in partition])


@lru_cache
def _schema_of(columns: tuple[tuple[str, str], ...]) -> pa.Schema:
    selected = ", ".join(f"NULL::{type_} AS {quoted(name)}" for name, type_ in columns)
    with duck() as connection:
        schema: pa.Schema = connection.sql(f"SELECT {selected} WHERE false").to_arrow_table().schema
    return schema


def scan_files(files: Iterable[str], *, by_date: bool, named: bool = False) -> str:
    """SQL that reads Parquet files as one relation.

    Files of one table have the same columns unless the contract has grown since they were written, which leaves more
    than one empty file of columns. Only then are columns brought together by name: that reads the footer of every
    file, also of those that a query on a few nights never needs.

    Args:
        by_date: whether their folders name the log_date.
        named: whether a column `filename` tells each row's file.
    """
    listed = list(files)
    n_forms = len({PurePath(file).name for file in listed if PurePath(file).name.startswith(COLUMNS_FILE)})
    options = ["union_by_name = true"] if n_forms != 1 else []
    options += (
        ["hive_partitioning = true", "hive_types = {'log_date': DATE}"] if by_date else ["hive_partitioning = false"]
    )
    options += ["filename = true"] if named else []
    return f"read_parquet([{', '.join(literal(file) for file in listed)}], {', '.join(options)})"
