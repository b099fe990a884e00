"""Rows that leave the lake or change: all of them or none, accounted for, and gone from the disk when asked."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets import history, journal, lake, rewriting
from datasets.duck import duck
from datasets.journal import AlteredFilesError
from datasets.lake import Lake, lake_lock
from datasets.rewriting import Rewrite, rewrite_held, rewrite_rows
from tests.datasets.builders import (
    ask,
    change_bytes,
    episode,
    lake_at,
    step_keys,
    step_row,
    suite_says,
    take_in,
    tiny,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("quick_suite")

AT = datetime(2024, 6, 1, tzinfo=UTC)


def rewritten(opened: Lake, rewrites: dict[str, Rewrite], **options: Any) -> dict[str, int]:
    with lake_lock(opened):
        return rewrite_rows(opened, rewrites, reason="erased", at=AT, **options)


def two_batches(folder: Path) -> Lake:
    opened = lake_at(folder)
    take_in(opened, write_rows(folder / "a.jsonl", [*episode("e"), *episode("f"), "bad of e"]))
    take_in(opened, write_rows(folder / "b.jsonl", [*episode("g"), *episode("secret-one"), "bad of g"]))
    return opened


def of_episode(name: str) -> Rewrite:
    return Rewrite(f"episode_id = '{name}'")


def bytes_on_disk(folder: Path) -> bytes:
    """What the lake's files hold, Parquet decoded."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet" and "_delta_log" not in path.parts:
            with duck() as connection:
                found.append(str(connection.execute(f"SELECT * FROM read_parquet('{path}')").fetchall()).encode())
        elif path.is_file():
            found.append(path.read_bytes())
    return b"\n".join(found)


def test_the_rows_are_gone_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    others = "SELECT * FROM {steps} WHERE episode_id <> 'e' ORDER BY ALL"
    before = ask(opened, others)

    assert rewritten(opened, {"steps": of_episode("e")}) == {"steps": 3}

    assert ask(opened, others) == before
    assert {name for name, _ in step_keys(opened)} == {"f", "g", "secret-one"}
    assert len(opened.files("steps")) == 3  # the file of the other batch was left alone
    assert not opened.staging_path.exists()


