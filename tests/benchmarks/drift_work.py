"""Divergences of two windows against Evidently and NannyML, and what a comparison of many rows takes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.duck import duck, literal
from drift.counting import Block
from drift.row_comparison import RowComparison, Rows, compare_rows
from drift.windows import DriftColumn
from pipelines.comparing import files_relation, pair_of
from tests.benchmarks.peers import PeerDrift, drift_by
from tests.benchmarks.rows import BenchRow, bench_row, seconds, side_by_side

N_BINS, FLOOR = 10, 1e-4
MOST_MB = 2_000
LARGEST_RATIO = 0.02
"""At least fifty times faster than Evidently."""


def drift_rows(
    folder: Path, n_rows: int = 500_000, n_features: int = 12, n_many: int = 25_000_000, rounds: int = 3
) -> list[BenchRow]:
    """The same two files for everybody; then as many rows as a machine's memory should not have to hold."""
    files = write_windows(folder, n_rows, n_features)
    return [
        *_peer_rows(files, f"{n_features} numeric features, {n_rows:,} + {n_rows:,} rows", rounds),
        *many_rows(folder, n_many),
    ]


def write_windows(folder: Path, n_rows: int, n_features: int) -> tuple[Path, Path]:
    """Two Parquet files of normal columns, every third of which has moved by a tenth and every third by a fifth."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "reference.parquet", folder / "live.parquet"
    for path, shift in zip(files, (0.0, 0.1), strict=True):
        pq.write_table(
            pa.table({f"x{i}": rng.standard_normal(n_rows) + shift * (i % 3) for i in range(n_features)}), path
        )
    return files


def _peer_rows(files: tuple[Path, Path], said: str, rounds: int) -> list[BenchRow]:
    sides = [_in_memory(path) for path in files]
    found: dict[str, PeerDrift] = {}

    def peer(name: str, *, reading: bool = False) -> float:
        found[name] = drift_by(name, *files)
        return found[name].wall_s + (found[name].read_s if reading else 0.0)

    def in_memory() -> RowComparison:
        return compare_rows(sides[0], sides[1], n_bins=N_BINS, floor=FLOOR)

    def from_files() -> RowComparison:
        with duck() as connection:
            reference, live = (files_relation(connection, str(path)) for path in files)
            pair = pair_of(connection, reference, live)
            return compare_rows(pair.rows(0), pair.rows(1), n_bins=N_BINS, floor=FLOOR)

    in_memory()  # imports are not counted
    memory = side_by_side(lambda: seconds(in_memory), lambda: peer("evidently"), rounds=rounds)
    parquet = side_by_side(lambda: seconds(from_files), lambda: peer("evidently", reading=True), rounds=rounds)
    functions = side_by_side(lambda: seconds(in_memory), lambda: peer("evidently_functions"), rounds=rounds)
    nannyml = side_by_side(lambda: seconds(in_memory), lambda: peer("nannyml"), rounds=rounds)
    _check(in_memory(), found["evidently"])
    evidently, other = found["evidently"].version, found["nannyml"].version
    more = "PSI, KL both ways, JS and Wasserstein here, PSI and KL there"
    return [
        bench_row(
            f"drift: {said} in memory; {more}", *memory, f"{evidently}, its report", "s", largest_ratio=LARGEST_RATIO
        ),
        bench_row(f"drift: the same from Parquet; {more}", *parquet, f"{evidently}, read by pandas", "s"),
        bench_row(
            f"drift: the same in memory; {more}", *functions, f"{evidently}, psi_stat_test and kl_div_stat_test alone",
            "s",
        ),
        bench_row("drift: the same in memory; JS alone there", *nannyml, f"{other}, UnivariateDriftCalculator", "s"),
    ]  # fmt: skip


def _in_memory(path: Path) -> Rows:
    table = pq.read_table(path)
    block = Block({name: DriftColumn("numeric", table[name].to_numpy()) for name in table.column_names})

    def blocks(_: frozenset[str]) -> Iterable[Block]:
        return [block]

    return blocks


def _check(ours: RowComparison, peer: PeerDrift) -> None:
    """The numbers agree as far as different bins let them: Evidently's are of equal width over both windows."""
    psi = [column.psi or 0.0 for column in ours.columns]
    wanted = [peer.values["psi"][column.name] for column in ours.columns]
    np.testing.assert_allclose(psi, wanted, rtol=0.2, atol=2e-3)


def many_rows(folder: Path, n_rows: int) -> list[BenchRow]:
    """The command on two files of twelve columns, as a process of its own: its time and the peak of its memory."""
    files = [_many(folder / "reference-many.parquet", n_rows, 0), _many(folder / "live-many.parquet", n_rows, n_rows)]
    command = "from pipelines.cli import main; main()"
    took, peak = _as_process([sys.executable, "-c", command, "drift", "compare", *map(str, files), "--json"])
    said = f"drift: compare 2 Parquet files of {n_rows:,} rows each, 10 numeric columns, 1 boolean, 1 of labels"
    who = f"a process of its own, DuckDB {duckdb.__version__}"
    return [
        bench_row(f"{said}; peak memory", peak, None, who, "MB", largest=MOST_MB),
        bench_row(f"{said}; time", took, None, who, "s"),
    ]


def _many(path: Path, n_rows: int, first: int) -> Path:
    """Ties, a point mass, missing values and labels; scrambled row numbers in place of random ones."""

    def uniform(salt: int) -> str:
        return f"(hash(i * 16 + {salt}) / 18446744073709551616.0)"

    columns = [
        *(f"ln({uniform(k)} + 1e-12) AS x{k}" for k in range(5)),
        *(f"greatest({uniform(k)} - 0.5, 0) AS x{k}" for k in range(5, 8)),
        f"round({uniform(8)} * 20) AS x8",
        f"CASE WHEN {uniform(9)} < 0.01 THEN NULL ELSE {uniform(9)} END AS x9",
        f"{uniform(10)} < 0.1 AS busy",
        f"['a', 'b', 'c', 'd'][1 + CAST(floor({uniform(11)} * 4) AS INTEGER)] AS zone",
    ]
    with duck(memory="1GB") as connection:
        connection.execute("SET preserve_insertion_order = false")
        rows = f"SELECT {', '.join(columns)} FROM range({first}, {first + n_rows}) t(i)"
        connection.execute(f"COPY ({rows}) TO {literal(str(path))} (FORMAT parquet)")
    return path


def _as_process(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MB of a command."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ended: list[tuple[int, int, resource.struct_rusage]] = []
    took = seconds(lambda: ended.append(os.wait4(process.pid, 0)))
    _, status, usage = ended[0]
    if status:
        assert process.stderr is not None
        raise RuntimeError(f"{' '.join(arguments)} failed: {process.stderr.read().decode()[-2000:]}")
    return took, usage.ru_maxrss / 1024
