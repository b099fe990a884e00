"""Files that tell by their name what their bytes are."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from datasets.journal import AlteredFilesError, refuse_altered
from datasets.named_bytes import altered_files, altered_message, named_by_bytes
from tests.datasets.builders import episode, lake_at, take_in, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")


def test_a_name_carries_the_start_of_the_digest_and_never_two(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"rows")
    digest = hashlib.sha256(b"rows").hexdigest()[:16]

    first = named_by_bytes("log_date=2026-01-05/b-20260105T020304-0a1b2c.parquet", path)
    path.write_bytes(b"fewer")
    again = named_by_bytes(f"{first.removesuffix('.parquet')}-7.parquet", path)  # as a rewritten file is called

    assert first == f"log_date=2026-01-05/b-20260105T020304-0a1b2c.{digest}.parquet"
    assert again == (
        f"log_date=2026-01-05/b-20260105T020304-0a1b2c-7.{hashlib.sha256(b'fewer').hexdigest()[:16]}.parquet"
    )


def test_every_changed_byte_of_a_lakes_file_is_seen(tmp_path: Path) -> None:
    """150 single bytes, of which Parquet's readers miss most."""
    lake = lake_at(tmp_path / "lake")
    take_in(lake, write_rows(tmp_path / "log.jsonl", [row for n in range(40) for row in episode(f"e{n}")]))
    (file,) = (Path(f) for f in lake.files("steps") if not Path(f).name.startswith("columns-"))
    whole, rng = file.read_bytes(), random.Random(1)
    refuse_altered(lake.files("steps"))

    for _ in range(150):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        file.write_bytes(content)
        assert altered_files(lake.files("steps")) == [str(file)]

    with pytest.raises(AlteredFilesError, match="Restore these files from a backup") as told:
        refuse_altered(lake.files("steps"))
    assert str(file) in str(told.value)
    file.unlink()
    assert altered_files([str(file)]) == [str(file)]


def test_a_file_whose_name_tells_nothing_passes_and_many_are_not_all_listed(tmp_path: Path) -> None:
    (tmp_path / "columns-0123456789ab.parquet").write_bytes(b"")

    assert altered_files([str(tmp_path / "columns-0123456789ab.parquet")]) == []
    assert "a, b, c and 2 more." in altered_message(list("abcde"))
