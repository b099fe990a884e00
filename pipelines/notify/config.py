"""Settings of notifications: the `[notify]` table of offline_dqn.toml. Addresses are secrets and never stand in it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from datasets.settings import Settings

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class QuietWindow(Settings):
    """A planned window in which nothing is told; what is still true when it ends is told then.

    Either one stretch of time (`begins` and `ends` are instants) or one that comes again (both are times of the day).
    """

    begins: datetime | time
    """An instant such as 2026-12-24T18:00:00Z, or a time of the day such as "22:00"."""
    ends: datetime | time
    """As `begins`; a time of the day that is not later than `begins` is one of the next day."""
    days: tuple[Weekday, ...] = WEEKDAYS
    """Days on which a window of every day begins."""
    pages_too: bool = False
    """Whether pages wait as well; else they are told all the same."""

    @model_validator(mode="after")
    def _one_kind(self) -> QuietWindow:
        if isinstance(self.begins, datetime) != isinstance(self.ends, datetime):
            raise ValueError("begins and ends are both instants, or both times of the day")
        if isinstance(self.begins, datetime) and isinstance(self.ends, datetime):
            begins, ends = (t if t.tzinfo else t.replace(tzinfo=UTC) for t in (self.begins, self.ends))
            if ends <= begins:
                raise ValueError(f"it ends ({ends}) before it begins ({begins})")
        return self

    def holds(self, at: datetime, zone: ZoneInfo) -> bool:
        """Whether an instant lies in it; times without a zone are those of `zone`."""
        if isinstance(self.begins, datetime) and isinstance(self.ends, datetime):
            begins, ends = (t if t.tzinfo else t.replace(tzinfo=zone) for t in (self.begins, self.ends))
            return begins <= at < ends
        assert isinstance(self.begins, time)
        assert isinstance(self.ends, time)
        local = at.astimezone(zone)
        now, today = local.time(), WEEKDAYS[local.weekday()]
        if self.begins < self.ends:
            return today in self.days and self.begins <= now < self.ends
        yesterday = WEEKDAYS[local.weekday() - 1]
        return (today in self.days and now >= self.begins) or (yesterday in self.days and now < self.ends)


class NotifyConfig(Settings):
    """Who is told, and how often. Without receivers nobody is, and `offline-dqn notify status` shows what is open."""

    page: tuple[str, ...] = ()
    """Names of environment variables that hold Apprise URLs, for what cannot wait: a failed or missing night, a held
    batch, a broken promise of the champion."""
    ticket: tuple[str, ...] = ()
    """The same for what can wait until morning: drift, a refused gate, a candidate that waits for its reviewer."""
    repeat_hours: float = Field(24.0, gt=0)
    """Hours after which a cause that lasts is told again; before, only if it changes or is over."""
    overdue_hours: float | None = Field(30.0, gt=0)
    """Hours without a night that ended after which that is a page of its own, told by the hourly ingest or by
    `offline-dqn notify check`; none for a workspace that is not run every night."""
    timeout_s: float = Field(10.0, gt=0, le=120)
    """Seconds that a receiver may take to connect and to answer; then it counts as down."""
    timezone: str = "UTC"
    """Of the times of the day in `quiet`, such as Europe/Berlin."""
    quiet: tuple[QuietWindow, ...] = ()
    """Planned windows."""

    @model_validator(mode="before")
    @classmethod
    def _names_only(cls, values: Any) -> Any:
        # Before the fields are looked at: their errors quote the value, and a URL put here by mistake is a secret.
        for level in ("page", "ticket"):
            names = values.get(level, ()) if isinstance(values, dict) else ()
            if isinstance(names, str) or not isinstance(names, list | tuple):
                raise ValueError(f'{level} is a list of names, such as {level} = ["OFFLINE_DQN_{level.upper()}_URL"]')
            if not all(isinstance(name, str) and _VARIABLE.fullmatch(name) for name in names):
                raise ValueError(
                    f"{level} lists names of environment variables, and one of them is none. An address is a secret: "
                    f"export it, OFFLINE_DQN_{level.upper()}_URL=..., and write {level} = "
                    f'["OFFLINE_DQN_{level.upper()}_URL"]'
                )
        return values

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name != "UTC" and name not in available_timezones():
            raise ValueError("no such time zone; wanted is a name such as Europe/Berlin, or UTC")
        return name

    @property
    def zone(self) -> ZoneInfo:
        """Of `quiet`."""
        return ZoneInfo(self.timezone)

    def is_quiet(self, level: Literal["page", "ticket"], at: datetime) -> bool:
        """Whether a planned window keeps this from being told now."""
        return any(w.holds(at, self.zone) and (level == "ticket" or w.pages_too) for w in self.quiet)
