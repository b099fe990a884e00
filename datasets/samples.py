"""What the first lines of a JSON Lines log hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any


def json_objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among some lines."""
    for line in lines:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document


def top_level_keys(lines: Iterable[str | bytes]) -> set[str]:
    """The keys of the JSON objects among some lines."""
    return {key for document in json_objects(lines) for key in document}


def dotted_paths(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The paths of an object and of those inside it, such as `observation.cpu`."""
    for key, value in document.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from dotted_paths(value, f"{prefix}{key}.")
