from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
import zstandard

from datasets import staging
from datasets.consumed import History, look_for_unread
from datasets.logfiles import LogFileError, find_log_files
from datasets.texts import TextCopy, copy_with_other_lines
from tests.datasets.builders import ask, counts_of, episode, lake_at, step_row, suite_says, take_in, text_of


def copied(folder: Path, **files: bytes) -> TextCopy:
    copy = TextCopy(folder / "copy")
    for number, (name, content) in enumerate(files.items()):
        path = folder / name.replace("_", ".")
        path.write_bytes(content)
        (log,) = find_log_files([path])
        unread = look_for_unread(log, History())
        assert unread is not None
        copy.add(log, unread, number)
    return copy


def test_files_of_every_kind_become_one_text_whose_rows_know_their_place(tmp_path: Path) -> None:
    copy = copied(
        tmp_path,
        a_jsonl=b"1\n2\n",
        b_jsonl_gz=gzip.compress(b"\xef\xbb\xbf3\r\n\r\n  \n4"),
        c_jsonl_zst=zstandard.compress(b"\n\n5\n"),
        d_jsonl=b"\n",
        e_jsonl=b"6\n",
    )
    text = copy.finished()

    assert text.path.read_bytes() == b"1\n2\n3\r\n4\n5\n6\n"
    assert [text.place_of(row) for row in range(text.n_rows)] == [(0, 1), (0, 2), (1, 1), (1, 4), (2, 3), (4, 1)]
    assert list(text.lines_at([0, 2, 3, 5])) == [b"1", b"3", b"4", b"6"]
    assert text.rows_of(1, [4, 1]) == [2, 3]


def test_a_damaged_file_leaves_no_trace_in_the_text(tmp_path: Path) -> None:
    copy = copied(tmp_path, a_jsonl=b"1\n")
    cut = gzip.compress(b"".join(b"%d\n" % random.Random(i).getrandbits(64) for i in range(100_000)))
    (tmp_path / "b.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    (log,) = find_log_files([tmp_path / "b.jsonl.gz"])
    unread = look_for_unread(log, History())
    assert unread is not None
    with pytest.raises(LogFileError, match=r"b\.jsonl\.gz is damaged"):
        copy.add(log, unread, 1)

    text = copy.finished()
    assert (text.n_rows, text.path.read_bytes()) == (1, b"1\n")


def test_lines_are_replaced_in_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"".join(b"%07d\n" % i for i in range(300_000)))  # more than one block
    copy_with_other_lines(tmp_path / "a", tmp_path / "b", {0: b"{}", 150_000: b"{}", 299_999: b"{}"})
    lines = (tmp_path / "b").read_bytes().splitlines()
    assert [i for i, line in enumerate(lines) if line == b"{}"] == [0, 150_000, 299_999]
    assert len(lines) == 300_000


def test_thousands_of_small_files_are_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, True)
    folder = tmp_path / "logs"
    folder.mkdir()
    for i in range(2000):
        rows = episode(f"e{i}")
        name = folder / f"{i:04d}.jsonl"
        if i % 3:
            name.write_text(text_of(rows))
        else:
            name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text_of(rows).encode()))
    reads: list[Path] = []
    real = staging.read_fast
    monkeypatch.setattr(staging, "read_fast", lambda *args, **named: reads.append(args[3]) or real(*args, **named))
    lake = lake_at(tmp_path)

    assert counts_of(take_in(lake, folder)) == {"in": 6000, "lake": 6000}
    assert len(reads) == 1
    wrong = ask(
        lake,
        "SELECT * FROM {steps} WHERE source_line <> step + 1 "
        "OR 'e' || regexp_extract(source, '(\\d+)\\.jsonl', 1)::INTEGER <> episode_id",
    )
    assert wrong == []
    assert take_in(lake, folder).batch is None


def test_a_log_that_grows_while_it_is_read_gives_only_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, True)
    monkeypatch.setattr("datasets.texts.IN_PLACE_BYTES", 0)
    log = tmp_path / "a.jsonl"
    log.write_text(text_of(episode("e")))
    real = staging.read_fast

    def read(*args: object, **named: object) -> None:
        with log.open("a") as file:
            file.write(text_of([step_row("late")]))
        real(*args, **named)

    lake = lake_at(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "read_fast", read)
        assert counts_of(take_in(lake, log)) == {"in": 3, "lake": 3}
    n_late = log.read_text().count("late")
    late = take_in(lake, log)
    assert late.batch is not None
    assert late.batch.counts.n_in == n_late
    assert ask(lake, "SELECT count(*) FROM {steps} WHERE episode_id = 'late'") == [(1,)]
