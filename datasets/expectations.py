"""The expectations that a contract implies, each with the words for the person who meets it broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, Feature, NumericFeature, VectorFeature
from datasets.duck import FEATURE_TYPES, literal, quoted
from datasets.durations import seconds_of
from datasets.settings import Settings

_LARGEST = 1.7976931348623157e308
"""Between this and its negative lie the finite numbers; DuckDB orders NaN above infinity."""

_COLUMN_TYPES = {
    "decision_id": "VARCHAR",
    "episode_id": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "action": "VARCHAR",
    "reward": "DOUBLE",
    "terminated": "BOOLEAN",
    "truncated": "BOOLEAN",
    "behavior_prob": "DOUBLE",
}


Severity = Literal["hold", "warn", "off"]
"""What a broken expectation does: the batch is held, or it enters the lake with a warning; `off` leaves it out."""


class SeverityConfig(Settings):
    """`[validate.severity]`: what each comparison with recent nights does when it fails.

    By default only that holds a batch which no honest log can show: nights differ for good reasons.
    """

    volume_low: Severity = "warn"
    """A finished night with far fewer rows than recent ones."""
    volume_high: Severity = "warn"
    """A night with far more rows than recent ones."""
    freshness: Severity = "warn"
    """The newest row is older than `recent.max_age`, or lies in the future."""
    null_share: Severity = "warn"
    """A nullable feature is missing more often than in any recent night."""
    quarantined: Severity = "warn"
    """A larger share of rows went to quarantine than in any recent batch."""
    new_labels: Severity = "warn"
    """Labels that neither recent nights nor the contract's `values` know."""
    vanished_actions: Severity = "warn"
    """An action that every recent night held is gone."""
    propensity_high: Severity = "hold"
    """1 / behavior_prob averages above 1 for an action: under the true probabilities it cannot."""
    propensity_low: Severity = "warn"
    """It averages below 1: wrong probabilities, or an action that is at times impossible without a logged mask."""


class RecentConfig(Settings):
    """`[validate.recent]`: how a batch is compared with recent nights."""

    n_nights: int = Field(default=28, ge=1)
    """Nights before a night that it is compared with."""
    fewest_nights: int = Field(default=7, ge=1)
    """With fewer of them known nothing is compared, and the result says so. A week, so that weekends are among them."""
    volume_factor: float = Field(default=2.0, gt=1.0)
    """A night may have this many times fewer (more) rows than the quieter (busier) tenth of recent nights."""
    max_age: str = "3d"
    """How old the newest row of a batch may be at `as_of`."""
    null_share_slack: float = Field(default=0.05, ge=0.0, le=1.0)
    """How far the share missing of a nullable feature may rise above that of every recent night."""
    quarantined_slack: float = Field(default=0.01, ge=0.0, le=1.0)
    """How far the share quarantined may rise above that of every recent batch."""
    max_new_label_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of steps whose label may be new, feature by feature."""

    @field_validator("max_age")
    @classmethod
    def _duration(cls, max_age: str) -> str:
        seconds_of(max_age)
        return max_age


class PropensityLimits(Settings):
    """`[validate.propensity]`: how far the logged probabilities may be off before a batch is held or warned of."""

    level: float = Field(default=0.9999, gt=0.0, lt=1.0)
    """Level of the intervals by cluster, all actions together. One minus this is the share of sound batches that fail,
    so it is far above the level at which the report refuses an estimate."""
    slack: float = Field(default=0.02, ge=0.0)
    """Distance of an average from 1 that is no matter, such as that of rounded probabilities."""
    fewest_taken: int = Field(default=10, ge=2)
    """An action taken less often is not judged."""
    fewest_effective: float = Field(default=30.0, ge=2.0)
    """Nor is one whose taken rows, weighted by 1 / p, are worth fewer equally probable ones."""


class ValidateConfig(Settings):
    """`[validate]`: what a batch may look like and still enter the lake."""

    max_quarantined_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Largest share of a batch's new rows that may be in quarantine; above it the batch is held."""
    max_null_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """Largest share of steps in which a nullable feature may be missing, feature by feature."""
    max_unseen_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of labels that a categorical feature's `values` do not list: above it, labels were renamed."""
    keep_docs: int = Field(default=60, ge=1)
    """Pages of validation results that are kept; older ones are made again when asked for."""
    recent: RecentConfig = RecentConfig()
    propensity: PropensityLimits = PropensityLimits()
    severity: SeverityConfig = SeverityConfig()


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
            for name in ("decision_id", "timestamp", "reward")
        ),
        _between("reward", _sql("reward", stored), None, None, "", "it is summed up and can hold no infinity"),
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
    yield Expectation(
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
