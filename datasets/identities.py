"""The index of identities: where in the lake a row may already be, without reading what the lake holds.

An entry is the hash of a row's identity and the day of the partition it lies in. Entries stand in sorted runs that map
into memory, one per commit, merged as they get many; to look up k rows costs a few binary searches each, whatever the
lake's size. A hit only says where to look: the rows themselves decide. The index is derived from the lake and made anew
for commits that it lacks, so a process that dies before it is written loses nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.duck import duck, literal
from datasets.durable import flush_to_disk
from datasets.lake import Lake
from datasets.tables import scan_files

_LARGEST_MERGE = 1 << 24
"""Entries of a run beyond which it is merged no further: merging happens in memory (12 bytes an entry, twice)."""

_RUN = re.compile(r"(\d+)-(\d+)\.hashes\.npy")


def identity_hash_sql() -> str:
    """64 bits that are equal for rows with one identity: the decision, else the place in the episode."""
    place = "hash(episode_id, coalesce(step::BIGINT, epoch_us(timestamp)), step IS NULL)"
    return f"CASE WHEN decision_id IS NOT NULL THEN hash(decision_id) ELSE {place} END"


def identity_sql() -> str:
    """What makes a row the same row, in full: its decision, else its place in its episode.

    One-step rows without an identity of their own carry their place in the file as their episode, so that equal content
    is never taken for a repeat.
    """
    return (
        "CASE WHEN decision_id IS NOT NULL THEN 'd' || decision_id "
        "ELSE 'e' || coalesce(step::VARCHAR, 't' || epoch_us(timestamp)::VARCHAR) || ':' || episode_id END"
    )


@dataclass(frozen=True)
class _Run:
    """The identities of consecutive commits, sorted by hash."""

    first: int
    last: int
    path: Path

    @property
    def hashes(self) -> NDArray[np.uint64]:
        mapped: NDArray[np.uint64] = np.load(self.path, mmap_mode="r")
        return mapped

    @property
    def days(self) -> NDArray[np.int32]:
        mapped: NDArray[np.int32] = np.load(_days_path(self.path), mmap_mode="r")
        return mapped

    def __len__(self) -> int:
        return len(self.hashes)

    def is_whole(self) -> bool:
        """Whether both arrays are there, of one length."""
        try:
            return len(self.hashes) == len(self.days)
        except (OSError, ValueError, EOFError):
            return False


def _days_path(path: Path) -> Path:
    return path.with_name(path.name.replace(".hashes.", ".days."))


@dataclass(frozen=True)
class Identities:
    """The index of one lake. The caller holds the lake's lock."""

    lake: Lake

    @property
    def folder(self) -> Path:
        """Where the runs lie. DuckDB's hash may change with its version; then another folder is made, from the lake."""
        with duck() as connection:
            row = connection.execute(
                "SELECT printf('%x', xor(hash('probe', 1::BIGINT, false), hash('probe')))"
            ).fetchone()
        assert row is not None
        return self.lake.root / "_identities" / str(row[0])

    def partitions_of(self, hashes: Iterable[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], list[str]]:
        """Which hashes (sorted blocks) the lake may hold, and the days (ISO) of the partitions to look in."""
        runs = self._up_to_date()
        found: list[NDArray[np.uint64]] = []
        days: set[int] = set()
        for block in hashes:
            for run in runs:
                left = np.searchsorted(run.hashes, block, side="left")
                right = np.searchsorted(run.hashes, block, side="right")
                is_there = right > left
                found.append(block[is_there])
                days.update(np.unique(run.days[left[is_there]]).tolist())
                for place in np.flatnonzero(right > left + 1):
                    days.update(run.days[left[place] : right[place]].tolist())
        hits = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)
        return hits, [str(np.datetime64(day, "D")) for day in sorted(days)]

    def catch_up(self) -> None:
        """Takes in the commits that the index lacks."""
        self._up_to_date()

    def _up_to_date(self) -> list[_Run]:
        folder, newest = self.folder, self.lake.commit_number()
        for other in folder.parent.glob("*") if folder.parent.exists() else ():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        runs = self._runs(folder, newest)
        covered = runs[-1].last if runs else 0
        if covered < newest:
            folder.mkdir(parents=True, exist_ok=True)
            run = self._write_run(folder, covered + 1, newest)
            runs = self._merged(folder, [*runs, run])
        return runs

    def _runs(self, folder: Path, newest: int) -> list[_Run]:
        """The longest chain of runs from commit 1; what does not belong to it is removed, and made anew."""
        names = [(_RUN.fullmatch(path.name), path) for path in sorted(folder.glob("*.hashes.npy"))]
        found = [_Run(int(match[1]), int(match[2]), path) for match, path in names if match]
        known = [run for run in found if run.is_whole()]
        chain: list[_Run] = []
        while following := [r for r in known if r.first == (chain[-1].last + 1 if chain else 1) and r.last <= newest]:
            chain.append(max(following, key=lambda r: r.last))
        for run in found:
            if run not in chain:
                self._remove(run)
        return chain

    def _write_run(self, folder: Path, first: int, last: int) -> _Run:
        """Hashes and days of the rows that the commits from `first` to `last` brought."""
        rows = f"SELECT {identity_hash_sql()} AS h, log_date FROM {self._rows_of_commits(first, last)}"
        with duck(spill=folder / "spill") as connection:
            ((n_rows,),) = connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()
            run = _Run(first, last, folder / f"{first}-{last}.hashes.npy")
            beside = folder / "new.hashes.npy", folder / "new.days.npy"
            hashes, days = _new_array(beside[0], np.uint64, n_rows), _new_array(beside[1], np.int32, n_rows)
            ordered = f"SELECT h, log_date - DATE '1970-01-01' AS day FROM ({rows}) ORDER BY h"
            start = 0
            for batch in connection.sql(ordered).to_arrow_reader(1 << 20):
                end = start + batch.num_rows
                hashes[start:end], days[start:end] = batch["h"].to_numpy(), batch["day"].to_numpy()
                start = end
        shutil.rmtree(folder / "spill", ignore_errors=True)
        return _named(run, beside)

    def _rows_of_commits(self, first: int, last: int) -> str:
        if first == 1:
            return self.lake.scan("steps")
        with duck() as connection:
            found = connection.execute(
                f"SELECT batch_id, max(n_lake) FROM {self.lake.scan('batches')} "
                "WHERE commit_number BETWEEN ? AND ? AND kind = 'steps' AND n_lake > 0 GROUP BY 1",
                [first, last],
            ).fetchall()
        batches = [batch_id for batch_id, _ in found]
        named = {b: [f for f in self.lake.files("steps") if b in Path(f).name] for b in batches}
        n_named = {b: sum(pq.read_metadata(f).num_rows for f in files) for b, files in named.items()}
        if any(n_named[b] != n_rows for b, n_rows in found):  # merged with others, or rewritten: the column still knows
            listed = ", ".join(map(literal, batches))
            return f"(SELECT * FROM {self.lake.scan('steps')} WHERE batch_id IN ({listed}))"
        files = [file for of_batch in named.values() for file in of_batch]
        return scan_files(files, by_date=True) if files else f"(SELECT * FROM {self.lake.scan('steps')} LIMIT 0)"

    def _merged(self, folder: Path, runs: list[_Run]) -> list[_Run]:
        """Merges the newest runs while they are of like size, so that there are few: the logarithm of all entries."""
        while len(runs) > 1 and len(runs[-2]) <= 2 * len(runs[-1]) and len(runs[-2]) + len(runs[-1]) <= _LARGEST_MERGE:
            *runs, before, after = runs
            hashes = np.concatenate([before.hashes, after.hashes])
            days = np.concatenate([before.days, after.days])
            order = np.argsort(hashes, kind="stable")
            merged = _Run(before.first, after.last, folder / f"{before.first}-{after.last}.hashes.npy")
            beside = folder / "new.hashes.npy", folder / "new.days.npy"
            np.save(beside[0], hashes[order])
            np.save(beside[1], days[order])
            runs.append(_named(merged, beside))
            self._remove(before)
            self._remove(after)
        return runs

    def _remove(self, run: _Run) -> None:
        run.path.unlink(missing_ok=True)
        _days_path(run.path).unlink(missing_ok=True)


