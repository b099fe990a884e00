from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import identities
from datasets.duck import duck
from datasets.identities import Identities, RepeatedHashes, identity_hash_sql
from datasets.lake import Lake
from datasets.tables import COLUMNS_FILE
from tests.datasets.builders import (
    ask,
    counts_of,
    episode,
    lake_at,
    step_keys,
    step_row,
    suite_says,
    take_in,
    write_rows,
)


@pytest.fixture(autouse=True)
def fast_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, True)


def hashes_of(lake: Lake) -> list[int]:
    with duck() as connection:
        rows = connection.execute(f"SELECT {identity_hash_sql()} FROM {lake.scan('steps')}").fetchall()
    return sorted(h for (h,) in rows)


def runs_of(lake: Lake) -> list[str]:
    return sorted(path.name for path in Identities(lake).folder.iterdir())


def indexed(lake: Lake) -> list[int]:
    runs = [np.load(path) for path in Identities(lake).folder.glob("*.hashes.npy")]
    return sorted(np.concatenate(runs).tolist())


def test_every_row_of_the_lake_is_in_the_index_after_each_batch(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    for night in range(7):
        rows = [row for i in range(1 + night % 3) for row in episode(f"e{night}-{i}")]
        take_in(lake, write_rows(tmp_path / f"{night}.jsonl", rows))
        assert indexed(lake) == hashes_of(lake)
    assert len(runs_of(lake)) < 2 * 7  # merged as they get many; a run is two files


def test_a_row_is_looked_for_on_its_day_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path)
    for day in range(1, 6):
        row = step_row(f"e{day}", timestamp=f"2024-05-{day:02d}T10:00:00Z")
        take_in(lake, write_rows(tmp_path / f"{day}.jsonl", [row]))
    read: list[str] = []
    real = identities.scan_files
    monkeypatch.setattr(
        "datasets.repeats.scan_files", lambda files, **named: read.extend(files) or real(files, **named)
    )

    again = step_row("e3", timestamp="2024-05-03T10:00:00Z")
    new = step_row("new", timestamp="2024-05-04T10:00:00Z")
    report = take_in(lake, write_rows(tmp_path / "again.jsonl", [new, again]))

    assert counts_of(report) == {"in": 2, "lake": 1, "duplicates": 1}
    days = {Path(file).parent.name for file in read if not Path(file).name.startswith(COLUMNS_FILE)}
    assert days == {"log_date=2024-05-03"}


def test_new_rows_read_nothing_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", episode("e")))

    def read(*_: object, **__: object) -> str:
        raise AssertionError("rows of the lake were read")

    monkeypatch.setattr("datasets.repeats.scan_files", read)
    assert counts_of(take_in(lake, write_rows(tmp_path / "b.jsonl", episode("f")))) == {"in": 3, "lake": 3}


@pytest.mark.parametrize("loss", ["all", "hashes", "days", "half of it", "new files left over"])
def test_an_index_that_was_lost_is_made_anew(tmp_path: Path, loss: str) -> None:
    lake = lake_at(tmp_path)
    for name in "ab":
        take_in(lake, write_rows(tmp_path / f"{name}.jsonl", [row for i in range(9) for row in episode(f"{name}{i}")]))
    folder = Identities(lake).folder
    for path in list(folder.iterdir()):
        if loss == "all" or f".{loss}." in path.name:
            path.unlink()
        elif loss == "half of it":
            path.write_bytes(path.read_bytes()[:-8])
    if loss == "new files left over":
        (folder / "new.hashes.npy").write_bytes(b"half")

    again = [*episode("c"), *(row for i in range(9) for row in episode(f"b{i}"))]
    report = take_in(lake, write_rows(tmp_path / "c.jsonl", again))

    assert counts_of(report) == {"in": 30, "lake": 3, "duplicates": 27}
    assert indexed(lake) == hashes_of(lake)
    assert len(step_keys(lake)) == len(set(step_keys(lake)))


def test_rows_of_merged_files_are_still_found(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    for name in "abc":
        take_in(lake, write_rows(tmp_path / f"{name}.jsonl", episode(name)))
    for path in Identities(lake).folder.iterdir():
        path.unlink()
    assert sorted(e for (e,) in ask(lake, "SELECT DISTINCT episode_id FROM {steps}")) == ["a", "b", "c"]
    report = take_in(lake, write_rows(tmp_path / "again.jsonl", [*episode("d"), *episode("a"), *episode("c")]))
    assert counts_of(report) == {"in": 9, "lake": 3, "duplicates": 6}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.integers(0, 20), max_size=30), max_size=6), st.integers(0, 2**32))
def test_repeated_hashes_are_found_across_blocks(values: list[list[int]], seed: int) -> None:
    everything = sorted(value for block in values for value in block)
    cuts = sorted(random.Random(seed).choices(range(len(everything) + 1), k=3))
    blocks = [np.array(b, dtype=np.uint64) for b in np.split(np.array(everything), cuts)]
    repeated = RepeatedHashes()
    assert [b.tolist() for b in repeated.seen(blocks)] == [b.tolist() for b in blocks]
    assert repeated.found.tolist() == sorted({v for v in everything if everything.count(v) > 1})
