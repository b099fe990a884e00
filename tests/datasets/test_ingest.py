"""Ingest: every row in the lake or in quarantine, once, whatever the files look like and whenever it is killed."""

from __future__ import annotations

import gzip
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import durable, ingest, journal, reading, staging
from datasets.canonical import canonical_sql
from datasets.contract import Contract
from datasets.ingest import newest_timestamp
from datasets.journal import LakeError
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    reasons_of,
    step_keys,
    step_row,
    suite_says,
    take_in,
    text_of,
    tiny,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("quick_suite")

ONE_STEP = tiny(episodes={"kind": "one_step"})


# --- the account


def test_good_rows_arrive_with_their_lineage(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    report = take_in(opened, write_rows(tmp_path / "logs" / "a.jsonl", episode("e", note="x")))

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert report.batch is not None
    assert report.batch.dropped_columns == ("note",)
    answer = ask(opened, "SELECT DISTINCT source, batch_id, log_date::VARCHAR FROM {steps}")
    assert answer == [("logs/a.jsonl", report.batch.batch_id, "2024-05-01")]
    assert ask(opened, "SELECT source_line FROM {steps} ORDER BY step") == [(1,), (2,), (3,)]


def test_bad_rows_are_in_quarantine_with_reason_place_and_raw_text(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    path = write_rows(
        tmp_path / "a.jsonl", [step_row("e", 0), "garbage", "", step_row("e", 1, reward=5), step_row("e", 2)]
    )
    report = take_in(opened, path)

    assert counts_of(report) == {"in": 4, "lake": 2, "quarantined": 2}
    assert ask(
        opened, "SELECT source, source_line, reason, raw, episode_id FROM {quarantine} ORDER BY source_line"
    ) == [
        ("a.jsonl", 2, "the line is not valid JSON", "garbage", None),
        ("a.jsonl", 4, "reward is 5.0, above the contract's max 0.0", path.read_text().splitlines()[3], "e"),
    ]
    assert dict(report.reasons) == {"the line is not valid JSON": 1, "reward is 5.0, above the contract's max 0.0": 1}


def test_all_rows_bad_is_an_account_and_no_error(tmp_path: Path) -> None:
    report = take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", ["x"] * 5))

    assert counts_of(report) == {"in": 5, "quarantined": 5}


def test_empty_files_make_no_batch(tmp_path: Path) -> None:
    report = take_in(
        lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", []), write_rows(tmp_path / "b.jsonl", ["", ""])
    )

    assert report.batch is None
    assert report.empty == ("a.jsonl", "b.jsonl")


def test_a_damaged_file_is_reported_and_the_others_are_taken(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    whole = gzip.compress(text_of(episode("cut", 60)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    good = write_rows(tmp_path / "b.jsonl", episode("e"))
    report = take_in(opened, tmp_path / "a.jsonl.gz", good)

    assert counts_of(report) == {"in": 3, "lake": 3}
    ((file, cause),) = report.damaged
    assert file == "a.jsonl.gz"
    assert "Compressed file ended before the end-of-stream marker" in cause
    assert "Nothing of it was taken" in cause

    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    assert counts_of(take_in(opened, tmp_path / "a.jsonl.gz")) == {"in": 60, "lake": 60}


def test_a_file_that_duckdb_cannot_judge_is_damaged_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = canonical_sql
    broken = "SELECT * FROM nowhere"
    monkeypatch.setattr(staging, "canonical_sql", lambda layout, own: real(layout, own) if own is None else broken)
    (tmp_path / "a.csv").write_text("episode_id\ne\n")
    report = take_in(lake_at(tmp_path), tmp_path / "a.csv", write_rows(tmp_path / "b.jsonl", episode("e")))

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert "nowhere" in report.damaged[0][1]


def test_pending_line_is_counted_then_read_once_then_grows(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text(text_of([step_row("e", 0)]) + text_of([step_row("e", 1)])[:-1])

    assert counts_of(take_in(opened, path)) == {"in": 2, "lake": 1, "pending": 1}
    assert counts_of(take_in(opened, path)) == {"in": 1, "lake": 1}
    assert take_in(opened, path).unchanged == ("a.jsonl",)

    path.write_text(path.read_text() + "\n" + text_of([step_row("e", 2)]))
    assert counts_of(take_in(opened, path)) == {"in": 1, "lake": 1}
    assert ask(opened, "SELECT step, source_line FROM {steps} ORDER BY step") == [(0, 1), (1, 2), (2, 3)]


def test_a_line_cut_for_good_goes_to_quarantine_and_the_rest_goes_on(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text(text_of([step_row("e", 0)]) + '{"episode_id": "e", "st')
    take_in(opened, path)
    take_in(opened, path)
    path.write_text(path.read_text() + "\n" + text_of([step_row("f", 0)]))
    take_in(opened, path)

    assert reasons_of(opened) == ["the line is not valid JSON"]
    assert step_keys(opened) == [("e", 0), ("f", 0)]


def test_episode_in_two_files_out_of_order_is_stitched(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = episode("e", 3)
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows[2:]), write_rows(tmp_path / "b.jsonl", rows[:2][::-1]))

    assert step_keys(opened) == [("e", 0), ("e", 1), ("e", 2)]


def test_an_episode_over_midnight_has_a_file_per_day(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [step_row("e", 0, timestamp="2024-05-01T23:59:59Z"), step_row("e", 1, timestamp="2024-05-02T01:00:00+00:30")]
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows))

    answer = ask(opened, "SELECT step, log_date::VARCHAR FROM {steps} ORDER BY step")
    assert answer == [(0, "2024-05-01"), (1, "2024-05-02")]


def test_rows_of_many_formats_make_one_batch(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    write_rows(tmp_path / "logs" / "a.jsonl", episode("a"))
    (tmp_path / "logs" / "b.jsonl.gz").write_bytes(gzip.compress(text_of(episode("b")).encode()))
    (tmp_path / "logs" / "c.csv").write_text(
        "episode_id,step,timestamp,cpu,action,reward,behavior_prob\nc,0,2024-05-01T00:00:00Z,0.5,up,-1,0.5\nc,1\n"
    )
    report = take_in(opened, tmp_path / "logs")

    assert counts_of(report) == {"in": 8, "lake": 7, "quarantined": 1}
    assert reasons_of(opened) == ["the line has 2 fields and the header has 7"]


# --- exactly once


def test_the_same_file_a_copy_and_a_grown_file_are_read_once(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    path = write_rows(tmp_path / "a.jsonl", episode("e"))
    take_in(opened, path)
    copy = write_rows(tmp_path / "copy.jsonl", episode("e"))

    report = take_in(opened, path, copy)
    assert report.batch is None
    assert report.unchanged == ("a.jsonl", "copy.jsonl")

    write_rows(path, [*episode("e"), *episode("f")])
    assert counts_of(take_in(opened, path)) == {"in": 3, "lake": 3}


def test_the_same_file_twice_in_one_batch_is_read_once(tmp_path: Path) -> None:
    rows = episode("e")
    report = take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", rows))

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert report.unchanged == ("b.jsonl",)


@pytest.mark.parametrize("one_batch", [True, False])
def test_rows_repeated_in_another_file_are_duplicates(tmp_path: Path, one_batch: bool) -> None:
    opened = lake_at(tmp_path)
    one = write_rows(tmp_path / "a.jsonl", episode("e"))
    other = write_rows(tmp_path / "b.jsonl", [*episode("f"), *episode("e")])
    if one_batch:
        assert counts_of(take_in(opened, one, other)) == {"in": 9, "lake": 6, "duplicates": 3}
    else:
        take_in(opened, one)
        assert counts_of(take_in(opened, other)) == {"in": 6, "lake": 3, "duplicates": 3}
    assert len(step_keys(opened)) == 6


@pytest.mark.parametrize("one_batch", [True, False])
def test_conflicting_repeat_goes_to_quarantine_and_the_first_stays(tmp_path: Path, one_batch: bool) -> None:
    opened = lake_at(tmp_path)
    one = write_rows(tmp_path / "a.jsonl", episode("e"))
    other = write_rows(tmp_path / "b.jsonl", [step_row("e", 1, reward=-9.0, note="raw"), step_row("f")])
    if one_batch:
        report = take_in(opened, one, other)
    else:
        take_in(opened, one)
        report = take_in(opened, other)

    assert counts_of(report)["quarantined"] == 1
    assert ask(opened, "SELECT reward FROM {steps} WHERE episode_id = 'e'") == [(-1.0,)] * 3
    assert ask(opened, "SELECT reason, raw, source, source_line, episode_id FROM {quarantine}") == [
        ("repeats the step in a.jsonl line 2 with other content", other.read_text().splitlines()[0], "b.jsonl", 1, "e")
    ]


def test_rows_with_a_decision_id_are_known_by_it(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [step_row("e", 0, decision_id="d"), step_row("f", 5, decision_id="d")]
    report = take_in(opened, write_rows(tmp_path / "a.jsonl", rows))

    assert counts_of(report) == {"in": 2, "lake": 1, "quarantined": 1}


def test_rows_without_a_step_number_are_known_by_their_time(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [step_row("e", 0, step=None), step_row("e", 1, step=None), step_row("e", 1, step=None)]
    report = take_in(opened, write_rows(tmp_path / "a.jsonl", rows))

    assert counts_of(report) == {"in": 3, "lake": 2, "duplicates": 1}


def test_equal_one_step_rows_are_never_taken_for_repeats(tmp_path: Path) -> None:
    opened = lake_at(tmp_path, ONE_STEP)
    row = step_row(episode_id=None, timestamp=None, step=None)
    one = write_rows(tmp_path / "a.jsonl", [row] * 4)
    other = write_rows(tmp_path / "b.jsonl", [row] * 2 + [step_row(episode_id=None, decision_id="d")])

    assert counts_of(take_in(opened, one, other)) == {"in": 7, "lake": 7}
    assert take_in(opened, one, other).batch is None
    write_rows(one, [row] * 5)
    assert counts_of(take_in(opened, one)) == {"in": 1, "lake": 1}


def test_one_step_rows_with_a_decision_id_are_deduplicated(tmp_path: Path) -> None:
    opened = lake_at(tmp_path, ONE_STEP)
    rows = [step_row(episode_id=None, step=None, decision_id=f"d-{i % 2}") for i in range(4)]

    assert counts_of(take_in(opened, write_rows(tmp_path / "a.jsonl", rows))) == {"in": 4, "lake": 2, "duplicates": 2}


def test_one_step_rows_without_time_get_the_day_of_the_ingest(tmp_path: Path) -> None:
    opened = lake_at(tmp_path, ONE_STEP)
    take_in(opened, write_rows(tmp_path / "a.jsonl", [step_row(timestamp=None)]))

    assert ask(opened, "SELECT log_date::VARCHAR, timestamp FROM {steps}") == [(str(NOON.date()), None)]


def test_as_of_newest_is_the_newest_time_ever_seen(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    assert newest_timestamp(opened) is None
    one = take_in(opened, write_rows(tmp_path / "a.jsonl", episode("e")), as_of="newest")
    two = take_in(
        opened, write_rows(tmp_path / "b.jsonl", [step_row("z", timestamp="2020-01-01T00:00:00Z")]), as_of="newest"
    )

    assert one.batch is not None
    assert two.batch is not None
    assert one.batch.as_of == two.batch.as_of == newest_timestamp(opened)


# --- two at a time, and killed


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
"""Processes that start with everything imported, from a parent that has no threads of its own."""


def in_process(folder: Path, contract: Contract, *paths: Path) -> None:
    """Ingests without a suite; the body of a process of its own."""
    patch = pytest.MonkeyPatch()
    suite_says(patch, True)
    take_in(lake_at(folder, contract), *paths)


def test_two_ingests_at_the_same_time_take_each_row_once(tmp_path: Path) -> None:
    lake_at(tmp_path)
    shared = [row for i in range(30) for row in episode(f"s{i}")]
    paths = [write_rows(tmp_path / f"{n}.jsonl", [*episode(f"own{n}"), *shared]) for n in range(2)]
    processes = [PROCESSES.Process(target=in_process, args=(tmp_path, tiny(), path)) for path in paths]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    opened = lake_at(tmp_path)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(step_keys(opened)) == len(set(step_keys(opened))) == 96
    assert ask(opened, "SELECT sum(n_in), sum(n_lake), sum(n_duplicates) FROM {batches}") == [(186, 96, 90)]


CRASHES = ["quarantine", "files", "batches", "steps", "journal", "moved"]


def crash_at(place: str, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Lets the commit die at a place: before a table's commit, when the journal is written, or when files are moved."""
    real_commit, real_write, real_replace = journal.commit_table, journal.write_durably, Path.replace

    def commit(root: Path, table: str, *args: Any, **options: Any) -> None:
        if table == place:
            raise error
        real_commit(root, table, *args, **options)

    def write(path: Path, text: str) -> None:
        real_write(path, text)
        if place == "journal" and path.name == "_journal.json":
            raise error

    def replace(self: Path, target: Path) -> Path:
        if place == "moved" and "log_date=" in str(self):
            raise error
        return real_replace(self, target)

    monkeypatch.setattr(journal, "commit_table", commit)
    monkeypatch.setattr(journal, "write_durably", write)
    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("place", CRASHES)
def test_a_commit_that_fails_half_way_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first = write_rows(tmp_path / "a.jsonl", [*episode("e"), "bad"])
    second = write_rows(tmp_path / "b.jsonl", [*episode("f"), "bad", *episode("e")])
    opened = lake_at(tmp_path)
    take_in(opened, first)
    with monkeypatch.context() as patch:
        crash_at(place, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            take_in(opened, second)
    assert opened.journal_path.exists()

    opened = lake_at(tmp_path)
    assert not opened.journal_path.exists()
    assert take_in(opened, first, second).batch is None
    assert step_keys(opened) == [(name, step) for name in "ef" for step in range(3)]
    assert len(reasons_of(opened)) == 2
    assert ask(opened, "SELECT count(DISTINCT batch_id), sum(n_in), sum(n_duplicates) FROM {batches}") == [(2, 11, 3)]
    assert not opened.staging_path.exists()


def test_an_ingest_finishes_what_another_left_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = lake_at(tmp_path)
    path = write_rows(tmp_path / "a.jsonl", episode("e"))
    with monkeypatch.context() as patch:
        crash_at("batches", patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            take_in(opened, path)

    report = take_in(opened, path, write_rows(tmp_path / "b.jsonl", episode("f")))
    assert counts_of(report) == {"in": 3, "lake": 3}
    assert len(step_keys(opened)) == 6


def test_killed_at_random_moments_it_ends_with_the_same_rows(tmp_path: Path) -> None:
    rows = [row for i in range(1500) for row in episode(f"e{i}")]
    for folder in ("calm", "killed"):
        for n in range(3):
            write_rows(
                tmp_path / folder / "logs" / f"{n}.jsonl", [*rows[n * 1500 : n * 1500 + 1600], "bad", *rows[:30]]
            )
    started = time.monotonic()
    take_in(lake_at(tmp_path / "calm"), tmp_path / "calm" / "logs")
    whole = time.monotonic() - started
    chance = random.Random(0)
    n_killed = 0
    for n in range(8):
        process = PROCESSES.Process(target=in_process, args=(tmp_path / "killed", tiny(), tmp_path / "killed" / "logs"))
        process.start()
        process.join(whole * (n + chance.random()) / 8)
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
    assert n_killed >= 4

    lakes = {folder: lake_at(tmp_path / folder) for folder in ("calm", "killed")}
    take_in(lakes["killed"], tmp_path / "killed" / "logs")

    shown = "SELECT * EXCLUDE (batch_id) FROM {steps} ORDER BY ALL"
    assert ask(lakes["killed"], shown) == ask(lakes["calm"], shown)
    shown = "SELECT raw, source, source_line, reason FROM {quarantine} ORDER BY ALL"
    assert ask(lakes["killed"], shown) == ask(lakes["calm"], shown)


# --- a full disk


def test_a_full_disk_is_an_error_that_says_how_the_lake_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = lake_at(tmp_path)
    take_in(opened, write_rows(tmp_path / "a.jsonl", episode("e")))
    before = (step_keys(opened), opened.versions())
    path = write_rows(tmp_path / "b.jsonl", episode("f"))

    def full(*_: Any, **__: Any) -> Any:
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    for owner, place in ((staging.Stage, "read"), (staging.Stage, "finish_reading"), (ingest, "write_parts")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, full)
            with pytest.raises(LakeError) as caught:
                take_in(opened, path)
        assert "could not be written: IO Error: Could not write file: No space left on device. " in str(caught.value)
        assert "Nothing of the batch is in it. See to it that the disk has room" in str(caught.value)
        assert (step_keys(opened), opened.versions()) == before
        assert not opened.staging_path.exists()

    assert counts_of(take_in(opened, path)) == {"in": 3, "lake": 3}


def test_a_disk_that_fills_up_in_the_journal_leaves_the_lake_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = lake_at(tmp_path)
    path = write_rows(tmp_path / "a.jsonl", episode("e"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(LakeError, match=r"No space left on device\. Nothing of the batch is in it"):
            take_in(opened, path)
    assert step_keys(opened) == []
    assert counts_of(take_in(opened, path)) == {"in": 3, "lake": 3}


def test_a_disk_that_fills_up_behind_the_journal_says_that_the_batch_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = lake_at(tmp_path)
    path = write_rows(tmp_path / "a.jsonl", episode("e"))
    with monkeypatch.context() as patch:
        crash_at("moved", patch, OSError(28, "No space left on device"))
        with pytest.raises(LakeError, match="The batch is whole in its journal: the next command that opens the lake"):
            take_in(opened, path)

    assert len(step_keys(lake_at(tmp_path))) == 3


# --- anything at all

MUTATIONS: list[Callable[[random.Random, str], str]] = [
    lambda r, s: s[: r.randrange(len(s) + 1)],
    lambda r, s: s[: (i := r.randrange(len(s)))] + r.choice('{}[]",:0-eE.\\u\x00\x7fé\n\r') + s[i:],
    lambda r, s: s[: (i := r.randrange(len(s)))] + s[i + r.randrange(1, 9) :],
    lambda r, s: s.replace(
        r.choice(["0.5", "-1.0", "true", "false", '"hold"', '"e"']),
        r.choice(["null", "NaN", "1e999", "[]", "{}", '""', '"x"', "-0", "9" * 40]),
    ),
    lambda r, s: s.replace(
        r.choice(['"step"', '"cpu"', '"action"', '"timestamp"']),
        r.choice(['"reward"', '"STEP"', '"observation"', '""', '"a.b"']),
    ),
    lambda r, s: s.replace(
        "2024-05-01T10:0", r.choice(["99999-05-01T10:0", "0000-05-01T10:0", "-1", "2024-02-30T10:0", "infinity"])
    ),
    lambda r, s: s[: r.randrange(len(s))] + s,
]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_whatever_stands_in_a_log_every_line_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("fuzz")
    good = [text_of([step_row(f"e{i}")])[:-1] for i in range(60)]
    (folder / "a.jsonl").write_bytes(_mutated(chance, good))
    header = "episode_id,step,timestamp,cpu,load,action,reward,behavior_prob\n"
    rows = [f'f{i},0,2024-05-01T10:00:00Z,0.5,"[0.0, 1.0]",hold,-1.0,0.5' for i in range(60)]
    (folder / "b.csv").write_bytes(header.encode() + _mutated(chance, rows))
    opened = lake_at(folder)
    report = take_in(opened, folder, as_of="newest")

    assert report.damaged == ()
    assert report.batch is not None
    assert report.batch.counts.n_lake == len(step_keys(opened))
    assert report.batch.counts.n_quarantined == len(reasons_of(opened))
    assert all(reasons_of(opened))


def _mutated(chance: random.Random, lines: list[str]) -> bytes:
    """The lines, most of them changed once or twice, and an end that may be cut or no text."""
    changed = []
    for line in lines:
        for _ in range(chance.randrange(3)):
            line = chance.choice(MUTATIONS)(chance, line or " ")
        changed.append(line)
    end = chance.choice([b"", b"\n", b"\n\xff\n", b"\n\x00\n"])
    return "\n".join(changed).encode("utf-8", "surrogatepass") + end


# --- with the real suite


def test_end_to_end_with_the_real_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    opened = lake_at(tmp_path)
    report = take_in(
        opened,
        write_rows(tmp_path / "a.jsonl", [row for i in range(40) for row in episode(f"e{i}", 3, behavior_prob=1.0)]),
    )

    assert counts_of(report) == {"in": 120, "lake": 120}
    assert report.batch is not None
    assert report.batch.status == "lake"
    assert report.batch.validation is not None
    assert report.batch.validation["success"] is True

    report = take_in(opened, write_rows(tmp_path / "b.jsonl", [*["bad"] * 30, *episode("f")]))
    assert report.batch is not None
    assert report.batch.status == "held"
    assert counts_of(report) == {"in": 33, "held": 33}
    assert "quarantine" in report.batch.note


def test_a_batch_of_which_no_row_is_left_names_the_cause_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = [row for i in range(10) for row in episode(f"e{i}", 3, behavior_prob=7.0)]
    report = take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", rows))

    assert report.batch is not None
    assert report.batch.status == "held"
    assert report.batch.note.startswith("None of 30 new rows keeps the contract. 30 rows: ")
    assert report.batch.note.count("behavior_prob") == 1
    assert "Look whether" not in report.batch.note


def test_files_that_are_no_logs_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "logs" / "a.jsonl", episode("e"))
    (tmp_path / "logs" / "b.json.bz2").write_bytes(b"")
    (tmp_path / "logs" / ".hidden").write_bytes(b"")
    report = take_in(lake_at(tmp_path), tmp_path / "logs")
    assert report.passed_over == ("logs/b.json.bz2",)
    assert take_in(lake_at(tmp_path), tmp_path / "logs").passed_over == ("logs/b.json.bz2",)


def test_a_large_batch_is_staged_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGE_BYTES", 0)
    seen: list[bool] = []
    real = ingest.write_parts

    def look_and_write(stage: staging.Stage, *args: Any, **named: Any) -> Any:
        seen.append(any(path.name == "stage.duckdb" for path in (tmp_path / "lake").rglob("*")))
        return real(stage, *args, **named)

    monkeypatch.setattr(ingest, "write_parts", look_and_write)
    lake = lake_at(tmp_path)
    log = write_rows(tmp_path / "a.jsonl", [row for i in range(50) for row in episode(f"e{i}")] + ["bad"])
    assert counts_of(take_in(lake, log)) == {"in": 151, "lake": 150, "quarantined": 1}
    assert seen == [True]
    assert not lake.staging_path.exists()
