"""Counting capped actions: how often each was taken within its window, and decisions that never exceed a cap.

Pure: times come in, nothing is read or written. `pipelines.serving.caps` keeps the counts across restarts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from datasets.caps import Cap, counter_field

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Turn(NamedTuple):
    """One decision to be made: when, and whose caps it counts towards.

    Attributes:
        at_us: its instant, in microseconds since 1970 UTC.
        episode: `episode_id` as the log holds it.
        cluster: cluster as the log holds it; "" where there is none.
    """

    at_us: int
    episode: str = ""
    cluster: str = ""

    @staticmethod
    def of(at: datetime, episode: str = "", cluster: str = "") -> Turn:
        """A decision at an instant, which knows its zone."""
        return Turn(microseconds(at), episode, cluster)

    def share(self, cap: Cap) -> str:
        """Whose actions a cap counts together with this decision's."""
        return {"all": "", "episode": self.episode, "cluster": self.cluster}[cap.by]


def microseconds(at: datetime) -> int:
    """Microseconds since 1970 UTC of an instant, exactly.

    Raises:
        ValueError: it has no zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at} has no zone, so it is no instant")
    return (at - _EPOCH) // timedelta(microseconds=1)


class CapCounter:
    """How often each capped action was taken within its window, (now - per, now].

    Time never goes back for it: a decision stamped earlier than the newest one it has seen counts as made at that one.
    So a clock that is put back allows nothing more, and until it has caught up nothing expires. One that jumps ahead
    cannot be told from time that passes.

    Args:
        caps: by action, as the contract's `actions.caps`.
    """

    def __init__(self, caps: Mapping[str, Cap]) -> None:
        self.caps = dict(caps)
        self.fields = {action: counter_field(action, cap) for action, cap in caps.items()}
        """Feature that each action is counted in."""
        self.now_us = 0
        """Its now, in microseconds since 1970 UTC."""
        self._order: dict[str, deque[tuple[int, str]]] = {action: deque() for action in caps}  # by time, oldest first
        self._counts: dict[str, Counter[str]] = {action: Counter() for action in caps}

    def taken(self, turn: Turn) -> dict[str, float]:
        """What the counters' features hold for a decision, by feature."""
        self.advance(turn.at_us)
        return {
            field: float(self._counts[action][turn.share(self.caps[action])]) for action, field in self.fields.items()
        }

    def count(self, action: str, turn: Turn) -> bool:
        """Takes note of an action; of one without a cap nothing is kept.

        Returns:
            Whether the cap is reached with it: from now on the action is forbidden for this share.
        """
        self.advance(turn.at_us)
        if action not in self.caps:
            return False
        share = turn.share(self.caps[action])
        self._add(action, self.now_us, share)
        return self._counts[action][share] == self.caps[action].at_most

    def _add(self, action: str, at_us: int, share: str) -> None:
        self._order[action].append((at_us, share))
        self._counts[action][share] += 1

    def advance(self, at_us: int) -> None:
        """Moves its now to an instant, if that is later, and forgets what has left its window."""
        if at_us <= self.now_us:
            return
        self.now_us = at_us
        for action, cap in self.caps.items():
            order, counts = self._order[action], self._counts[action]
            while order and order[0][0] <= at_us - cap.per_us:
                _, share = order.popleft()
                counts[share] -= 1
                if not counts[share]:
                    del counts[share]


def decide_in_turn(
    counter: CapCounter,
    turns: Sequence[Turn],
    choose: Callable[[list[int], list[dict[str, float]]], Sequence[T]],
    action_of: Callable[[T], str],
) -> list[T]:
    """Decisions of one batch, counted one after the other: together they take no more than each cap has left.

    All of one instant are chosen at once with the counts as they stand. Where one of them reaches a cap, those behind
    it that share the cap are chosen anew, now with the counter full. Whether a decision is chosen anew depends on the
    decisions before it alone, never on what was chosen for itself, so that its probability is the true one given the
    counter it was made with. That counter may lag by what was taken before it in its batch, never once the cap is
    reached.

    Args:
        counter: is advanced and counts what is chosen.
        turns: n decisions, in the order in which they count; those of one instant best stand together.
        choose: from m places among `turns` and the m rows of counters (by feature) to m choices. It is asked once for
            each instant, and once more for each cap that is reached.
        action_of: the action of a choice.

    Returns:
        n choices, in the order of `turns`.
    """
    chosen: dict[int, T] = {}
    waiting = list(range(len(turns)))
    while waiting:
        counter.advance(turns[waiting[0]].at_us)
        # A later instant sees what has expired by then, and only then.
        later = next((n for n, place in enumerate(waiting) if turns[place].at_us > counter.now_us), len(waiting))
        asked, rest = waiting[:later], waiting[later:]
        choices = choose(asked, [counter.taken(turns[place]) for place in asked])
        reached: set[tuple[str, str]] = set()
        behind: list[int] = []
        for place, choice in zip(asked, choices, strict=True):
            turn = turns[place]
            if any(turn.share(counter.caps[action]) == share for action, share in reached):
                behind.append(place)
                continue
            chosen[place] = choice
            if counter.count(action_of(choice), turn):
                reached.add((action_of(choice), turn.share(counter.caps[action_of(choice)])))
        waiting = behind + rest
    return [chosen[place] for place in range(len(turns))]
