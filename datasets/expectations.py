"""The expectations that a contract implies, each with the words for the person who meets it broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    Feature,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.duck import FEATURE_TYPES, literal, quoted
from datasets.validate_config import Severity, ValidateConfig

_LARGEST = 1.7976931348623157e308
"""Between this and its negative lie the finite numbers; DuckDB orders NaN above infinity."""

_COLUMN_TYPES = {
    "decision_id": "VARCHAR",
    "episode_id": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "action": "VARCHAR",
    "action_value": "DOUBLE",
    "reward": "DOUBLE",
    "terminated": "BOOLEAN",
    "truncated": "BOOLEAN",
    "behavior_prob": "DOUBLE",
}


@dataclass(frozen=True)
class BatchSummary:
    """The account of a batch before its suite has run: n_in = n_lake + n_quarantined + n_duplicates + n_pending."""

    n_in: int
    n_lake: int
    n_quarantined: int
    n_duplicates: int = 0
    n_pending: int = 0


@dataclass(frozen=True)
class Expectation:
    """One expectation over one SQL value per row.

    Attributes:
        type: its class in Great Expectations.
        column: the column's name for people; "" where the expectation concerns whole rows or the batch.
        sql: computes the value from a row of canonical steps.
        says: what is expected, in words that follow the column's name.
        remedy: what to do where it does not hold.
        arguments: of the class, beside the column.
        severity: whether a failure holds the batch.
        value: the one number that is judged, where the expectation concerns the batch and not its rows.
    """

    type: str
    column: str
    sql: str
    says: str
    remedy: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "hold"
    value: float | None = None


def of_batch(
    column: str,
    value: float,
    says: str,
    remedy: str,
    *,
    severity: Severity = "hold",
    low: float | None = None,
    high: float | None = None,
) -> Expectation:
    """The expectation that a batch's number lies within bounds, over a table of one row."""
    bounds = {name: bound for name, bound in (("min_value", low), ("max_value", high)) if bound is not None}
    return Expectation(
        "ExpectColumnValuesToBeBetween", column, f"{value!r}::DOUBLE", says, remedy, bounds, severity, float(value)
    )


def step_expectations(
    contract: Contract, config: ValidateConfig, stored: frozenset[str], *, fewest_rows: int
) -> list[Expectation]:
    """What canonical steps must fulfil; the first is the number of rows.

    Args:
        stored: the files' columns, and the fields of the observation as `observation.x`. One that is not among them
            counts as null throughout.
        fewest_rows: with fewer the batch is incomplete.
    """
    return [
        _row_count(fewest_rows, "step"),
        *_required(contract, stored),
        *_rules(contract, stored),
        *(e for name, feature in contract.features.items() for e in _feature(name, feature, config, stored)),
    ]


def outcome_row_expectations(stored: frozenset[str], *, fewest_rows: int) -> list[Expectation]:
    """What outcomes must fulfil; the first is the number of rows.

    Args:
        stored: the files' columns. One that is not among them counts as null throughout.
        fewest_rows: with fewer the batch is incomplete.
    """
    return [
        _row_count(fewest_rows, "outcome"),
        *(
            _not_null(
                name,
                _sql(name, stored),
                0.0,
                f"Every outcome needs one; see `outcomes.columns.{name}` in the contract.",
            )
            for name in ("decision_id", "timestamp")
        ),
        _not_null(
            "reward or end",
            f"CASE WHEN {_sql('terminated', stored)} OR {_sql('truncated', stored)} THEN 0.0 "
            f"ELSE {_sql('reward', stored)} END",
            0.0,
            "An outcome brings a reward, or tells that its episode ended; see `outcomes.columns` in the contract.",
        ),
        _between("reward", _sql("reward", stored), None, None, "", "it is summed up and can hold no infinity"),
        _one_end(stored),
    ]


def batch_expectations(summary: BatchSummary, config: ValidateConfig) -> list[Expectation]:
    """What the account of a batch must fulfil, over a table of one row."""
    n_new = summary.n_lake + summary.n_quarantined
    share = summary.n_quarantined / n_new if n_new else 0.0
    unaccounted = summary.n_in - n_new - summary.n_duplicates - summary.n_pending
    return [
        of_batch(
            "quarantined share",
            share,
            f"is at most {config.max_quarantined_share:.2%} of the new rows",
            f"{summary.n_quarantined} of {n_new} new rows broke the contract. Mend the log, or the contract, or raise "
            "validate.max_quarantined_share.",
            high=config.max_quarantined_share,
        ),
        of_batch(
            "unaccounted rows",
            unaccounted,
            "is 0: every row that came in is in the lake, in quarantine, a duplicate or pending",
            f"The account is {summary}. This is a defect of the ingest, not of the log: keep the files and report it.",
            low=0,
            high=0,
        ),
    ]


def _row_count(fewest: int, row: str) -> Expectation:
    return Expectation(
        "ExpectTableRowCountToBeBetween",
        "",
        "1",
        f"there {f'is at least 1 {row}' if fewest == 1 else f'are at least {fewest} {row}s'}",
        "Look whether the logs were written at all, and whether they all went to quarantine.",
        {"min_value": fewest},
    )


def _required(contract: Contract, stored: frozenset[str]) -> Iterator[Expectation]:
    names = ["episode_id", "timestamp", "action", "reward", "terminated", "truncated"]  # without a step, time orders
    if contract.outcomes is not None:
        names.remove("reward")  # it may arrive later
    if contract.episodes.kind == "one_step":
        names.remove("timestamp")  # their day is the day of ingest
    if contract.behavior.propensity == "logged":
        names.append("behavior_prob")
    for name in names:
        hint = " Where the log has none, set behavior.propensity = 'estimated'." if name == "behavior_prob" else ""
        yield _not_null(
            name, _sql(name, stored), 0.0, f"Every step needs one; see `columns.{name}` in the contract.{hint}"
        )


