"""Lines so long that to look into them by SQL takes more memory than there is: cut down to what is read of them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.logfiles import LINE, LONGEST_LINE, PROBLEM, RAW


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


def cut_long_lines(chunk: pa.Table, structure: dict[str, Any]) -> tuple[pa.Table, dict[int, str]]:
    """A chunk of JSON Lines whose long lines hold nothing but what `structure` reads, and their full texts by line.

    A line that is no JSON, or is still long, gets a problem instead.
    """
    long = pc.greater(pc.binary_length(chunk[RAW]), LONGEST_LINE)
    if not pc.any(long).as_py():
        return chunk, {}
    lines, texts, problems = (chunk[name].to_pylist() for name in (LINE, RAW, PROBLEM))
    originals = {}
    for place in pc.indices_nonzero(long).to_pylist():
        originals[lines[place]] = texts[place]
        cut = _cut(texts[place], structure)
        if cut is None:
            problems[place] = problems[place] or "the line is not valid JSON"
        elif len(cut.encode()) > LONGEST_LINE:
            problems[place] = problems[place] or f"the line is longer than {LONGEST_LINE} bytes in what is read of it"
        texts[place] = cut if cut is not None and len(cut) <= LONGEST_LINE else ""
    cut_down = {RAW: pa.array(texts, pa.large_string()), PROBLEM: pa.array(problems, pa.string())}
    for name, values in cut_down.items():
        chunk = chunk.set_column(chunk.column_names.index(name), name, values)
    return chunk, originals


def _cut(text: str, structure: dict[str, Any]) -> str | None:
    try:
        document = json.loads(
            text, object_pairs_hook=tuple, parse_float=_Number, parse_int=_Number, parse_constant=_Number
        )
    except (ValueError, RecursionError):
        return None
    return _written(document, structure)


def _written(value: Any, structure: dict[str, Any] | str) -> str:
    """JSON text of a parsed value; of an object with a structure, the keys that are in it, repeated ones too."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, tuple):
        read = [(k, v) for k, v in value if not isinstance(structure, dict) or k in structure]
        inner = {k: structure[k] if isinstance(structure, dict) else "" for k, _ in read}
        return "{" + ", ".join(f"{json.dumps(k)}: {_written(v, inner[k])}" for k, v in read) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(v, "") for v in value) + "]"
    return json.dumps(value)
