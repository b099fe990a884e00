"""Ingest, suite and query against DuckDB and pandas, run as `python -m tests.benchmarks.lake_work WORK FOLDER`.

Every measurement has a process of its own: peak memory is a process's, and Great Expectations shares none with torch.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from datasets.expectations import Expectation
from datasets.lake import Lake
from tests.benchmarks.rows import BenchRow, bench_row, seconds, side_by_side
from tests.benchmarks.step_logs import benchmark_contract, spoil_step_log, write_step_log

ROUNDS = 3
NIGHT_STEPS = 20_000
SUITE_REPEATS = 5
"""How often the suite reads each file: starting it takes as long as some 100,000 steps, and would hide the rest."""

_N_BATCHES, _BATCH_STEPS = 300, 1_000
"""Of the lake of many small batches."""

_QUERIES = {
    "share and mean reward of each action by day": (
        "SELECT log_date, action, count(*), avg(reward) FROM {steps} GROUP BY ALL ORDER BY ALL"
    ),
    "quantiles of three features by zone": (
        "SELECT observation.zone, quantile_cont(observation.x0, 0.95), quantile_cont(observation.x1, 0.95), "
        "quantile_cont(observation.x2, 0.95) FROM {steps} GROUP BY ALL ORDER BY ALL"
    ),
}


def ingest_rows(folder: Path, n_steps: int) -> list[BenchRow]:
    """Ingest, its suite and its commit, against DuckDB reading the same file and writing Parquet; time and memory.

    Beside it, the same ingest of a log of which one line in a thousand is bad, and that of a small night into a lake
    that already holds many.
    """
    log = _log(folder, n_steps)
    spoil_step_log(log, folder / "spoiled.jsonl")
    took: dict[str, list[dict[str, float]]] = {"ingest": [], "bare": [], "ingest_spoiled": []}
    for _ in range(ROUNDS):
        for work, found in took.items():
            found.append(_in_process(work, folder))
    (ours, memory), (peer, peer_memory), (spoiled, _) = (
        (statistics.median(f["seconds"] for f in found), max(f["peak_mb"] for f in found)) for found in took.values()
    )
    grown = _in_process("ingest_again", folder)
    said = f"{n_steps:,} JSON Lines steps with 12 features ({log.stat().st_size / 1e6:.0f} MB)"
    who = f"DuckDB {duckdb.__version__}, read_json -> Parquet and nothing else"
    return [
        bench_row(f"ingest of {said}, suite and commit included", ours, peer, who, "s", largest_ratio=3.5),
        bench_row(f"ingest, peak memory on {said}", memory, peer_memory, who, "MB", largest=2000),
        bench_row(
            "ingest of the same log with one bad line in a thousand (cut off, mistyped, out of range)",
            spoiled,
            ours,
            "the ingest of the good log",
            "s",
            largest_ratio=1.2,
        ),
        bench_row(
            f"ingest of {NIGHT_STEPS:,} steps into a lake of {n_steps:,}",
            grown["into_large"],
            grown["into_empty"],
            "the same night into an empty lake",
            "s",
            largest_ratio=1.2,
        ),
    ]


def suite_rows(folder: Path, n_steps: int) -> list[BenchRow]:
    """The contract's suite on DuckDB against the same expectations on a pandas frame."""
    _ingested(folder, n_steps)
    found = _in_process("suite", folder)
    who = "Great Expectations {} on pandas {}".format(*_versions("great_expectations", "pandas"))
    work = f"suite of {found['n_expectations']:.0f} expectations on {n_steps * SUITE_REPEATS:,} steps"
    return [bench_row(work, found["ours"], found["peer"], f"{who}, frame included", "s", largest_ratio=0.1)]


def query_rows(folder: Path, n_steps: int) -> list[BenchRow]:
    """The same question to the lake's view `steps` and to the bare Parquet files."""
    from datasets.catalog import query_catalog, refresh_catalog
    from datasets.lake import open_lake

    _ingested(folder, n_steps)
    lake = open_lake(folder / "lake", benchmark_contract())
    catalog = folder / "lake.duckdb"
    refresh_catalog(lake, catalog, as_of=datetime(2026, 6, 1, tzinfo=UTC), releases=())
    bare = f"read_parquet({[str(f) for f in lake.files('steps')]!r}, hive_partitioning = true)"

    def ask_files(sql: str) -> None:
        connection = duckdb.connect()
        connection.execute(sql).fetchall()
        connection.close()

    rows = []
    for words, sql in _QUERIES.items():
        over_view, over_files = sql.format(steps="steps"), sql.format(steps=bare)
        took = side_by_side(
            lambda sql=over_view: seconds(lambda: query_catalog(catalog, sql, folders=[folder / "lake"])),  # type: ignore[misc]
            lambda sql=over_files: seconds(lambda: ask_files(sql)),  # type: ignore[misc]
            rounds=15,
        )
        who = f"DuckDB {duckdb.__version__} on the bare files"
        rows.append(
            bench_row(
                f"query of {words}, {n_steps:,} steps", took[0] * 1e3, took[1] * 1e3, who, "ms", largest_ratio=1.1
            )
        )
    return [*rows, *_small_batch_rows(folder)]


