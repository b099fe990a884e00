"""What the server remembers of the newest episodes: enough to refuse what the night would find in conflict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from offline_dqn.caps import Turn
from pipelines.serving.refusals import RefusedRequestError

_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class Place:
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
    """The last step and time of an episode, and its first time."""

    step: int | None
    at: datetime
    began_at: datetime


class EpisodeMemory:
    """Last step and time of each episode, and the ids of decisions that clients named. Not safe for threads.

    Args:
        tolerance_s: how far a request's time may lie before its episode's last one.
        capacity: episodes, and decisions, that are remembered, the newest; a conflict with an older one is found by
            ingest.
    """

    def __init__(self, tolerance_s: float, capacity: int) -> None:
        self._capacity = capacity
        self._tolerance = timedelta(seconds=tolerance_s)
        self._episodes: OrderedDict[str, _Last] = OrderedDict()
        self._decisions: OrderedDict[str, Place] = OrderedDict()

    def enter(self, places: Sequence[Place]) -> None:
        """Remembers decisions that are about to be made, all or none of them.

        Raises:
            RefusedRequestError: a decision's id or step is taken, or its time lies before that of its episode.
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
                began_at = place.at if before is None else before.began_at
                step = place.step if place.step is not None or before is None else before.step
                episodes[place.episode_id] = _Last(step, place.at, began_at)
        for episode_id, last in episodes.items():
            self._episodes[episode_id] = last
            self._episodes.move_to_end(episode_id)
        self._decisions.update(ids)
        _shrink(self._episodes, self._capacity)
        _shrink(self._decisions, self._capacity)

    def leave(self, places: Sequence[Place]) -> None:
        """Forgets decisions that were not made after all, so that they can be asked for again."""
        for place in places:
            self._decisions.pop(place.decision_id, None)
            last = None if place.episode_id is None else self._episodes.get(place.episode_id)
            if last is not None and last.at == place.at:  # what was before is forgotten with it, not contradicted
                del self._episodes[place.episode_id or ""]

    def place_of(self, decision_id: str) -> Place | None:
        """Where a decision stands; None where it is no longer remembered."""
        return self._decisions.get(decision_id)

    def began_at(self, place: Place) -> datetime:
        """When the episode of a decision that has entered began, as far as is remembered."""
        last = None if place.episode_id is None else self._episodes.get(place.episode_id)
        return place.at if last is None else last.began_at

    def _check(self, place: Place, last: _Last) -> None:
        last_step, last_at = last.step, last.at
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
                f"timestamp {place.at:%Y-%m-%dT%H:%M:%S}Z lies before {last_at:%Y-%m-%dT%H:%M:%S}Z, that of the last "
                f"decision of episode '{place.episode_id}', by more than episodes.clock_tolerance; mend the clock",
                where=place.where,
                status=409,
            )


def _shrink(memory: OrderedDict[str, _Kept], most: int) -> None:
    while len(memory) > most:
        memory.popitem(last=False)
