"""Held batches: nothing of them in the lake until a person decides, and then exactly once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets import batches, journal
from datasets.batches import Batch, BatchCounts, BatchError, find_batch, list_batches, reject_batch, release_batch
from datasets.ingest import IngestReport
from datasets.journal import LakeError
from datasets.lake import Lake
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
    tiny,
    write_rows,
)
from tests.datasets.test_episodes import episodes_of

LATER = datetime(2024, 5, 3, tzinfo=UTC)


def held_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any] | str, lake: Lake | None = None
) -> tuple[Lake, str]:
    """A lake that holds episode 'old', and the id of a held batch with the given rows."""
    suite_says(monkeypatch, True)
    lake = lake or lake_at(folder)
    take_in(lake, write_rows(folder / "old.jsonl", episode("old")))
    suite_says(monkeypatch, False)
    report = take_in(lake, write_rows(folder / "held.jsonl", rows or (*episode("e"), "bad")))
    suite_says(monkeypatch, True)
    return lake, batch_of(report).batch_id


def batch_of(report: IngestReport) -> Batch:
    assert report.batch is not None
    return report.batch


def test_a_batch_whose_suite_fails_is_held_and_the_rows_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    batch = find_batch(lake, batch_id)

    assert batch.status == "held"
    assert batch.note.startswith("The cpu is not well.")
    assert (batch.counts.n_in, batch.counts.n_held, batch.counts.n_lake) == (4, 4, 0)
    assert batch.validation is not None
    assert batch.validation["success"] is False
    assert step_keys(lake) == [("old", step) for step in range(3)]
    assert reasons_of(lake) == []
    assert (lake.held_path / batch_id / "validation.json").exists()


def test_files_of_a_held_batch_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = held_batch(tmp_path, monkeypatch)

    assert take_in(lake, tmp_path / "held.jsonl").unchanged == ("held.jsonl",)


def test_released_rows_arrive_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    batch = release_batch(lake, batch_id, by="R. Reviewer", at=LATER)

    assert batch.status == "released"
    assert batch.note.startswith("released by R. Reviewer; was held: The cpu is not well.")
    assert batch.counts == BatchCounts(n_in=4, n_lake=3, n_quarantined=1)
    assert step_keys(lake) == [(name, step) for name in ("e", "old") for step in range(3)]
    assert reasons_of(lake) == ["the line is not valid JSON"]
    assert ask(lake, "SELECT DISTINCT batch_id FROM {steps} WHERE episode_id = 'e'") == [(batch_id,)]
    assert take_in(lake, tmp_path / "held.jsonl").unchanged == ("held.jsonl",)
    assert not (lake.held_path / batch_id).exists()


def test_rows_that_arrived_meanwhile_are_duplicates_of_the_released_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    other = [step_row("x"), step_row("e", 0), step_row("e", 1, reward=-7)]
    assert counts_of(take_in(lake, write_rows(tmp_path / "other.jsonl", other))) == {"in": 3, "lake": 3}

    batch = release_batch(lake, batch_id, by="me", at=LATER)

    assert batch.counts == BatchCounts(n_in=4, n_lake=1, n_quarantined=2, n_duplicates=1)
    assert ask(lake, "SELECT step, reward FROM {steps} WHERE episode_id = 'e' ORDER BY 1") == [
        (0, -1),
        (1, -7),
        (2, -1),
    ]
    assert "repeats the step in other.jsonl line 3 with other content" in reasons_of(lake)


def test_rejected_rows_are_in_quarantine_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    batch = reject_batch(lake, batch_id, by="me", at=LATER)

    assert (batch.status, batch.counts) == ("rejected", BatchCounts(n_in=4, n_quarantined=4))
    assert step_keys(lake) == [("old", step) for step in range(3)]
    assert reasons_of(lake) == ["rejected by me"] * 3 + ["rejected by me; the line is not valid JSON"]
    assert all(raw for (raw,) in ask(lake, "SELECT raw FROM {quarantine}"))


def test_rejected_files_are_read_again_only_under_another_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    reject_batch(lake, batch_id, by="me", at=LATER)
    assert take_in(lake, tmp_path / "held.jsonl").unchanged == ("held.jsonl",)

    mended = lake_at(tmp_path, tiny(reward={"max": 5.0}))
    assert counts_of(take_in(mended, tmp_path / "held.jsonl")) == {"in": 4, "lake": 3, "quarantined": 1}
    assert take_in(mended, tmp_path / "held.jsonl").batch is None


def test_episodes_of_rejected_rows_that_were_read_again_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch, *episode("e"), step_row("f"))
    reject_batch(lake, batch_id, by="me", at=LATER)
    mended = lake_at(tmp_path, tiny(reward={"max": 5.0}))
    take_in(mended, tmp_path / "held.jsonl")

    assert {name: row["damage"] for name, row in episodes_of(mended).items()} == {"e": None, "f": None, "old": None}


def test_a_batch_held_before_a_feature_was_added_can_be_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, batch_id = held_batch(tmp_path, monkeypatch)
    grown = lake_at(tmp_path, tiny(features={"memory": {"type": "numeric", "nullable": True}}))
    batch = release_batch(grown, batch_id, by="me", at=LATER)

    assert batch.counts.n_lake == 3
    answer = ask(grown, "SELECT DISTINCT observation.cpu, observation.memory FROM {steps} WHERE episode_id = 'e'")
    assert answer == [(0.5, None)]


def test_only_held_batches_are_settled_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)
    release_batch(lake, batch_id, by="me", at=LATER)
    versions = lake.versions()

    for settle in (release_batch, reject_batch):
        with pytest.raises(BatchError, match=r"is not held: it is 'released'\. Nothing was changed"):
            settle(lake, batch_id, by="me", at=LATER)
    assert lake.versions() == versions


def test_unknown_and_ambiguous_batches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = held_batch(tmp_path, monkeypatch)
    newest = [batch.batch_id for batch in list_batches(lake)]

    with pytest.raises(BatchError, match=rf"no batch begin with 'nope'\. The newest are: .*{newest[-1]}"):
        find_batch(lake, "nope")
    with pytest.raises(BatchError, match="2 batches begin with 'b-'"):
        find_batch(lake, "b-")


def test_a_release_that_dies_half_way_is_finished_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, batch_id = held_batch(tmp_path, monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "commit_table", fail)
        with pytest.raises(LakeError, match="whole in its journal"):
            release_batch(lake, batch_id, by="me", at=LATER)

    lake = lake_at(tmp_path)
    assert find_batch(lake, batch_id).status == "released"
    assert len(step_keys(lake)) == 6


def test_a_held_one_step_batch_is_released_row_for_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = step_row(episode_id=None, timestamp=None, step=None)
    one_step = lake_at(tmp_path, tiny(episodes={"kind": "one_step"}))
    lake, batch_id = held_batch(tmp_path, monkeypatch, *[row] * 4, lake=one_step)

    assert release_batch(lake, batch_id, by="me", at=LATER).counts == BatchCounts(n_in=4, n_lake=4)
    days = ask(lake, "SELECT DISTINCT log_date::VARCHAR FROM {steps} WHERE timestamp IS NULL")
    assert days == [(str(NOON.date()),)]


def test_an_account_that_does_not_add_up_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="5 rows came in and 4 are accounted for"):
        BatchCounts(n_in=5, n_lake=4).check()


def test_held_folders_that_belong_to_no_held_batch_go_with_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    lake, batch_id = held_batch(tmp_path, monkeypatch)
    suite_says(monkeypatch, False)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "commit_batch", die)
        with pytest.raises(KeyboardInterrupt):
            take_in(lake, write_rows(tmp_path / "more.jsonl", episode("f")))
    assert len(list(lake.held_path.iterdir())) == 2

    again = batch_of(take_in(lake, tmp_path / "more.jsonl")).batch_id

    assert {folder.name for folder in lake.held_path.iterdir()} == {batch_id, again}


def test_held_rows_reach_the_disk_before_their_batch_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, flushed = batches.commit_batch, list[Path]()

    def commit(lake: Lake, batch: Batch, *args: Any, **options: Any) -> None:
        if batch.status == "held":
            assert flushed == [lake.held_path / batch.batch_id]
        real(lake, batch, *args, **options)

    monkeypatch.setattr(batches, "flush_folder", flushed.append)
    monkeypatch.setattr(batches, "commit_batch", commit)
    held_batch(tmp_path, monkeypatch)

    assert len(flushed) == 1
