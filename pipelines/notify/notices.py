"""What is worth telling, and when: causes that are open, and which of them a receiver has not heard as they are now.

Pure: takes what was open, what was found and the instant; returns what is open then. Reads no clock and sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

Level = Literal["page", "ticket"]

_LONGEST = 1500
"""Characters of one notice; chats and pagers cut or refuse longer ones."""


@dataclass(frozen=True)
class Notice:
    """One thing that a person should hear of.

    Attributes:
        cause: what it is about, a key that stays the same while it lasts, such as "night"; duplicates are grouped by
            it.
        level: "page" cannot wait, "ticket" can.
        title: in a few words.
        text: what was found, and what to do.
        state: what makes it another piece of news than before, such as the number of the release; numbers that differ
            every night do not belong here.
        lasts: whether it is told again while it lasts; an event (a refused gate) is told once.
    """

    cause: str
    level: Level
    title: str
    text: str
    state: str = ""
    lasts: bool = True


@dataclass(frozen=True)
class Heard:
    """What a receiver knows of a cause: its state when it was told, and when; None where it could not be told yet."""

    state: str | None
    at: datetime | None


@dataclass(frozen=True)
class Open:
    """A cause that was found and is not over, or is over and not everybody who heard of it has heard that.

    Attributes:
        notice: as last found.
        since, last: when it was first and last found.
        n_found: how often.
        heard: by receiver (the name of its environment variable); one that is missing was never tried.
        over: whether it has been looked for since and was not there.
    """

    notice: Notice
    since: datetime
    last: datetime
    n_found: int = 1
    heard: Mapping[str, Heard] = field(default_factory=dict)
    over: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        heard = {r: {"state": h.state, "at": h.at.isoformat() if h.at else None} for r, h in self.heard.items()}
        times = {"since": self.since.isoformat(), "last": self.last.isoformat()}
        return {**asdict(self.notice), **times, "n_found": self.n_found, "over": self.over, "heard": heard}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Open:
        """What `to_json` wrote."""
        heard = {
            receiver: Heard(h["state"], datetime.fromisoformat(h["at"]) if h["at"] else None)
            for receiver, h in values["heard"].items()
        }
        since, last = (datetime.fromisoformat(values[name]) for name in ("since", "last"))
        notice = Notice(**{name: values[name] for name in ("cause", "level", "title", "text", "state", "lasts")})
        return cls(notice, since, last, values["n_found"], heard, values["over"])


def found_now(
    before: Sequence[Open], found: Sequence[Notice], looked_for: Collection[str], at: datetime
) -> tuple[Open, ...]:
    """What is open after a look: known causes are counted on, new ones begin, and what was looked for in vain is over.

    Args:
        before: what was open.
        found: by cause at most one; of several the first of the highest level stands.
        looked_for: causes that would have been found if they were there.
        at: now.
    """
    newest = {notice.cause: notice for notice in sorted(found, key=lambda n: n.level == "page")}
    kept = []
    for known in before:
        notice = newest.pop(known.notice.cause, None)
        if notice is not None:
            began = {"since": at, "n_found": 1} if known.over else {"n_found": known.n_found + 1}
            heard = {r: replace(h, state=None) for r, h in known.heard.items()} if known.over else known.heard
            kept.append(replace(known, notice=notice, last=at, over=False, heard=heard, **began))
        elif known.notice.cause in looked_for and not known.over:
            if known.heard:  # nobody needs to hear that what they never heard of is over
                kept.append(replace(known, over=True, last=at))
        else:
            kept.append(known)
    return (*kept, *(Open(notice, at, at) for notice in newest.values()))


def due(cause: Open, receiver: str, at: datetime, repeat_hours: float) -> bool:
    """Whether a receiver has to hear of a cause now: it has not, it changed, it is over, or it was told long ago."""
    heard = cause.heard.get(receiver)
    if cause.over:
        return heard is not None
    if heard is None or heard.at is None or heard.state != cause.notice.state:
        return True
    return cause.notice.lasts and at - heard.at >= timedelta(hours=repeat_hours)


def after_telling(cause: Open, receiver: str, at: datetime, *, taken: bool) -> Open:
    """The cause with what the receiver knows now; one that took nothing is tried again the next time."""
    known = cause.heard.get(receiver, Heard(None, None))
    heard = Heard(cause.notice.state, at) if taken else known
    without = {r: h for r, h in cause.heard.items() if r != receiver}
    return replace(cause, heard=without if cause.over and taken else {**without, receiver: heard})


def still_open(causes: Sequence[Open], receivers: Collection[str]) -> tuple[Open, ...]:
    """Without those that are over and that every receiver there is has heard the end of."""
    return tuple(cause for cause in causes if not cause.over or any(r in receivers for r in cause.heard))


@dataclass(frozen=True)
class Message:
    """One message for a receiver: every cause that is due, in one."""

    title: str
    text: str
    kind: Literal["failure", "warning", "success"]


def message_of(causes: Sequence[Open], level: Level, about: str) -> Message:
    """Puts causes into one message, what is over last; text of logs loses its control characters.

    Args:
        causes: at least one.
        about: name of the contract and folder of the workspace.
    """
    ordered = sorted(causes, key=lambda cause: cause.over)
    first = ordered[0]
    head = _plain(f"over: {first.notice.title}" if first.over else first.notice.title)
    more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
    kind: Literal["failure", "warning", "success"] = (
        "success" if first.over else "failure" if level == "page" else "warning"
    )
    return Message(f"[{level}] {_plain(about)}: {head}{more}"[:250], "\n\n".join(map(_in_words, ordered)), kind)


def _in_words(cause: Open) -> str:
    notice, since = cause.notice, f"{cause.since:%Y-%m-%d %H:%M} UTC"
    if cause.over:
        return f"Over: {_plain(notice.title)}, since {since}."
    again = f"\nFound {cause.n_found} times since {since}." if cause.n_found > 1 else ""
    return f"{_plain(notice.title)}\n{_plain(notice.text)[:_LONGEST]}{again}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
