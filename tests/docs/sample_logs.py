"""Small logs in the form that a page takes for granted: `python -m tests.docs.sample_logs KIND FILE`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)


def blank(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of the contract that `init` writes: a load, to act or to wait, by a policy that tries both."""
    for episode in range(1500):
        for step in range(2):
            load = round(rng.random(), 3)
            acts = rng.random() < 0.5
            yield {
                "episode_id": f"e-{episode:04d}",
                "step": step,
                "timestamp": (BEGIN + timedelta(minutes=episode, seconds=step)).isoformat(),
                "observation": {"load": load},
                "action": "act" if acts else "wait",
                "reward": round((load - 0.5 if acts else 0.0) + rng.gauss(0, 0.05), 3),
                "behavior_prob": 0.5,
                "terminated": step == 1,
                "truncated": False,
                "user_id": 4700 + episode % 50,
                "user_email": f"user{episode % 50}@example.org",
                "session": {"token": f"t{episode}"},
            }


def scaled(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows whose action is a number from 0 to 100."""
    for row in blank(rng):
        yield row | {"action": round(rng.uniform(0, 100), 1), "behavior_prob": 1 / 3}


def buses(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows as in docs/examples/bus_replacement, of 162 buses in two years."""
    for bus in range(162):
        miles = rng.randrange(100_000)
        for month in range(24):
            driven = rng.randrange(1000, 5000)
            replaced = miles > 60_000 and rng.random() < 0.1
            yield {
                "bus": f"g870-{bus}",
                "month": f"{1983 + month // 12}-{month % 12 + 1:02d}",
                "model": "g870",
                "miles_since_engine": miles,
                "miles_last_month": driven,
                "decision": "replace" if replaced else "keep",
                "utility": -10.0749 if replaced else round(-miles * 1e-6, 6),
            }
            miles = driven if replaced else miles + driven


def impressions(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows as in docs/examples/open_bandit_men: 34 items shown at random, and a rare click."""
    for number in range(1200):
        yield {
            "": number,
            "timestamp": (BEGIN + timedelta(minutes=number)).isoformat(),
            "item_id": rng.randrange(34),
            "position": rng.randrange(1, 4),
            "click": int(rng.random() < 0.05),
            "propensity_score": 1 / 34,
            **{f"user_feature_{i}": f"f{rng.randrange(3)}" for i in range(4)},
            **{f"user-item_affinity_{i}": float(rng.randrange(2)) for i in range(34)},
        }


def before(rng: random.Random, begin: datetime = BEGIN) -> Iterator[dict[str, Any]]:
    """Rows of no contract, in two weeks, for a comparison of two files."""
    for number in range(600):
        yield {
            "started_on": (begin + timedelta(days=number % 14)).date().isoformat(),
            "user_id": number % 60,
            "amount": round(rng.gauss(10, 2), 3),
            "country": rng.choice("abc"),
        }


def after(rng: random.Random) -> Iterator[dict[str, Any]]:
    """The same in the two weeks that follow."""
    return before(rng, BEGIN + timedelta(days=14))


KINDS = {each.__name__: each for each in (blank, scaled, buses, impressions, before, after)}


def write(kind: str, path: Path) -> None:
    """Writes the rows of a kind, by the file's ending as JSON Lines, CSV or Parquet."""
    rows = list(KINDS[kind](random.Random(path.name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:  # .csv or .csv.gz, by its name
        with pa.output_stream(path, compression="detect") as out:
            csv.write_csv(table, out)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
