"""Durations as people write them: "90s", "15m", "6h", "30d"."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")


def seconds_of(duration: str) -> float:
    """Seconds of a duration such as "6h" or "1h30m".

    Raises:
        ValueError: if it is not a sum of numbers each followed by s, m, h or d, or is zero.
    """
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"'{duration}' is no duration; write it as 90s, 15m, 6h, 30d or 1h30m")
    seconds = sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", duration))
    if seconds <= 0:
        raise ValueError(f"'{duration}' is no time at all; a duration must be positive")
    return seconds
