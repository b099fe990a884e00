"""Numbers as a reader wants them: digits that carry meaning, a true minus sign, and words where there is no number."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime

from reports.records import Interval

NOT_MEASURED = "not measured"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that show nothing themselves and may change what is read around them: controls, formats such as
marks of direction, halves of a character, ends of a line or paragraph."""
_LARGEST_PLAIN, _SMALLEST_PLAIN = 1e7, 1e-4


def number(value: float | None, digits: int = 4) -> str:
    """The value with at most `digits` significant digits; `NOT_MEASURED` where there is none or it is not finite."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    size = abs(value)
    if float(value).is_integer() and size < _LARGEST_PLAIN:
        return _signed(f"{value:,.0f}")
    if not _SMALLEST_PLAIN <= size < _LARGEST_PLAIN:
        mantissa, exponent = f"{value:.2e}".split("e")
        return _signed(f"{mantissa.rstrip('0').rstrip('.')}×10") + str(int(exponent)).translate(_SUPERSCRIPTS)
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    return _signed(text.rstrip("0").rstrip(".") if "." in text else text)


def apart(value: float, from_value: float, digits: int = 3) -> str:
    """The value with at least `digits` significant digits, and as many more as it takes to tell it from another."""
    told = number(from_value, digits)
    for more in range(digits, 16):
        if value == from_value or (shown := number(value, more)) != told:
            return number(value, more)
    return shown


def fixed(value: float, decimals: int) -> str:
    """The value with so many decimals, or as `number` where it is too large for that."""
    if not math.isfinite(value) or abs(value) >= _LARGEST_PLAIN:
        return number(value)
    return _signed(f"{value + 0.0:,.{decimals}f}")


def decimals_for(width: float) -> int:
    """Decimals that show two significant digits of half an interval's width; more would be noise."""
    if not math.isfinite(width) or width <= 0:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(width / 2))))


def with_interval(value: float | None, interval: Interval | None) -> str:
    """`value [low, high]`, all with the digits that the interval's width supports."""
    if value is None or interval is None:
        return number(value)
    decimals = decimals_for(interval.high - interval.low)
    return f"{fixed(value, decimals)} [{fixed(interval.low, decimals)}, {fixed(interval.high, decimals)}]"


def spanned(value: float | None, low: float | None, high: float | None) -> str:
    """As `with_interval`, from the two ends."""
    return with_interval(value, None if low is None or high is None else Interval(low, high, 0.0, ""))


def counted(n: int, noun: str) -> str:
    """A count with its noun: 1 night, 2 nights."""
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def share(value: float | None) -> str:
    """A fraction in percent."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    percent = 100 * value
    if percent == round(percent):
        return _signed(f"{percent:.0f}%")
    if abs(percent) < 0.01:
        return "< 0.01%" if percent > 0 else "> −0.01%"
    text = f"{percent:.2f}" if abs(percent) < 1 else f"{percent:.1f}"
    return _signed(f"{text.rstrip('0').rstrip('.')}%")


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units that matter."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def instant(at: datetime) -> str:
    """To the minute, in UTC. A time without a zone is taken as UTC."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def visible(text: str) -> str:
    """The text with every control and formatting character written out, such as [U+202E]; tabs and line feeds stay.

    A mark of direction in a name would turn the order of what follows it: of a whole sentence, its numbers included.
    """
    unseen = [c for c in set(text) if c not in "\t\n" and unicodedata.category(c) in _UNSEEN]
    return text.translate({ord(c): f"[U+{ord(c):04X}]" for c in unseen}) if unseen else text


def _signed(text: str) -> str:
    text = text.replace("-", "−")
    return text[1:] if text.startswith("−") and not text.strip("−0.,%") else text
