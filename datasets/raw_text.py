"""Raw text of log rows with what `[privacy]` names taken out or hashed, wherever it stands.

What a row looks like cannot be relied on here: these are the rows that did not fit. So a name is looked for in every
spelling of case, in lists, in repeated keys, and in JSON that is written inside a string; and where text cannot be
taken apart with certainty, nothing of it is kept in the clear: it is sealed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets.contract import Contract
from datasets.privacy import HASHED, PrivacyKey

_DROPPED = object()

_TOLD_APART = re.compile(r"__column_\d+$")
"""What a reader puts behind the name of a column whose name is taken."""


class _Object(list[tuple[str, Any]]):
    """A JSON object with its keys as they came, repeated ones too."""


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


@dataclass(frozen=True)
class Redaction:
    """What a contract takes out of raw text, and the key that hashes the rest."""

    contract: Contract
    key: PrivacyKey

    def json_line(self, text: str) -> str:
        """A raw JSON line without its dropped values and with its hashed ones as `hmac:...`; sealed where it is no
        JSON object."""
        redacted = self.redact_json(text)
        return self.key.seal(text) if redacted is None else redacted

    def csv_record(self, text: str, header: Sequence[str]) -> str:
        """A raw CSV record, dropped fields empty; sealed where its fields are not those of the header."""
        redacted = self.redact_csv(text, header)
        return self.key.seal(text) if redacted is None else redacted

    def redact_json(self, text: str) -> str | None:
        """The line redacted; None where it is no JSON object, or holds JSON in a string that cannot be taken apart."""
        try:
            parsed = _parsed(text)
            if not isinstance(parsed, _Object):
                return None
            return _text_of(self._redacted(parsed, self._rules))
        except (ValueError, RecursionError):
            return None

    def redact_csv(self, text: str, header: Sequence[str]) -> str | None:
        """The record redacted; None where it does not have the header's fields."""
        try:
            records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
            if len(records) != 1 or len(records[0]) != len(header):
                return None
            names = [_TOLD_APART.sub("", name) for name in header]
            fields = zip(names, records[0], strict=True)
            kept = [self._member(name, field or None, self._rules) for name, field in fields]
        except (ValueError, RecursionError, csv.Error):
            return None
        written = io.StringIO()
        csv.writer(written, lineterminator="").writerow(
            ["" if value is _DROPPED or value is None else value for value in kept]
        )
        return written.getvalue()

    @cached_property
    def _rules(self) -> tuple[tuple[tuple[str, ...], bool], ...]:
        """Each name as the parts of its path in lower case, and whether it is hashed rather than dropped."""
        dropped = ((tuple(name.casefold().split(".")), False) for name in self.contract.privacy.drop)
        hashed = ((tuple(name.casefold().split(".")), True) for name in self.contract.hashed_paths)
        return (*dropped, *hashed)

    def _redacted(self, node: Any, rules: Sequence[tuple[tuple[str, ...], bool]]) -> Any:
        if isinstance(node, _Object):
            members = ((name, self._member(name, value, rules)) for name, value in node)
            return _Object((name, value) for name, value in members if value is not _DROPPED)
        if isinstance(node, list):
            return [self._redacted(value, rules) for value in node]
        if isinstance(node, str) and not isinstance(node, _Number) and node.lstrip()[:1] in {"{", "["}:
            return _text_of(self._redacted(_parsed(node), rules))  # not JSON after all: the whole line is sealed
        return node

    def _member(self, name: str, value: Any, rules: Sequence[tuple[tuple[str, ...], bool]]) -> Any:
        """A member's value under the rules that lead to it. A name with dots in it may be several parts of a path."""
        folded = name.casefold()
        inner = []
        for path, hashed in rules:
            for n in range(1, len(path) + 1):
                if folded == ".".join(path[:n]):
                    if n < len(path):
                        inner.append((path[n:], hashed))
                    elif not hashed:
                        return _DROPPED
                    else:
                        return self._hashed(value)
        return self._redacted(value, inner) if inner else value

    def _hashed(self, value: Any) -> Any:
        if value is None or value == "":
            return value
        text = value_text(value)
        return text if _is_hash(text) else HASHED + self.key.hash(text)


def value_text(value: Any) -> str:
    """A JSON value as the text that is hashed: what DuckDB's `->>` gives for it."""
    if isinstance(value, _Number):
        whole = value.lstrip("-").isdecimal()
        return str(int(value)) if whole else repr(float(value))
    return value if isinstance(value, str) else _text_of(value)


def _is_hash(text: str) -> bool:
    return text.startswith(HASHED) and len(text) == len(HASHED) + 64


def _parsed(text: str) -> Any:
    decoder = json.JSONDecoder(
        object_pairs_hook=_Object, parse_float=_Number, parse_int=_Number, parse_constant=_Number
    )
    return decoder.decode(text)


def _text_of(node: Any) -> str:
    if isinstance(node, _Number):
        return str(node)
    if isinstance(node, str):
        alone = any("\ud800" <= character <= "\udfff" for character in node)  # half a character: no UTF-8 for it
        return json.dumps(node, ensure_ascii=alone)
    if isinstance(node, _Object):
        return "{" + ",".join(f"{_text_of(name)}:{_text_of(value)}" for name, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(_text_of, node)) + "]"
    return json.dumps(node)
