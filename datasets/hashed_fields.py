"""Fields of a log row whose value is stored as a keyed hash, and named in no reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datasets.contract import Contract
from datasets.duck import literal
from datasets.fast_rules import FAST_LABEL, FastRule
from datasets.fields import Field, cases, typed_of
from datasets.privacy import hash_sql

_KEY = "keys."


def hashed_field(field: Field, *, shown: str = "") -> Field:
    """A label field whose typed value is the hash of the label. Reasons call it `shown`."""
    named = shown or field.name

    def problem(raw: str, typed: str) -> str:
        return cases(
            (f"{raw} IS NOT NULL AND {typed} IS NULL", literal(f"{named} is no label")),
            (f"({raw}->>'$') = ''", literal(f"{named} is empty")),
        )

    fast = FastRule(FAST_LABEL.reads, hash_sql, FAST_LABEL.good)
    return replace(field, typed=lambda raw: hash_sql(f"({field.typed(raw)})"), problem=problem, fast=fast)


def hashed_fields(contract: Contract, fields: Sequence[Field]) -> list[Field]:
    """The fields of a step, hashed where the contract says so, and those of its struct `keys`."""
    shown = {"cluster": contract.episodes.cluster or ""}
    found = [
        hashed_field(field, shown=shown.get(field.name, "")) if field.name in contract.hashed_columns else field
        for field in fields
    ]
    return [*found, *(_key_field(name) for name in contract.privacy.hash)]


def keys_output(contract: Contract) -> dict[str, str]:
    """SQL of the stored column `keys`, a struct of the hash of each value that `privacy.hash` names; empty where it
    names none."""
    keys = ", ".join(f"{literal(name)}: {typed_of(_KEY + name)}::VARCHAR" for name in contract.privacy.hash)
    return {"keys": "{" + keys + "}"} if keys else {}


def _key_field(path: str) -> Field:
    # Whatever stands there is a key, also what is no label: nothing can be wrong with it.
    text = "nullif({0}->>'$', '')"
    fast = FastRule(FAST_LABEL.reads, hash_sql, FAST_LABEL.good)
    return Field(
        _KEY + path, (path,), lambda raw: hash_sql(text.format(raw)), lambda _, __: "NULL::VARCHAR", False, fast
    )
