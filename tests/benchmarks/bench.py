"""Speed and memory beside peers, measured in one run: `python -m tests.benchmarks.bench [--work GROUP]`.

Prints a table and writes docs/benchmarks.json; the group quality writes docs/quality.json and docs/quality.md. A row
names its peer; goals against peers that are not installed are not claimed here. d3rlpy, SCOPE-RL and OBP have an
environment of their own, so do Evidently and NannyML, and so does Ray Serve: `python -m tests.benchmarks.peers` makes
all three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.rows import BenchRow, benchmark_table, write_benchmarks

DOCS = Path(__file__).resolve().parents[2] / "docs"


def groups(folder: Path, n_steps: int, n_seeds: int, n_updates: int) -> dict[str, Callable[[], list[BenchRow]]]:
    """The measurements by group; each imports what it needs when it runs."""

    def updates() -> list[BenchRow]:
        from tests.benchmarks.learner_work import update_rows

        return update_rows()

    def streaming() -> list[BenchRow]:
        from tests.benchmarks.streaming_work import streaming_rows

        return streaming_rows(folder / "streaming", 20 * n_steps)

    def estimators() -> list[BenchRow]:
        from tests.benchmarks.estimators_work import peer_rows
        from tests.benchmarks.statistics_work import estimator_rows

        return [*peer_rows(), *estimator_rows()]

    def drift() -> list[BenchRow]:
        from tests.benchmarks.drift_work import drift_rows

        return drift_rows(folder / "drift")

    def quality() -> list[BenchRow]:
        from tests.benchmarks.quality_rows import quality_table, write_quality
        from tests.benchmarks.quality_work import QualityConfig, described, measure_quality
        from tests.benchmarks.quality_worlds import WORLDS

        config = QualityConfig(n_seeds=n_seeds, n_updates=n_updates)
        found = measure_quality(config)
        write_quality(DOCS, found, WORLDS, described(config))
        print(quality_table(found))
        return []  # rows of their own: more is better there

    def decision() -> list[BenchRow]:
        from tests.benchmarks.decision_work import decision_rows

        return decision_rows(folder / "decision")

    from tests.benchmarks import idle_work, lake_work, snapshot_work

    return {
        "ingest": lambda: lake_work.ingest_rows(folder, n_steps),
        "suite": lambda: lake_work.suite_rows(folder, n_steps),
        "query": lambda: lake_work.query_rows(folder, n_steps),
        "snapshot": lambda: snapshot_work.snapshot_rows(folder, n_steps),
        "updates": updates,
        "streaming": streaming,
        "estimators": estimators,
        "drift": drift,
        "decision": decision,
        "idle": lambda: idle_work.idle_rows(folder),
        "quality": quality,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; 0 whatever the ratios, 1 if a group could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description=__doc__)
    parser.add_argument("--work", default="", help="one group; by default all but quality, which takes an hour")
    parser.add_argument("--steps", type=int, default=300_000, help="steps of the log that is ingested")
    parser.add_argument("--seeds", type=int, default=3, help="logs per world of the group quality, at least 2")
    parser.add_argument("--updates", type=int, default=8_000, help="of every learner of the group quality")
    parser.add_argument("--output", type=Path, default=DOCS / "benchmarks.json")
    asked = parser.parse_args(arguments)
    rows: list[BenchRow] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        known = groups(Path(folder), asked.steps, asked.seeds, asked.updates)
        if asked.work and asked.work not in known:
            parser.error(f"--work is one of {', '.join(known)}; found '{asked.work}'")
        for name, measure in known.items():
            if asked.work == name or (not asked.work and name != "quality"):
                print(f"{name} ...", file=sys.stderr, flush=True)
                try:
                    rows += measure()
                except Exception as error:  # one group must not cost the others their numbers
                    print(f"{name} could not be measured: {error}", file=sys.stderr)
                    failed = True
    if rows:
        write_benchmarks(asked.output, rows)
        print(f"{benchmark_table(rows)}\n\n{rows[0].machine}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
