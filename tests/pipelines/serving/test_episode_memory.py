"""What a server knows of running episodes: also after a restart, and after a decision that was not made after all."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.serving.episode_memory import EpisodeMemory, Place
from pipelines.serving.refusals import RefusedRequestError
from tests.datasets.builders import step_row, tiny

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
CONTRACT = tiny(columns={"decision_id": "ref.id"}, episodes={"timeout": "1h"})


def place(episode: str, step: int | None, minutes: float, decision_id: str | None = None) -> Place:
    at = NOON + timedelta(minutes=minutes)
    return Place(episode, step, decision_id or f"{episode}/{minutes}", at, None, "")


def write(folder: Path, *places: Place) -> None:
    rows = [
        step_row(each.episode_id or "", each.step or 0, timestamp=each.at.isoformat())
        | {"ref": {"id": each.decision_id}}
        for each in places
    ]
    (folder / "served-20260105-000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_restart_forgets_no_running_episode(tmp_path: Path) -> None:
    # "long" began two hours before the last line, and was never idle for an hour; "over" was.
    long = [place("long", step, 50.0 * step) for step in range(3)]
    write(tmp_path, place("over", 0, -5), *long[:2], place("other", 7, 99), long[2])
    memory = EpisodeMemory.rebuilt(CONTRACT, tmp_path, 100)

    for again in (place("long", 2, 101), place("other", 7, 101)):
        with pytest.raises(RefusedRequestError, match="has decided step"):
            memory.enter([again])
    with pytest.raises(RefusedRequestError, match="'other/99' was decided already"):
        memory.enter([place("new", 0, 101, "other/99")])
    following = place("long", 3, 101)
    memory.enter([following])
    assert memory.began_at(following) == NOON
    assert memory.place_of("over/-5") is None
    memory.enter([place("over", 0, 101)])


def test_a_restart_remembers_no_more_than_it_may(tmp_path: Path) -> None:
    write(tmp_path, *(place(f"e{number}", 0, number) for number in range(9)))

    memory = EpisodeMemory.rebuilt(CONTRACT, tmp_path, 2)

    assert [memory.place_of(f"e{number}/{number}") is not None for number in range(6, 9)] == [False, True, True]


def test_what_was_not_decided_leaves_the_episode_as_it_was() -> None:
    memory = EpisodeMemory(0.0, 100)
    memory.enter([place("e", 4, 0)])
    failed = [place("e", 5, 1), place("e", 6, 2), place("new", 0, 2)]
    memory.leave(failed, memory.enter(failed))

    with pytest.raises(RefusedRequestError, match="has decided step 4 already"):
        memory.enter([place("e", 4, 3)])
    again = [place("e", 5, 3), place("new", 0, 3)]
    memory.enter(again)
    assert [memory.began_at(each) for each in again] == [NOON, NOON + timedelta(minutes=3)]
