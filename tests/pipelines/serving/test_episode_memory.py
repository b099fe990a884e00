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
        | {"step": each.step, "ref": {"id": each.decision_id}}
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


@pytest.mark.parametrize(("first", "then"), [(0, None), (None, 1)])
def test_steps_with_and_without_numbers_do_not_mix(first: int | None, then: int | None, tmp_path: Path) -> None:
    write(tmp_path, place("e", first, 0))
    mixed = place("e", then, 1)

    for memory, asked in [
        (EpisodeMemory.rebuilt(CONTRACT, tmp_path, 100), [mixed]),
        (EpisodeMemory(0.0, 100), [place("e", first, 0), mixed]),
    ]:
        with pytest.raises(RefusedRequestError, match="number all steps of an episode or none") as refused:
            memory.enter(asked)
        assert (refused.value.status, refused.value.problems[0].cause) == (409, "steps_mixed")
        assert memory.place_of(mixed.decision_id) is None


def test_an_episode_that_has_ended_does_not_go_on() -> None:
    ended = {"e/1"}
    memory = EpisodeMemory(0.0, 100, lambda decision_id: decision_id in ended)
    memory.enter([place("e", 0, 0), place("e", 1, 1), place("other", 0, 1)])

    with pytest.raises(RefusedRequestError, match="has ended with decision 'e/1'") as refused:
        memory.enter([place("e", 2, 2)])
    assert (refused.value.status, refused.value.problems[0].cause) == (409, "episode_ended")
    memory.enter([place("other", 1, 2)])
    ended.clear()  # the outcome could not be written after all
    memory.enter([place("e", 2, 2)])


def test_the_last_decision_is_told_by_number_or_else_by_time() -> None:
    memory = EpisodeMemory(120.0, 100)
    for step in (0, 1):  # the second one of each episode lies a minute before the first
        memory.enter([place("numbered", step, 1 - step), place("timed", None, 1 - step)])

    names = ("numbered/1", "numbered/0", "timed/1", "timed/0", "nobody's")
    assert [memory.is_last(name) for name in names] == [False, True, True, False, True]
    failed = [place("timed", None, 2)]
    before = memory.enter(failed)
    assert not memory.is_last("timed/1")
    memory.leave(failed, before)
    assert memory.is_last("timed/1")
