"""Log files: which there are, what is new in them, and how a damaged one fails."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from datasets.consumed import Consumed, History, look_for_unread
from datasets.logfiles import (
    LINE,
    PROBLEM,
    RAW,
    LogFile,
    LogFileError,
    Unread,
    find_log_files,
    read_chunks,
)


def log_at(path: Path, content: bytes) -> LogFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (log,) = find_log_files([path])
    return log


def read(log: LogFile, unread: Unread | None = None) -> list[tuple[int, str, str | None]]:
    """Line, raw text and problem of every row."""
    unread = unread or look_for_unread(log, History())
    assert unread is not None
    columns = [(c[LINE].to_pylist(), c[RAW].to_pylist(), c[PROBLEM].to_pylist()) for c in read_chunks(log, unread)]
    return [row for lines, raws, problems in columns for row in zip(lines, raws, problems, strict=True)]


def consumed(unread: Unread) -> Consumed:
    return Consumed(unread.digest, unread.end, unread.n_lines, unread.digest_seen, unread.head)


# --- finding


def test_folders_are_searched_and_hidden_and_other_files_passed_over(tmp_path: Path) -> None:
    logs = ["b.jsonl", "a/x.csv.gz", "a/y.JSON", "a/z.parquet"]
    for name in [*logs, ".hidden.jsonl", "_tmp/q.csv", "notes.txt", "t.parquet.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    found = find_log_files([tmp_path, tmp_path / "b.jsonl"])

    assert [str(log.path.relative_to(tmp_path)) for log in found] == sorted(logs)


def test_missing_path_foreign_file_and_folder_without_logs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LogFileError, match=r"gone\.jsonl does not exist\. Name a log file or a folder"):
        find_log_files([tmp_path / "gone.jsonl"])
    with pytest.raises(LogFileError, match=r"notes\.txt is no log that can be read: it ends in none of \.jsonl"):
        find_log_files([tmp_path / "notes.txt"])
    with pytest.raises(LogFileError, match=r"holds no log: looked for files ending in .* and found 1 other files"):
        find_log_files([tmp_path])


def test_a_file_that_vanished_is_an_error_with_its_name(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl", b"{}\n")
    log.path.unlink()
    with pytest.raises(LogFileError, match=r"a\.jsonl cannot be read: No such file"):
        look_for_unread(log, History())


# --- what is unread


def test_a_last_line_without_newline_waits_until_the_file_is_unchanged(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl", b'{"a":1}\n{"a":')
    first = look_for_unread(log, History())
    assert first is not None
    assert (first.start, first.end, first.n_pending, first.n_lines) == (0, 8, 1, 1)

    second = look_for_unread(log, History([consumed(first)]))
    assert second is not None
    assert (second.start, second.end, second.n_pending) == (8, 13, 0)
    assert read(log, second) == [(2, '{"a":', None)]
    assert look_for_unread(log, History([consumed(first), consumed(second)])) is None


def test_a_line_that_was_completed_meanwhile_is_read_whole(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl", b'{"a":1}\n{"a":')
    first = look_for_unread(log, History())
    assert first is not None
    log.path.write_bytes(b'{"a":1}\n{"a":2}\n')

    second = look_for_unread(log, History([consumed(first)]))

    assert second is not None
    assert read(log, second) == [(2, '{"a":2}', None)]


def test_blank_lines_count_in_line_numbers_of_the_tail(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl", b"1\n\n\n")
    first = look_for_unread(log, History())
    assert first is not None
    log.path.write_bytes(b"1\n\n\n2\n")
    second = look_for_unread(log, History([consumed(first)]))

    assert read(log, second) == [(4, "2", None)]


def test_quoted_newlines_count_in_line_numbers_of_the_tail(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.csv", b'a,b\n1,"x\ny\nz"\n')
    first = look_for_unread(log, History())
    assert first is not None
    log.path.write_bytes(b'a,b\n1,"x\ny\nz"\n2,w\n')
    second = look_for_unread(log, History([consumed(first)]))

    assert read(log, second) == [(5, "2,w", None)]


def test_renamed_and_grown_file_is_recognised_by_its_prefix(tmp_path: Path) -> None:
    first = look_for_unread(log_at(tmp_path / "a.jsonl", b"1\n2\n"), History())
    assert first is not None
    second = look_for_unread(log_at(tmp_path / "b.jsonl", b"1\n2\n3\n"), History([consumed(first)]))

    assert second is not None
    assert (second.start, second.n_lines_before) == (4, 2)


def test_compressed_and_typed_files_are_recognised_whole_only(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl.gz", gzip.compress(b"1\n"))
    first = look_for_unread(log, History())
    assert first is not None
    assert look_for_unread(log, History([consumed(first)])) is None
    log.path.write_bytes(log.path.read_bytes() + gzip.compress(b"2\n"))
    second = look_for_unread(log, History([consumed(first)]))
    assert second is not None
    assert second.start == 0


@given(chunks=st.lists(st.binary(max_size=12), min_size=1, max_size=6))
def test_whatever_is_appended_every_byte_is_read_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    history: list[Consumed] = []
    position, content = 0, b""
    for chunk in [*chunks, b""]:  # the last look finds the file unchanged
        content += chunk
        log = log_at(path, content)
        unread = look_for_unread(log, History(history))
        if unread is not None:
            assert unread.start == position
            assert unread.digest == hashlib.sha256(content[: unread.end]).hexdigest()
            assert content[: unread.end].count(b"\n") == unread.n_lines
            position = unread.end
            history.append(consumed(unread))
    assert position == len(content)


# --- rows


def test_byte_order_mark_blank_lines_and_carriage_returns_are_no_rows(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.jsonl", b"\xef\xbb\xbf1\r\n\r\n   \n2\n")

    assert read(log) == [(1, "1", None), (4, "2", None)]


def test_bytes_that_are_no_utf8_are_shown_and_named(tmp_path: Path) -> None:
    text = log_at(tmp_path / "a.jsonl", b'{"a": "\xff"}\n1\n')
    assert read(text) == [(1, '{"a": "\\xff"}', "the line is not UTF-8 text"), (2, "1", None)]

    table = log_at(tmp_path / "a.csv", b"a,b\n1,\xe9\n2,x\n")
    assert read(table) == [(2, "1,\\xe9", "the line is not UTF-8 text"), (3, "2,x", None)]


def test_csv_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.csv", b"\xef\xbb\xbfa,b\n1,2\n")
    unread = look_for_unread(log, History())
    assert unread is not None
    (chunk,) = read_chunks(log, unread)

    assert chunk["a"].to_pylist() == ["1"]


def test_csv_rows_that_do_not_fit_the_header_keep_their_text(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.csv", b'a,b\n1,2\n1\n1,2,3\n\n4,"x\ny"\n5,"un\nclosed\n6,7\n')

    assert read(log) == [
        (2, "1,2", None),
        (3, "1", "the line has 1 fields and the header has 2"),
        (4, "1,2,3", "the line has 3 fields and the header has 2"),
        (6, '4,"x\ny"', None),
        (8, '5,"un', "the line is not valid CSV: unexpected end of data"),  # and it swallows nothing behind it
        (9, "closed", "the line has 1 fields and the header has 2"),
        (10, "6,7", None),
    ]


def test_csv_goes_on_after_a_line_that_is_no_csv(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.csv", b'a,b\n1,"x"y\n2,z\n')

    assert [(line, problem is None) for line, _, problem in read(log)] == [(2, False), (3, True)]


def test_csv_columns_without_a_name_or_with_the_same_get_one(tmp_path: Path) -> None:
    log = log_at(tmp_path / "a.csv", b",a,A,a\n0,1,2,3\n")
    unread = look_for_unread(log, History())
    assert unread is not None
    (chunk,) = read_chunks(log, unread)

    assert chunk.column_names[:4] == ["__column_1", "a", "A__column_3", "a__column_4"]


def test_csv_with_a_header_alone_and_empty_files_have_no_rows(tmp_path: Path) -> None:
    for name, content in {"a.csv": b"a,b\n", "b.csv": b"", "c.jsonl": b"", "d.jsonl": b"\n\n"}.items():
        assert read(log_at(tmp_path / name, content)) == []


LINES = b"".join(b'{"n": %d}\n' % n for n in range(20_000))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_is_read_whole(tmp_path: Path, suffix: str) -> None:
    data = gzip.compress(LINES) if suffix == ".gz" else zstandard.compress(LINES)

    assert len(read(log_at(tmp_path / f"a.jsonl{suffix}", data))) == 20_000


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    data = zstandard.compress(b"1\n") + zstandard.compress(b"2\n") + zstandard.compress(b"")

    assert [raw for _, raw, _ in read(log_at(tmp_path / "a.jsonl.zst", data))] == ["1", "2"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_that_is_cut_anywhere_is_damaged(tmp_path: Path, suffix: str) -> None:
    data = gzip.compress(LINES) if suffix == ".gz" else zstandard.compress(LINES)
    for share in (0.01, 0.2, 0.5, 0.9, 0.999):
        log = log_at(tmp_path / f"a.jsonl{suffix}", data[: max(1, int(len(data) * share))])
        with pytest.raises(LogFileError, match=r"is damaged: .* Nothing of it was taken; put the whole file there"):
            read(log)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_with_a_changed_byte_is_damaged(tmp_path: Path, suffix: str) -> None:
    options = zstandard.ZstdCompressor(write_checksum=True)
    data = bytearray(gzip.compress(LINES) if suffix == ".gz" else options.compress(LINES))
    data[-6] ^= 1  # inside gzip's checksum, and in zstd's last block
    with pytest.raises(LogFileError, match="is damaged"):
        read(log_at(tmp_path / f"a.jsonl{suffix}", bytes(data)))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".parquet", ".arrow", ".feather"])
def test_a_file_that_is_not_what_its_name_says_is_damaged(tmp_path: Path, suffix: str) -> None:
    name = f"a.jsonl{suffix}" if suffix in {".gz", ".zst"} else f"a{suffix}"
    with pytest.raises(LogFileError, match="is damaged"):
        read(log_at(tmp_path / name, b"this is only text, and long enough to be looked at\n"))


def test_a_cut_parquet_file_is_damaged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(LogFileError, match="is damaged"):
        read(log_at(tmp_path / "a.parquet", data[: len(data) // 2]))