def _rules(contract: Contract, stored: frozenset[str]) -> Iterator[Expectation]:
    yield Expectation(
        "ExpectColumnValuesToBeInSet",
        "action",
        _sql("action", stored),
        f"is one of {', '.join(contract.actions.names)}",
        "Mend the log, or add the action to actions.names in the contract.",
        {"value_set": list(contract.actions.names)},
    )
    if (bins := contract.actions.bins) is not None:
        yield _between("action_value", _sql("action_value", stored), bins[0], bins[-1], "", "actions.bins")
    yield _between(
        "reward", _sql("reward", stored), contract.reward.min, contract.reward.max, "", "[reward] in the contract"
    )
    yield Expectation(
        "ExpectColumnValuesToBeBetween",
        "behavior_prob",
        _sql("behavior_prob", stored),
        "lies in (0, 1]",
        "It is the probability, not a log or a percentage, with which the logged action was chosen.",
        {"min_value": 0.0, "max_value": 1.0, "strict_min": True},
    )
    yield _one_end(stored)


def _one_end(stored: frozenset[str]) -> Expectation:
    return Expectation(
        "ExpectColumnValuesToBeInSet",
        "terminated and truncated",
        f"coalesce({_sql('terminated', stored)} AND {_sql('truncated', stored)}, false)",
        "are never both true",
        "An episode either ended by itself or was cut off: correct the two flags where they are logged.",
        {"value_set": [False]},
    )


def _feature(name: str, feature: Feature, config: ValidateConfig, stored: frozenset[str]) -> Iterator[Expectation]:
    column = f"observation.{name}"
    sql = f"observation[{literal(name)}]" if column in stored else f"NULL::{FEATURE_TYPES[feature.type]}"
    allowed = config.max_null_share if feature.nullable else 0.0
    limit = "validate.max_null_share" if feature.nullable else f"features.{name}.nullable"
    yield _not_null(column, sql, allowed, f"Look why the log lost it; {limit} says how much may be missing.")
    match feature:
        case NumericFeature():
            yield _between(column, sql, feature.min, feature.max, feature.unit, f"features.{name} in the contract")
        case CategoricalFeature():
            if feature.values is not None:
                yield Expectation(
                    "ExpectColumnValuesToBeInSet",
                    column,
                    sql,
                    f"is one of {', '.join(feature.values)} in at least {1 - config.max_unseen_share:.2%} of the rows",
                    f"Were the labels renamed? If they are right, add them to features.{name}.values.",
                    {"value_set": list(feature.values), "mostly": 1 - config.max_unseen_share},
                )
        case BooleanFeature():
            yield Expectation(
                "ExpectColumnValuesToBeInSet",
                column,
                sql,
                "is true or false",
                "Mend the log.",
                {"value_set": [True, False]},
            )
        case VectorFeature():
            yield Expectation(
                "ExpectColumnValuesToBeInSet",
                f"length of {column}",
                f"len({sql})",
                f"is {feature.length}",
                f"Mend the log, or features.{name}.length in the contract.",
                {"value_set": [feature.length]},
            )
            yield Expectation(
                "ExpectColumnValuesToBeInSet",
                f"components of {column} that are no finite number",
                f"len(list_filter({sql}, lambda x: x IS NULL OR NOT isfinite(x)))",
                "number 0",
                "Mend the log.",
                {"value_set": [0]},
            )
        case ImageFeature():
            yield Expectation(
                "ExpectColumnValuesToBeInSet",
                f"numbers of {column}",
                f"len({sql})",
                f"are {feature.size} ({feature.shown_shape})",
                f"Mend the log, or features.{name}.shape in the contract.",
                {"value_set": [feature.size]},
            )
            yield Expectation(
                "ExpectColumnValuesToBeInSet",
                f"numbers of {column} that are not from 0 to 255",
                f"CASE WHEN list_count({sql}) = len({sql}) AND list_min({sql}) >= 0 AND list_max({sql}) <= 255 THEN 0 "
                f"ELSE len(list_filter({sql}, lambda x: x IS NULL OR x NOT BETWEEN 0 AND 255)) END",
                "number 0",
                "Mend the log.",
                {"value_set": [0]},
            )


def _not_null(column: str, sql: str, allowed: float, remedy: str) -> Expectation:
    says = f"is missing in at most {allowed:.2%} of the rows" if allowed else "is never missing"
    return Expectation("ExpectColumnValuesToNotBeNull", column, sql, says, remedy, {"mostly": 1.0 - allowed})


def _between(column: str, sql: str, low: float | None, high: float | None, unit: str, where: str) -> Expectation:
    says = "is a finite number"
    if low is not None or high is not None:
        left = "-inf" if low is None else f"{low:g}"
        right = "inf" if high is None else f"{high:g}"
        says = f"lies in [{left}, {right}]{f' {unit}' if unit else ''}"
    return Expectation(
        "ExpectColumnValuesToBeBetween",
        column,
        sql,
        says,
        f"Mend the log, or the range: {where}.",
        {"min_value": -_LARGEST if low is None else low, "max_value": _LARGEST if high is None else high},
    )


def _sql(column: str, stored: frozenset[str]) -> str:
    return quoted(column) if column in stored else f"NULL::{_COLUMN_TYPES[column]}"