def _new_array(path: Path, dtype: type, n: int) -> NDArray[np.generic]:
    if not n:
        np.save(path, np.zeros(0, dtype=dtype))  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    mapped: NDArray[np.generic] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(n,))
    return mapped


def _named(run: _Run, beside: tuple[Path, Path]) -> _Run:
    """Gives a run its name, the hashes last: with them it counts."""
    for path in beside:
        flush_to_disk(path)
    beside[1].replace(_days_path(run.path))
    beside[0].replace(run.path)
    return run


def sorted_hashes(connection: duckdb.DuckDBPyConnection, rows: str) -> Iterator[NDArray[np.uint64]]:
    """The identity hashes of a relation in sorted blocks."""
    query = f"SELECT {identity_hash_sql()} AS h FROM {rows} ORDER BY h"
    with connection.cursor() as own:  # a result that is still read keeps its connection busy
        for batch in own.sql(query).to_arrow_reader(1 << 20):
            yield batch["h"].to_numpy()


class RepeatedHashes:
    """Finds hashes that occur more than once while sorted blocks of them go by."""

    def __init__(self) -> None:
        self._found: list[NDArray[np.uint64]] = []

    @property
    def found(self) -> NDArray[np.uint64]:
        """Each hash that came more than once so far, once."""
        return np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *self._found]))

    def seen(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """The blocks as they come."""
        last = np.zeros(0, dtype=np.uint64)
        for block in blocks:
            joined = np.concatenate([last, block])
            self._found.append(joined[1:][joined[1:] == joined[:-1]])
            last = joined[-1:]
            yield block
