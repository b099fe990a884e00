"""What the server remembers of the newest episodes: enough to refuse what the night would find in conflict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets.contract import Contract
from offline_dqn.caps import Turn
from pipelines.serving.log_tails import newest_blocks
from pipelines.serving.logged_times import read_time
from pipelines.serving.outcome import value_at
from pipelines.serving.refusals import RefusedRequestError

_Kept = TypeVar("_Kept")


class Place(NamedTuple):
    """Where a decision stands: names of its episode and of itself, and when it is made."""

    episode_id: str | None
    step: int | None
    decision_id: str
    at: datetime
    cluster: str | None
    where: str

    @property
    def turn(self) -> Turn:
        """What caps count it by."""
        return Turn.of(self.at, self.episode_id or "", self.cluster or "")


@dataclass(frozen=True, slots=True)
class _Last:
    """Where an episode stands: its last step and decision, and its first and newest time."""

    step: int | None
    decision_id: str
    at: datetime
    began_at: datetime


Before = Mapping[str, tuple[_Last | None, _Last]]
"""What was remembered of episodes before a request, and behind it, by id."""


class EpisodeMemory:
    """Last step and time of each episode, and the ids of decisions that clients named. Not safe for threads.

    Args:
        tolerance_s: how far a request's time may lie before its episode's last one.
        capacity: episodes, and decisions, that are remembered, the newest; a conflict with an older one is found by
            ingest.
        has_ended: whether an outcome told that an episode ended with a decision, by the decision's id.
    """

    def __init__(self, tolerance_s: float, capacity: int, has_ended: Callable[[str], bool] = lambda _: False) -> None:
        self._capacity, self._has_ended = capacity, has_ended
        self._tolerance = timedelta(seconds=tolerance_s)
        self._episodes: OrderedDict[str, _Last] = OrderedDict()
        self._decisions: OrderedDict[str, Place] = OrderedDict()

    @staticmethod
    def rebuilt(
        contract: Contract, steps: Path, capacity: int, has_ended: Callable[[str], bool] = lambda _: False
    ) -> EpisodeMemory:
        """The memory as the log in `steps` left it, of the episodes that may go on.

        Without it a restart would let a step be decided twice, and an episode that runs change between champion and
        canary, whose share depends on when the episode began.
        """
        memory = EpisodeMemory(contract.episodes.clock_tolerance_s, capacity, has_ended)
        for place in reversed(_of_running(contract, steps, capacity)):
            memory._know(place)
        return memory

    def enter(self, places: Sequence[Place]) -> Before:
        """Remembers decisions that are about to be made, all or none of them.

        Returns:
            What `leave` wants, should they not be made.

        Raises:
            RefusedRequestError: a decision's id or step is taken, its episode has ended or mixes steps with and without
                numbers, or its time lies before that of its episode.
        """
        episodes: dict[str, _Last] = {}
        ids: dict[str, Place] = {}
        for place in places:
            if place.decision_id in self._decisions or place.decision_id in ids:
                raise RefusedRequestError.of(
                    "decision_exists",
                    f"decision_id '{place.decision_id}' was decided already; the answer stands in the log. Ask with a "
                    "new one, or leave it out",
                    where=place.where,
                    status=409,
                )
            ids[place.decision_id] = place
            if place.episode_id is not None:
                before = episodes.get(place.episode_id) or self._episodes.get(place.episode_id)
                if before is not None:
                    self._check(place, before)
                episodes[place.episode_id] = _after(before, place)
        known = {episode_id: (self._episodes.get(episode_id), last) for episode_id, last in episodes.items()}
        for episode_id, last in episodes.items():
            self._episodes[episode_id] = last
            self._episodes.move_to_end(episode_id)
        self._decisions.update(ids)
        _shrink(self._episodes, self._capacity)
        _shrink(self._decisions, self._capacity)
        return known

    def _know(self, place: Place) -> None:
        """Remembers a decision that is in the log, whatever it says."""
        self._decisions[place.decision_id] = place
        if place.episode_id is not None:
            self._episodes[place.episode_id] = _after(self._episodes.pop(place.episode_id, None), place)

    def leave(self, places: Sequence[Place], before: Before) -> None:
        """Forgets decisions that were not made after all, so that they can be asked for again.

        Args:
            places: that have entered.
            before: what `enter` returned; an episode that has gone on since keeps what it is now.
        """
        for place in places:
            self._decisions.pop(place.decision_id, None)
        for episode_id, (previous, entered) in before.items():
            if self._episodes.get(episode_id) is not entered:
                continue
            if previous is None:
                del self._episodes[episode_id]
            else:
                self._episodes[episode_id] = previous

    def place_of(self, decision_id: str) -> Place | None:
        """Where a decision stands; None where it is no longer remembered."""
        return self._decisions.get(decision_id)

    def is_last(self, decision_id: str) -> bool:
        """Whether a decision is its episode's last, as far as is remembered; may be asked from any thread."""
        place = self._decisions.get(decision_id)
        last = None if place is None or place.episode_id is None else self._episodes.get(place.episode_id)
        return last is None or last.decision_id == decision_id

    def began_at(self, place: Place) -> datetime:
        """When the episode of a decision that has entered began, as far as is remembered."""
        last = None if place.episode_id is None else self._episodes.get(place.episode_id)
        return place.at if last is None else last.began_at

    def _check(self, place: Place, last: _Last) -> None:
        last_step, last_at = last.step, last.at
        if (place.step is None) != (last_step is None):
            has, wants = ("no numbers", "one") if last_step is None else ("numbers", "none")
            raise RefusedRequestError.of(
                "steps_mixed",
                f"the steps of episode '{place.episode_id}' have {has} so far, and this one has {wants}: number all "
                "steps of an episode or none",
                where=place.where,
                status=409,
            )
        if self._has_ended(last.decision_id):
            raise RefusedRequestError.of(
                "episode_ended",
                f"episode '{place.episode_id}' has ended with decision '{last.decision_id}', as an outcome told; begin "
                "another one",
                where=place.where,
                status=409,
            )
        if place.step is not None and last_step is not None and place.step <= last_step:
            raise RefusedRequestError.of(
                "step_taken",
                f"episode '{place.episode_id}' has decided step {last_step} already and is asked for "
                f"step {place.step}; count on from there",
                where=place.where,
                status=409,
            )
        if place.at < last_at - self._tolerance:
            raise RefusedRequestError.of(
                "clock_went_back",
                f"timestamp {place.at:%Y-%m-%dT%H:%M:%S}Z lies before {last_at:%Y-%m-%dT%H:%M:%S}Z, the newest "
                f"time of episode '{place.episode_id}', by more than episodes.clock_tolerance; mend the clock",
                where=place.where,
                status=409,
            )


