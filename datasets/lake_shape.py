"""The form of a lake's tables: made under a contract, and grown with it. All of it can be repeated."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from datasets.compatibility import lake_incompatibilities
from datasets.contract import Contract
from datasets.durable import flush_to_disk
from datasets.journal import commit_number, commit_table, delta_table, flush_log
from datasets.tables import COLUMNS_FILE, EMPTY_LOG_DATE, TABLES, arrow_schema, file_schema, partition_columns

CONTRACTED = ("outcomes", "steps")
"""Tables with columns that the contract names."""

_CHECKPOINT_EVERY = 20
"""Commits after which Delta writes a table's whole state: opening a table reads what came after the last one."""


def shape_tables(root: Path, before: Contract | None, contract: Contract) -> None:
    """Gives the tables the form of a contract.

    Args:
        before: the contract that they have the form of; None where there is no table yet. If a table cannot grow from
            it, no row is stored: the caller has made sure of that.
    """
    if before is None:
        _create_tables(root, contract)
    elif lake_incompatibilities(before, contract):
        _replace_contracted(root, contract)
    else:
        for table in CONTRACTED:
            _add_columns(root, contract, table)


def files_of(delta: Any) -> list[str]:
    """Absolute paths of the Parquet files of an opened table, the empty one that carries its columns last."""
    files = [unquote(uri) for uri in delta.file_uris()]  # written as in an address
    # From the first file DuckDB estimates how many rows there are, and plans joins by that.
    return sorted(files, key=lambda file: (is_form(file), file))


def is_form(file: str) -> bool:
    """Whether it is an empty file that gives a table its columns."""
    return Path(file).name.startswith(COLUMNS_FILE)


def _replace_contracted(root: Path, contract: Contract) -> None:
    """Makes the tables that the contract shapes, which are empty, anew under another one, with the commits counted so
    far."""
    number = commit_number(root, [table for table in TABLES if table not in CONTRACTED])
    for table in CONTRACTED:
        shutil.rmtree(root / table, ignore_errors=True)
        _create_table(root, contract, table, number)


def _create_tables(root: Path, contract: Contract) -> None:
    for table in TABLES:
        folder = root / table
        if (folder / "_delta_log").exists() and delta_table(root, table).file_uris():
            continue  # an earlier attempt came this far
        shutil.rmtree(folder, ignore_errors=True)
        _create_table(root, contract, table)


def _create_table(root: Path, contract: Contract, table: str, number: int | None = None) -> None:
    from deltalake import DeltaTable, Schema

    DeltaTable.create(
        str(root / table),
        schema=Schema.from_arrow(arrow_schema(contract, table)),
        partition_by=partition_columns(table) or None,
        configuration={"delta.checkpointInterval": str(_CHECKPOINT_EVERY)},
    )
    flush_log(root, table)
    _add_columns_file(root, contract, table, number)


def _add_columns(root: Path, contract: Contract, table: str) -> None:
    """Lets a table grow by what its contract has in addition."""
    from deltalake import Schema

    if any(Path(file).name == _columns_file(contract, table) for file in files_of(delta_table(root, table))):
        return  # ranges, actions and the like are no columns
    delta = delta_table(root, table)
    stored = {field.name: field.to_json() for field in delta.schema().fields}
    wanted = Schema.from_arrow(arrow_schema(contract, table)).fields
    grown = [field for field in wanted if stored.get(field.name) != field.to_json()]
    if grown:  # a process that died here may have done it already
        delta.alter.add_columns(grown)
        flush_log(root, table)
    _add_columns_file(root, contract, table, None)


def _columns_file(contract: Contract, table: str) -> str:
    """The name of the empty file with a table's columns: the same for the same columns."""
    form = hashlib.sha256(str(file_schema(contract, table)).encode()).hexdigest()
    return f"{COLUMNS_FILE}{form[:12]}.parquet"


def _add_columns_file(root: Path, contract: Contract, table: str, number: int | None) -> None:
    """An empty Parquet file with the table's columns, so that a table without rows reads like any other."""
    partition = dict.fromkeys(partition_columns(table), EMPTY_LOG_DATE)
    schema = file_schema(contract, table)
    folder = "".join(f"{column}={value}/" for column, value in partition.items())
    name = folder + _columns_file(contract, table)
    path = root / table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.empty_table(), path, compression="zstd")
    for written in (path, path.parent, root / table, root):
        flush_to_disk(written)
    entry = {"name": name, "n_bytes": path.stat().st_size, "partition": partition, "n_rows": 0}
    commit_table(root, table, {"add": [entry], "remove": []}, number)
    flush_log(root, table)