def _small_batch_rows(folder: Path) -> list[BenchRow]:
    """Questions to a lake of many small batches, before it is compacted and after."""
    from datasets.catalog import query_catalog, refresh_catalog
    from datasets.compaction import LakeConfig, compact

    lake, catalog = _small_batches(folder), folder / "small.duckdb"
    questions = {
        **_QUERIES,
        "actions of one day": "SELECT action, count(*) FROM {steps} "
        "WHERE log_date = (SELECT max(log_date) FROM {steps}) GROUP BY ALL",
    }

    def measured(sql: str) -> float:
        asked = sql.format(steps="steps")
        return statistics.median(
            seconds(lambda: query_catalog(catalog, asked, folders=[lake.root])) * 1e3 for _ in range(9)
        )

    refresh_catalog(lake, catalog, as_of=datetime(2026, 6, 1, tzinfo=UTC), releases=())
    before = {words: measured(sql) for words, sql in questions.items()}
    n_files = len(lake.files("steps"))
    took = seconds(lambda: compact(lake, LakeConfig(), above=1))
    refresh_catalog(lake, catalog, as_of=datetime(2026, 6, 1, tzinfo=UTC), releases=())
    work = f"query, compaction of {_N_BATCHES} batches of {_BATCH_STEPS:,} steps"
    return [
        bench_row(f"{work} itself", took, None, "", "s"),
        *(
            bench_row(f"{work}: {words}", measured(sql), before[words], f"the same in {n_files} files", "ms")
            for words, sql in questions.items()
        ),
    ]


