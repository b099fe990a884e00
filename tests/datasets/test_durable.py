"""Durable files: whole or not at all, and lines that stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasets.durable import append_record, flush_folder, read_records, write_durably


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_durably(tmp_path / "new" / "a.json", "text ä")
    write_durably(tmp_path / "new" / "a.json", b"\x00bytes")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert (tmp_path / "new" / "a.json").read_bytes() == b"\x00bytes"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_durably(tmp_path / "a", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(tmp_path / "a", "after")

    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_bytes_and_the_name_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(opened: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{opened}").resolve().is_dir() else "file")
        real_sync(opened)

    def replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "a", "x")

    assert done == ["file", "rename", "folder"]


def test_records_come_back_in_order_and_a_cut_off_line_did_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "log" / "records.jsonl"
    assert read_records(path) == []
    append_record(path, {"n": 1, "text": "line\nbreak\u2028 ä"})
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    assert [record["n"] for record in read_records(path)] == [1]
    append_record(path, {"n": 3})

    assert read_records(path) == [{"n": 1, "text": "line\nbreak\u2028 ä"}, {"n": 3}]


def test_everything_in_a_folder_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "in" / "deep" / "a", "x")
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda opened: flushed.append(Path(f"/proc/self/fd/{opened}").resolve().name))
    flush_folder(tmp_path / "in")

    assert sorted(flushed) == ["a", "deep", "in"]
