"""The canary's files: what is read, and what a kill between two writes leaves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.canary_state import (
    Canary,
    CanaryError,
    Share,
    canary_path,
    last_canary,
    read_canary,
    read_events,
    record_event,
)

START = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    root: Path


def canary(**changes: Any) -> Canary:
    usual: dict[str, Any] = {
        "id": 1, "release": 2, "champion": 1, "kind": "slices", "salt": "s", "plan": (0.05, 0.2, 0.5, 1.0),
        "shares": (Share(at=START, share=0.05),), "started_at": START, "started_by": "Ada", "digest": "d",
        "rules": "r", "certified_share": 1.0,
    }  # fmt: skip
    return Canary(**{**usual, **changes})


def advanced(was: Canary, share: float, at: datetime) -> Canary:
    return was.model_copy(update={"shares": (*was.shares, Share(at=at, share=share))})


def test_what_was_recorded_is_read_until_it_ended(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert read_canary(place) is None
    record_event(place, "started", canary(), START)
    assert read_canary(place) == canary()
    ended = canary().model_copy(update={"ended_at": START, "ending": "aborted", "reason": "by hand"})
    record_event(place, "ended", ended, START)
    assert read_canary(place) is None
    assert last_canary(place) == ended
    assert [event["event"] for event in read_events(place)] == ["started", "ended"]


def test_a_copy_that_a_kill_left_behind_the_history_is_mended(tmp_path: Path) -> None:
    place = Place(tmp_path)
    record_event(place, "started", canary(), START)
    old = canary_path(place).read_text()
    record_event(place, "advanced", advanced(canary(), 0.2, START + timedelta(hours=1)), START + timedelta(hours=1))
    canary_path(place).write_text(old)  # killed between the two writes
    with (tmp_path / "serving" / "canary_history.jsonl").open("a") as history:
        history.write('{"at": "2026-01-05T1')  # and another time within a line
    mended = last_canary(place)
    assert mended is not None
    assert mended.share == 0.2
    assert read_canary(place) == mended


@pytest.mark.parametrize("text", ["", "{}", '{"id": 1', "null"])
def test_a_torn_copy_is_told_and_mended(tmp_path: Path, text: str) -> None:
    place = Place(tmp_path)
    record_event(place, "started", canary(), START)
    canary_path(place).write_text(text)
    with pytest.raises(CanaryError, match=r"canary\.json cannot be read .*so the champion acts alone"):
        read_canary(place)
    assert last_canary(place) == canary()
    assert read_canary(place) == canary()


def test_a_copy_without_a_history_is_no_canary(tmp_path: Path) -> None:
    place = Place(tmp_path)
    record_event(place, "started", canary(), START)
    (tmp_path / "serving" / "canary_history.jsonl").unlink()
    assert last_canary(place) is None
    assert read_canary(place) is None


def test_a_history_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "canary_history.jsonl").write_text("what\n")
    with pytest.raises(CanaryError, match="Restore it from a backup"):
        last_canary(Place(tmp_path))


def test_an_episode_keeps_the_policy_that_it_began_with() -> None:
    later = START + timedelta(days=1)
    ramped = advanced(canary(), 0.5, later)
    ids = [f"e-{i}" for i in range(2000)]
    before = {e for e in ids if ramped.assigned(e, later - timedelta(seconds=1))}
    after = {e for e in ids if ramped.assigned(e, later)}
    assert before < after
    assert 60 < len(before) < 140  # 100 expected, 5 % of 2000
    assert before == {e for e in ids if canary().assigned(e, START)}
    assert not any(ramped.assigned(e, START - timedelta(seconds=1)) for e in ids)
    ended = ramped.model_copy(update={"ended_at": later + timedelta(hours=1)})
    assert not any(ended.assigned(e, later + timedelta(hours=1)) for e in ids)
    assert ended.share == 0.0


def test_a_switchback_hands_over_whole_blocks_only() -> None:
    switch = advanced(
        canary(kind="switchback", block_s=3600.0, shares=(Share(at=START, share=0.5),)),
        1.0,
        START + timedelta(hours=5.5),
    )  # both steps lie in the middle of a block
    by_block: dict[int, set[bool]] = {}
    for minute in range(12 * 60):
        at = START - timedelta(minutes=30) + timedelta(minutes=minute)
        by_block.setdefault(minute // 60, set()).add(switch.assigned(f"e-{minute}", at))
    assert all(len(found) == 1 for found in by_block.values())
    assert by_block[0] == {False}  # it began in the middle of this one
    assert all(by_block[b] == {True} for b in range(7, 12))
    assert {True, False} == {one for b in range(1, 6) for one in by_block[b]}