def _small_batches(folder: Path) -> Lake:
    """The first steps of the large lake, as if they had come in many small batches."""
    from datasets.duck import duck, literal, quoted
    from datasets.journal import StagedFile
    from datasets.lake import lake_lock, open_lake
    from datasets.tables import file_schema

    contract = benchmark_contract()
    large = open_lake(folder / "lake", contract)
    shutil.rmtree(folder / "small-batches", ignore_errors=True)
    lake = open_lake(folder / "small-batches", contract)
    columns = ", ".join(quoted(name) for name in file_schema(contract, "steps").names)
    lake.staging_path.mkdir()
    with duck() as connection, lake_lock(lake):
        first_lines = f"source_line <= {_N_BATCHES * _BATCH_STEPS}"
        connection.execute(f"CREATE TABLE steps AS SELECT * FROM {large.scan('steps')} WHERE {first_lines}")
        for batch in range(_N_BATCHES):
            rows = f"FROM steps WHERE (source_line - 1) // {_BATCH_STEPS} = {batch}"
            ((date, n_rows),) = connection.execute(f"SELECT min(log_date)::VARCHAR, count(*) {rows}").fetchall()
            path = lake.staging_path / f"{batch}.parquet"
            connection.execute(
                f"COPY (SELECT {columns} {rows} ORDER BY episode_id, step) TO {literal(str(path))} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
            lake.commit({"steps": [StagedFile(path, f"log_date={date}/b-{batch}.parquet", {"log_date": date}, n_rows)]})
    return lake


def _log(folder: Path, n_steps: int) -> Path:
    path = folder / "steps.jsonl"
    if not path.exists():
        write_step_log(path, n_steps)
        write_step_log(folder / "small.jsonl", 200, first_day="2025-06-01")
        write_step_log(folder / "night.jsonl", NIGHT_STEPS, first_step=n_steps)
    return path


def _ingested(folder: Path, n_steps: int) -> None:
    _log(folder, n_steps)
    if not (folder / "lake").exists():
        _in_process("ingest", folder)


def _in_process(work: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.lake_work", work, str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _take(lake: Path, log: Path) -> None:
    from datasets.ingest import IngestConfig, ingest_logs
    from datasets.lake import open_lake
    from datasets.validation import ValidateConfig

    opened = open_lake(lake, benchmark_contract())
    report = ingest_logs(opened, [log], IngestConfig(as_of="newest"), ValidateConfig(), base=log.parent)
    assert report.batch is not None
    assert report.batch.status == "lake", report.batch.note


def _ingest(folder: Path, log: str = "steps.jsonl", lake: str = "lake") -> dict[str, float]:
    for old in (lake, "warm"):
        shutil.rmtree(folder / old, ignore_errors=True)
    _take(folder / "warm", folder / "small.jsonl")  # imports are not counted
    took = seconds(lambda: _take(folder / lake, folder / log))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    peak = _peak_mb() + sum(_peak_mb_of(int(child)) for child in children)  # the suite has a process of its own
    return {"seconds": took, "peak_mb": peak}


def _ingest_spoiled(folder: Path) -> dict[str, float]:
    return _ingest(folder, "spoiled.jsonl", "spoiled")


def _ingest_again(folder: Path) -> dict[str, float]:
    """One night into the lake that `_ingest` left, and into an empty one."""
    for old in ("empty", "warm", "large"):
        shutil.rmtree(folder / old, ignore_errors=True)
    shutil.copytree(folder / "lake", folder / "large")
    _take(folder / "warm", folder / "small.jsonl")  # imports are not counted
    return {
        "into_large": seconds(lambda: _take(folder / "large", folder / "night.jsonl")),
        "into_empty": seconds(lambda: _take(folder / "empty", folder / "night.jsonl")),
    }


def _bare(folder: Path) -> dict[str, float]:
    target = folder / "bare.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"SELECT count(*) FROM read_json('{folder / 'small.jsonl'}')").fetchall()
        took = seconds(
            lambda: connection.execute(
                f"COPY (SELECT * FROM read_json('{folder / 'steps.jsonl'}')) TO '{target}' (FORMAT parquet)"
            )
        )
    target.unlink()
    return {"seconds": took, "peak_mb": _peak_mb()}


def _suite(folder: Path) -> dict[str, float]:
    from datasets.expectations import step_expectations
    from datasets.lake import open_lake
    from datasets.validation import ValidateConfig, validate_steps

    contract, config = benchmark_contract(), ValidateConfig()
    files = [f for f in open_lake(folder / "lake", contract).files("steps") if "columns-" not in f] * SUITE_REPEATS
    validate_steps(files[:1], contract, summary=None, config=config)  # imports are not counted
    stored = frozenset(
        ["episode_id", "step", "timestamp", "action", "reward", "terminated", "truncated", "behavior_prob"]
        + [f"observation.{name}" for name in contract.features]
    )
    expectations = step_expectations(contract, config, stored, fewest_rows=1)

    def validate() -> None:
        result = validate_steps(files, contract, summary=None, config=config)
        assert result.success, result.summary()
        assert len(result.records) == len(expectations)

    ours, peer = side_by_side(lambda: seconds(validate), lambda: _suite_on_pandas(files, expectations), rounds=ROUNDS)
    return {"ours": ours, "peer": peer, "n_expectations": len(expectations)}


def _suite_on_pandas(files: list[str], expectations: list[Expectation]) -> float:
    """Seconds from the same Parquet files, through one pandas frame, to the same verdict."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]  # it takes the plain dict
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("steps")
    definition = asset.add_batch_definition_whole_dataframe("whole")
    suite = gx.ExpectationSuite(name="steps")
    columns = []
    for place, e in enumerate(expectations):
        name = f"column_{place}"
        columns.append(f"{e.sql} AS {name}")
        column = {} if e.type == "ExpectTableRowCountToBeBetween" else {"column": name}
        suite.add_expectation(getattr(gxe, e.type)(**column, **e.arguments))
    began = time.perf_counter()
    with duckdb.connect() as connection:
        frame = connection.execute(f"SELECT {', '.join(columns)} FROM read_parquet({files!r})").df()
    result = definition.get_batch(batch_parameters={"dataframe": frame}).validate(suite)
    took = time.perf_counter() - began
    assert result.success, result
    return took


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak_mb_of(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _versions(*packages: str) -> list[str]:
    from importlib.metadata import version

    return [version(package) for package in packages]


if __name__ == "__main__":
    work = {
        "ingest": _ingest,
        "ingest_spoiled": _ingest_spoiled,
        "ingest_again": _ingest_again,
        "bare": _bare,
        "suite": _suite,
    }[sys.argv[1]]
    measured = work(Path(sys.argv[2]))
    print(json.dumps(measured))