def test_several_tables_change_in_one_commit(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    number = opened.commit_number()

    n = rewritten(opened, {"steps": of_episode("e"), "quarantine": Rewrite("raw LIKE '%of e%'")})

    assert n == {"steps": 3, "quarantine": 1}
    assert opened.commit_number() == number + 1
    assert ask(opened, "SELECT raw FROM {quarantine}") == [("bad of g",)]


def test_a_batchs_account_still_adds_up(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    rewritten(opened, {"steps": Rewrite("step = 0"), "quarantine": of_episode("nobody")})

    assert (
        ask(
            opened,
            """SELECT b.n_lake, count(*), any_value(r.n_rows), any_value(r.reason), any_value(r."table")
        FROM {batches} b JOIN {steps} s USING (batch_id)
        JOIN {removals} r USING (batch_id) GROUP BY batch_id, b.n_lake""",
        )
        == [(6, 4, 2, "erased", "steps")] * 2
    )


def test_values_can_be_replaced_and_rows_kept(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    changed = rewritten(opened, {"quarantine": Rewrite("raw LIKE '%of e%'", {"raw": "NULL"})})

    assert changed == {"quarantine": 1}
    assert ask(opened, "SELECT raw FROM {quarantine} ORDER BY source") == [(None,), ("bad of g",)]
    assert ask(opened, "SELECT count(*) FROM {removals}") == [(0,)]


def test_a_condition_may_ask_other_tables_and_null_is_not_true(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    asked = f"batch_id IN (SELECT batch_id FROM {opened.scan('steps')} WHERE episode_id = 'g')"

    assert rewritten(opened, {"quarantine": Rewrite(asked), "steps": Rewrite("decision_id = 'x'")}) == {
        "quarantine": 1,
        "steps": 0,
    }
    assert len(step_keys(opened)) == 12


@pytest.mark.parametrize("values", [None, {"decision_id": "NULL"}])
def test_a_file_whose_bytes_have_changed_is_not_written_anew(tmp_path: Path, values: dict[str, str] | None) -> None:
    opened = two_batches(tmp_path)
    versions = opened.versions()
    file = change_bytes(opened)
    ((changed,),) = ask(opened, f"SELECT min(episode_id) FROM read_parquet('{file}')")

    with pytest.raises(AlteredFilesError, match=file.name):
        rewritten(opened, {"steps": Rewrite(f"episode_id = '{changed}'", values)})
    assert opened.versions() == versions

    others = {name for name, _ in step_keys(opened)} - {
        name for (name,) in ask(opened, f"SELECT episode_id FROM read_parquet('{file}')")
    }
    assert rewritten(opened, {"steps": of_episode(others.pop())}) == {"steps": 3}  # of the whole file


def test_nothing_to_remove_is_no_commit(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    before = opened.versions()

    assert rewritten(opened, {"steps": of_episode("nobody")}) == {"steps": 0}
    assert opened.versions() == before


def test_structs_that_have_grown_keep_old_and_new_values(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    grown = lake_at(tmp_path, tiny(features={"memory": {"type": "numeric", "nullable": True}}))
    observation = {"cpu": 0.5, "zone": None, "busy": None, "load": [1.0, 2.0], "memory": 7.0}
    take_in(grown, write_rows(tmp_path / "c.jsonl", [*episode("e", 2, observation=observation), step_row("h")]))

    with lake_lock(opened):
        rewrite_rows(grown, {"steps": Rewrite("episode_id IN ('f', 'h')")}, reason="erased", at=AT)

    shown = "SELECT episode_id, observation.memory, observation.load FROM {steps} WHERE step = 0 ORDER BY 1"
    assert ask(grown, shown) == [("e", None, [0.0, 1.0]), ("g", None, [0.0, 1.0]), ("secret-one", None, [0.0, 1.0])]


def test_purged_rows_are_nowhere_on_the_disk(tmp_path: Path) -> None:
    opened = two_batches(tmp_path)
    rewritten(opened, {"steps": of_episode("e")})  # leaves an older version behind
    assert b"secret-one" in bytes_on_disk(opened.root)

    n = rewritten(opened, {"steps": of_episode("secret-one")}, purge=True)

    assert n == {"steps": 3}
    assert b"secret-one" not in bytes_on_disk(opened.root)
    assert len(list((opened.root / "steps" / "_delta_log").glob("*.json"))) == 1
    assert len(list((opened.root / "steps").rglob("*.parquet"))) == len(opened.files("steps")) + 1  # a checkpoint
    take_in(lake_at(tmp_path), write_rows(tmp_path / "c.jsonl", episode("later")))
    assert {name for name, _ in step_keys(opened)} == {"f", "g", "later"}


@pytest.mark.parametrize("place", ["write_journal", "commit_table", "purge_history", "vacuum", "end_journal"])
def test_killed_anywhere_it_happened_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    opened = two_batches(tmp_path)
    everything = step_keys(opened)

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    home: Any = {"commit_table": journal, "vacuum": history}.get(place, lake)
    with monkeypatch.context() as patch:
        patch.setattr(home, place, cut_off)
        with pytest.raises(KeyboardInterrupt):
            rewritten(opened, {"steps": of_episode("secret-one"), "quarantine": Rewrite("true")}, purge=True)

    again = lake_at(tmp_path)
    if place == "write_journal":
        assert step_keys(again) == everything
    else:
        assert {name for name, _ in step_keys(again)} == {"e", "f", "g"}
        assert ask(again, "SELECT sum(n_rows) FROM {removals}") == [(5,)]
        assert b"secret-one" not in bytes_on_disk(again.root)
    assert not again.journal_path.exists()
    assert not list(again.root.rglob("*.part"))


def test_a_full_disk_leaves_the_rows_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = two_batches(tmp_path)
    before = (step_keys(opened), opened.versions())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rewriting, "_write_changed", full)
        with pytest.raises(OSError, match="No space left"):
            rewritten(opened, {"steps": Rewrite("step = 0")})
    assert (step_keys(opened), opened.versions()) == before
    assert rewritten(opened, {"steps": Rewrite("step = 0")}) == {"steps": 4}


def test_rows_of_held_batches_leave_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, False)
    opened = lake_at(tmp_path)
    report = take_in(opened, write_rows(tmp_path / "a.jsonl", [*episode("e"), *episode("secret-one"), "bad"]))
    assert report.batch is not None
    assert report.batch.status == "held"

    rewrites = {"steps": of_episode("secret-one"), "quarantine": Rewrite("raw = 'bad'")}
    with lake_lock(opened):
        assert rewrite_held(opened, rewrites) == {report.batch.batch_id: {"steps": 3, "quarantine": 1}}
        assert rewrite_held(opened, rewrites) == {}

    assert b"secret-one" not in bytes_on_disk(opened.held_path)