def _after(before: _Last | None, place: Place) -> _Last:
    """What is remembered of an episode behind one more decision."""
    if before is None:
        return _Last(place.step, place.decision_id, place.at, place.at)
    # Without numbers times tell the order, and within the clock's tolerance the new one may lie before the last.
    is_last = place.step is not None or place.at >= before.at
    return _Last(
        before.step if place.step is None else place.step,
        place.decision_id if is_last else before.decision_id,
        max(before.at, place.at),
        min(before.began_at, place.at),
    )


def _of_running(contract: Contract, steps: Path, capacity: int) -> list[Place]:
    """The logged decisions that may matter, newest first: those that an episode's timeout reaches back to, and before
    them all that running episodes reach back to, at most `capacity`."""
    timeout = timedelta(seconds=contract.episodes.timeout_s)
    found: list[Place] = []
    running = set[str | None]()
    newest = reaches_to = datetime.min.replace(tzinfo=UTC)
    for place in islice(_logged(contract, steps), capacity):
        if not found:
            newest = place.at
            reaches_to = newest - timeout
        if place.at < reaches_to:
            break
        if place.at >= newest - timeout:
            running.add(place.episode_id)
        if place.episode_id in running:
            reaches_to = min(reaches_to, place.at - timeout)
            found.append(place)
    return found


def _logged(contract: Contract, steps: Path) -> Iterator[Place]:
    """The decisions of a log, newest first."""
    named = ("episode_id", "step", "decision_id", "timestamp")
    at = {name: tuple(contract.log_paths(name)[0].split(".")) for name in named}
    at["cluster"] = tuple(contract.episodes.cluster.split(".")) if contract.episodes.cluster is not None else ("",)
    for block in newest_blocks(steps):
        for row in block:
            values: dict[str, Any] = {name: value_at(row, place) for name, place in at.items()}
            instant, decision_id = read_time(contract, values["timestamp"]), values["decision_id"]
            if instant is not None and decision_id is not None:
                step = values["step"] if isinstance(values["step"], int) else None
                yield Place(values["episode_id"], step, str(decision_id), instant, values["cluster"], "")


def _shrink(memory: OrderedDict[str, _Kept], most: int) -> None:
    while len(memory) > most:
        memory.popitem(last=False)
