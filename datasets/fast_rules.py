"""Values that are surely right, as cheap SQL: what the fast reader takes without a second look.

Each rule holds only where the exact reader (`datasets.fields`) would take the same value and find nothing wrong; a row
in which one does not hold is judged again by that reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from datasets.contract import Contract, VectorFeature
from datasets.duck import literal

HAS_ZONE = r"'\d{1,2}:\d{2}.*(Z|z|[+-]\d{2}(:?\d{2})?)$'"
FIRST_INSTANT, LAST_INSTANT = "TIMESTAMPTZ '0001-01-01 00:00:00+00'", "TIMESTAMPTZ '9999-12-31 23:59:59+00'"
_LARGEST = 1.7976931348623157e308
"""Between this and its negative lie the finite numbers; DuckDB orders NaN above infinity."""


@dataclass(frozen=True)
class FastRule:
    """How the fast reader takes a field.

    Attributes:
        reads: DuckDB type in which the value leaves the JSON reader: JSON keeps its text, quotes included; VARCHAR is
            a string's content, or the text of anything else.
        typed: SQL of the typed value, from that of the value.
        good: SQL of the value and the typed value that is true only where the exact reader would take the same value
            and find nothing wrong; NULL counts as false.
    """

    reads: Literal["JSON", "VARCHAR"]
    typed: Callable[[str], str]
    good: Callable[[str, str], str]


FAST_LABEL = FastRule(
    "VARCHAR",
    lambda raw: raw,
    # What begins like an object or a list may be one, or the content of a string that looks so. A number with a point
    # or an exponent has more than one spelling; what can be none of these is no number.
    lambda raw, _: (
        f"{raw} <> '' AND NOT starts_with({raw}, '{{') AND NOT starts_with({raw}, '[') "
        f"AND CASE WHEN {raw} >= '-' AND {raw} < ':' THEN TRY_CAST({raw} AS DOUBLE) IS NULL "
        f"OR NOT (contains({raw}, '.') OR contains({raw}, 'e') OR contains({raw}, 'E')) ELSE true END"
    ),
)
FAST_BOOLEAN = FastRule(
    "JSON",
    lambda raw: f"CASE {raw}::VARCHAR WHEN 'true' THEN true WHEN 'false' THEN false END",
    lambda _, typed: f"{typed} IS NOT NULL",
)


def fast_number(low: float | None, high: float | None) -> FastRule:
    # The text of a JSON string keeps its quotes, so it is no number here either.
    low, high = (-_LARGEST if low is None else low), (_LARGEST if high is None else high)
    return FastRule(
        "JSON",
        lambda raw: f"TRY_CAST({raw}::VARCHAR AS DOUBLE)",
        lambda _, typed: f"{typed} BETWEEN {low!r} AND {high!r}",
    )


def without(raw: str, *texts: str) -> str:
    """SQL that is true where none of some short texts is in a JSON value as it was written."""
    return " AND ".join(f"NOT contains({raw}::VARCHAR, {literal(text)})" for text in texts)


NO_NUMBERS = ('"', "u", "a", "y")
"""A cast would take "1.5" and true for numbers: a list that holds a quote, or a letter of true, false, null, NaN or
Infinity, holds something else."""


def fast_vector(feature: VectorFeature) -> FastRule:
    return FastRule(
        "JSON",
        lambda raw: f"TRY_CAST({raw} AS DOUBLE[])",
        lambda raw, typed: (
            f"{without(raw, *NO_NUMBERS)} AND len({typed}) = {feature.length} "
            f"AND list_bool_and(list_transform({typed}, lambda e: coalesce(isfinite(e), false)))"
        ),
    )


def fast_timestamp(contract: Contract) -> FastRule | None:
    inside = f"BETWEEN {FIRST_INSTANT} AND {LAST_INSTANT}"
    if contract.time.format in {"epoch_s", "epoch_ms"}:
        number = fast_number(None, None)
        divisor = 1 if contract.time.format == "epoch_s" else 1000
        return FastRule(
            "JSON",
            lambda raw: f"TRY(to_timestamp({number.typed(raw)} / {divisor}))",
            lambda _, typed: f"{typed} {inside}",
        )
    if contract.time.format != "iso":
        return None
    # The usual forms without a regular expression: a time of day at its place, and a zone at the end.
    zoned = "strlen({0}) >= 20 AND {0}[14] = ':' AND (suffix({0}, 'Z') OR ({0}[-3] = ':' AND {0}[-6] IN ('+', '-')))"
    exact = instant_sql(contract)
    return FastRule(
        "VARCHAR",
        lambda raw: f"CASE WHEN {zoned.format(raw)} THEN TRY_CAST({raw} AS TIMESTAMPTZ) ELSE {exact(raw)} END",
        lambda _, typed: f"{typed} {inside}",
    )


def instant_sql(contract: Contract) -> Callable[[str], str]:
    """SQL of the instant, from that of its text."""
    form, zone = contract.time.format, contract.time.zone
    if form == "iso":
        naive = f"timezone({literal(zone)}, TRY_CAST(%s AS TIMESTAMP))" if zone else "NULL"
        return lambda text: (
            f"CASE WHEN regexp_matches({text}, {HAS_ZONE}) THEN TRY_CAST({text} AS TIMESTAMPTZ) "
            f"ELSE {naive.replace('%s', text)} END"
        )
    parsed = f"try_strptime(%s, {literal(form)})"
    if "%z" in form or "%Z" in form:
        return lambda text: f"{parsed.replace('%s', text)}::TIMESTAMPTZ"
    if zone is None:
        return lambda text: f"CASE WHEN {text} IS NULL THEN NULL::TIMESTAMPTZ END"
    return lambda text: f"timezone({literal(zone)}, {parsed.replace('%s', text)}::TIMESTAMP)"
