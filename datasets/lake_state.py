"""What a lake in a bucket holds at one commit, and what a commit changes of it: plain values, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LakeFile:
    """A Parquet file of a table.

    Attributes:
        name: its path inside the table's folder.
        key: of the object that holds it. No key is ever used for two contents.
        digest: SHA-256 of its bytes.
        n_bytes, n_rows: its size.
        partition: partition values by column.
    """

    name: str
    key: str
    digest: str
    n_bytes: int
    n_rows: int
    partition: Mapping[str, str]


@dataclass(frozen=True)
class SideFile:
    """A file beside the tables: the contract, held batches, who was erased.

    Attributes:
        key: of the object that holds it.
        digest: SHA-256 of its bytes.
        n_bytes: its size.
    """

    key: str
    digest: str
    n_bytes: int


@dataclass(frozen=True)
class Entry:
    """One commit, as the journal in the bucket has it.

    Attributes:
        number: of the commit; the entries of a journal are numbered without a gap.
        nonce: a random id of whoever wrote it, so that no two writers ever write the same entry.
        by: who wrote it, for people.
        at: when, by the writer's clock (ISO); for people, nothing is decided by it.
        added, removed: files by table; removed ones by name.
        sides: files beside the tables that changed, by path; None for one that went.
        same_rows: whether the tables' rows stay as they were.
        purge: tables of which what they no longer hold has to leave every disk and the bucket at once.
    """

    number: int
    nonce: str
    by: str
    at: str
    added: Mapping[str, tuple[LakeFile, ...]] = field(default_factory=dict)
    removed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sides: Mapping[str, SideFile | None] = field(default_factory=dict)
    same_rows: bool = False
    purge: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` was asked of."""
        return cls(
            **{
                **values,
                "added": {table: tuple(LakeFile(**file) for file in files) for table, files in values["added"].items()},
                "removed": {table: tuple(names) for table, names in values["removed"].items()},
                "sides": {path: SideFile(**side) if side else None for path, side in values["sides"].items()},
                "purge": tuple(values["purge"]),
            }
        )


@dataclass(frozen=True)
class LakeState:
    """All of a lake at one commit.

    Attributes:
        lake_id: a random id that no other lake has.
        number: of the commit.
        tables: files by table, by name.
        sides: files beside the tables, by path inside the lake's folder.
    """

    lake_id: str
    number: int
    tables: Mapping[str, Mapping[str, LakeFile]] = field(default_factory=dict)
    sides: Mapping[str, SideFile] = field(default_factory=dict)

    def after(self, entries: Iterable[Entry]) -> LakeState:
        """The lake after further commits, which follow on this one in order."""
        tables, sides, number = (
            {table: dict(files) for table, files in self.tables.items()},
            dict(self.sides),
            self.number,
        )
        for entry in entries:
            number += 1
            assert entry.number == number
            for table, names in entry.removed.items():
                for name in names:
                    tables.setdefault(table, {}).pop(
                        name, None
                    )  # the empty files with a table's columns are no objects
            for table, files in entry.added.items():
                tables.setdefault(table, {}).update((file.name, file) for file in files)
            for path, side in entry.sides.items():
                if side is None:
                    sides.pop(path, None)
                else:
                    sides[path] = side
        return LakeState(self.lake_id, number, tables, sides)

    def keys(self) -> set[str]:
        """Of every object that it rests on."""
        files = {file.key for of_table in self.tables.values() for file in of_table.values()}
        return files | {side.key for side in self.sides.values()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "lake_id": self.lake_id,
            "number": self.number,
            "tables": {table: [asdict(file) for file in files.values()] for table, files in self.tables.items()},
            "sides": {path: asdict(side) for path, side in self.sides.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LakeState:
        """The state that `to_json` was asked of."""
        return cls(
            values["lake_id"],
            values["number"],
            {table: {f["name"]: LakeFile(**f) for f in files} for table, files in values["tables"].items()},
            {path: SideFile(**side) for path, side in values["sides"].items()},
        )
