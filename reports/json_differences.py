"""Where two JSON values differ, by path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JsonDifference:
    """One place; `before` or `after` is ABSENT where a side lacks it."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path or 'the whole'}: {_shown(self.before)} -> {_shown(self.after)}"


ABSENT = "(absent)"
_SHOWN = 80


def json_differences(before: Any, after: Any, path: str = "") -> Iterator[JsonDifference]:
    """Every place where two JSON values differ, depth first; numbers by their value, so 1 equals 1.0.

    Lists of records that each have a "name" are matched by it, other lists by position.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inside = f"{path}.{key}" if path else str(key)
            yield from json_differences(before.get(key, ABSENT), after.get(key, ABSENT), inside)
    elif isinstance(before, list) and isinstance(after, list):
        ours, theirs = _by_name(before), _by_name(after)
        if ours is None or theirs is None:
            ours, theirs = dict(enumerate(before)), dict(enumerate(after))
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            yield from json_differences(ours.get(key, ABSENT), theirs.get(key, ABSENT), f"{path}[{key}]")
    elif isinstance(before, bool) != isinstance(after, bool) or before != after:
        yield JsonDifference(path, before, after)


def _by_name(items: list[Any]) -> dict[Any, Any] | None:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if None in names or len(set(names)) < len(names):
        return None
    return dict(zip(names, items, strict=True))


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
