"""What each canonical field of a log row must be: its typed value, and what may be wrong with it, as SQL.

The exact reader sees every value as JSON, takes nothing for what it is not (a string is no number, 1.7 no step, a time
without a zone no instant) and says in words what is wrong. Only CSV, which knows nothing but text, is read by value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    Feature,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.duck import literal, quoted
from datasets.fast_rules import (
    FAST_BOOLEAN,
    FAST_LABEL,
    FIRST_INSTANT,
    HAS_ZONE,
    LAST_INSTANT,
    FastRule,
    fast_number,
    fast_timestamp,
    fast_vector,
    instant_sql,
)
from datasets.image_sql import image_problem, image_typed

_NUMBER_TYPES = "('DOUBLE', 'BIGINT', 'UBIGINT', 'HUGEINT')"
_LABEL_TYPES = "('VARCHAR', 'BIGINT', 'UBIGINT', 'HUGEINT', 'DOUBLE', 'BOOLEAN')"
_MAX_STEP = 2**31 - 1


@dataclass(frozen=True)
class Field:
    """One canonical field: where the log may hold it, its typed value, and what may be wrong with it.

    Attributes:
        typed: SQL of the typed value, from that of the raw value (JSON).
        problem: SQL of the raw and the typed value that yields NULL where nothing is wrong, else what is.
        fast: None where the fast reader applies `typed` and `problem` as they are.
    """

    name: str
    paths: tuple[str, ...]
    typed: Callable[[str], str]
    problem: Callable[[str, str], str]
    required: bool = False
    fast: FastRule | None = None


def raw_of(name: str) -> str:
    """Column that holds a field's value as the log has it."""
    return quoted(f"raw {name}")


def typed_of(name: str) -> str:
    """Column that holds a field's typed value."""
    return quoted(f"typed {name}")


def cases(*conditions: tuple[str, str]) -> str:
    """The text of the first condition that holds, else NULL."""
    return "CASE " + " ".join(f"WHEN {condition} THEN {text}" for condition, text in conditions) + " END"


# --- fields of a contract


def label_field(name: str, paths: tuple[str, ...], *, shown: str = "", required: bool = False) -> Field:
    """A text, or a number or truth value taken by its text. Reasons call it `shown`, where the log's name says more."""
    return Field(name, paths, _label, _label_problem(shown or name), required, FAST_LABEL)


def number_field(
    name: str,
    paths: tuple[str, ...],
    textual: bool,
    *,
    low: float | None = None,
    high: float | None = None,
    required: bool = False,
) -> Field:
    """A finite number within [low, high]."""
    return Field(name, paths, _number(textual), _number_problem(name, low, high), required, fast_number(low, high))


def step_field(paths: tuple[str, ...], textual: bool) -> Field:
    """The number of a step: whole, not negative."""
    fast = fast_number(0, _MAX_STEP)
    whole = FastRule(fast.reads, fast.typed, lambda raw, typed: f"{fast.good(raw, typed)} AND {typed} = floor({typed})")
    return Field("step", paths, _number(textual), _step_problem(), False, whole)


def boolean_field(name: str, paths: tuple[str, ...], textual: bool, *, required: bool = False) -> Field:
    """True or false."""
    return Field(name, paths, _boolean(textual), _boolean_problem(name), required, FAST_BOOLEAN)


def timestamp_field(contract: Contract, paths: tuple[str, ...], textual: bool, *, required: bool) -> Field:
    """An instant, written as the contract says."""
    typed, problem = _timestamp(contract, textual), _timestamp_problem(contract)
    return Field("timestamp", paths, typed, problem, required, fast_timestamp(contract))


def action_field(contract: Contract, paths: tuple[str, ...], textual: bool) -> Field:
    """One of the contract's actions; the number itself where they are bins."""
    if (bins := contract.actions.bins) is not None:
        fast = fast_number(bins[0], bins[-1])
        return Field("action", paths, _number(textual), _binned_problem(bins), True, fast)
    known = ", ".join(literal(name) for name in contract.actions.names)
    fast = FastRule("VARCHAR", lambda raw: raw, lambda raw, _: f"{raw} IN ({known})")
    return Field("action", paths, _label, _action_problem(contract), True, fast)


def mask_field(contract: Contract, paths: tuple[str, ...], textual: bool) -> Field:
    """The actions that were available, the logged one among them."""
    return Field("available_actions", paths, _list("VARCHAR", textual), _mask_problem(contract))


def probability_field(paths: tuple[str, ...], textual: bool, *, required: bool) -> Field:
    """The probability of the logged action."""
    number = fast_number(None, 1.0)
    fast = FastRule(number.reads, number.typed, lambda raw, typed: f"{number.good(raw, typed)} AND {typed} > 0")
    return Field("behavior_prob", paths, _number(textual), _probability_problem(), required, fast)


def probabilities_field(contract: Contract, paths: tuple[str, ...], textual: bool) -> Field:
    """The probabilities of every action."""
    return Field("behavior_probs", paths, _list("DOUBLE", textual), _probabilities_problem(contract))


def feature_field(name: str, feature: Feature, paths: tuple[str, ...], textual: bool, *, required: bool) -> Field:
    """One feature of an observation."""
    if isinstance(feature, NumericFeature):
        return number_field(name, paths, textual, low=feature.min, high=feature.max, required=required)
    if isinstance(feature, BooleanFeature):
        return boolean_field(name, paths, textual, required=required)
    if isinstance(feature, VectorFeature):
        typed, problem = _list("DOUBLE", textual), _vector_problem(name, feature)
        return Field(name, paths, typed, problem, required, fast_vector(feature))
    if isinstance(feature, ImageFeature):
        return image_field(name, feature, paths, textual, required=required)
    assert isinstance(feature, CategoricalFeature)
    return label_field(name, paths, required=required)


def image_field(name: str, feature: ImageFeature, paths: tuple[str, ...], textual: bool, *, required: bool) -> Field:
    """The numbers of an image."""
    return Field(
        name,
        paths,
        # In CSV a list is written as JSON text inside the field.
        lambda raw: image_typed(feature, f"TRY_CAST({_text(raw)} AS JSON)" if textual else raw),
        lambda raw, typed: cases(*image_problem(name, feature, raw, typed)),
        required,
    )


def logged_position(contract: Contract) -> str:
    """Place of the logged action among the contract's, from 1; NULL for a number outside their bins."""
    action, bins = typed_of("action"), contract.actions.bins
    if bins is None:
        return f"list_position({_labels(contract)}, {action})"
    inner = " ".join(f"WHEN {action} < {edge!r}::DOUBLE THEN {i}" for i, edge in enumerate(bins[1:-1], start=1))
    last = f"WHEN {action} <= {bins[-1]!r}::DOUBLE THEN {len(bins) - 1}"
    return f"CASE WHEN {action} < {bins[0]!r}::DOUBLE THEN NULL {inner} {last} END"


def logged_label(contract: Contract) -> str:
    """Label of the logged action."""
    if contract.actions.bins is None:
        return typed_of("action")
    return f"list_extract({_labels(contract)}, {logged_position(contract)})"


def _labels(contract: Contract) -> str:
    return "[" + ", ".join(literal(name) for name in contract.actions.names) + "]"


# --- what is exactly right, and what is wrong in words


def _text(raw: str) -> str:
    return f"({raw}->>'$')"


def _shown(raw: str) -> str:
    return f"left({raw}::VARCHAR, 60)"


def _label(raw: str) -> str:
    return f"CASE WHEN json_type({raw}) IN {_LABEL_TYPES} THEN {_text(raw)} END"


def _label_problem(name: str) -> Callable[[str, str], str]:
    return lambda raw, typed: cases(
        (f"{raw} IS NOT NULL AND {typed} IS NULL", f"{literal(name + ' is ')} || {_shown(raw)} || ', not a label'"),
        (f"{typed} = ''", literal(f"{name} is empty")),
    )


def _number(textual: bool) -> Callable[[str], str]:
    if textual:
        return lambda raw: f"TRY_CAST({_text(raw)} AS DOUBLE)"
    return lambda raw: f"CASE WHEN json_type({raw}) IN {_NUMBER_TYPES} THEN TRY_CAST({raw} AS DOUBLE) END"


def _number_problem(name: str, low: float | None, high: float | None) -> Callable[[str, str], str]:
    named = literal(f"{name} is ")

    def problem(raw: str, typed: str) -> str:
        found = [
            (f"{raw} IS NOT NULL AND {typed} IS NULL", f"{named} || {_shown(raw)} || ', not a number'"),
            (f"NOT isfinite({typed})", f"{named} || {_shown(raw)} || ', not finite'"),
        ]
        if low is not None:
            found.append((f"{typed} < {low!r}", f"{named} || {typed} || ', below the contract''s min {low}'"))
        if high is not None:
            found.append((f"{typed} > {high!r}", f"{named} || {typed} || ', above the contract''s max {high}'"))
        return cases(*found)

    return problem


def _step_problem() -> Callable[[str, str], str]:
    number = _number_problem("step", 0, _MAX_STEP)
    return lambda raw, typed: (
        f"coalesce({number(raw, typed)}, "
        + cases(
            (f"isfinite({typed}) AND {typed} <> floor({typed})", f"'step is ' || {typed} || ', not a whole number'")
        )
        + ")"
    )


def _boolean(textual: bool) -> Callable[[str], str]:
    if textual:
        return lambda raw: f"TRY_CAST({_text(raw)} AS BOOLEAN)"
    return lambda raw: f"CASE WHEN json_type({raw}) = 'BOOLEAN' THEN TRY_CAST({raw} AS BOOLEAN) END"


def _boolean_problem(name: str) -> Callable[[str, str], str]:
    return lambda raw, typed: cases(
        (
            f"{raw} IS NOT NULL AND {typed} IS NULL",
            f"{literal(name + ' is ')} || {_shown(raw)} || ', not true or false'",
        )
    )


def _list(element: str, textual: bool) -> Callable[[str], str]:
    # In CSV a list is written as JSON text inside the field.
    if textual:
        return lambda raw: f"TRY(TRY_CAST({_text(raw)}::JSON AS {element}[]))"
    elements = _LABEL_TYPES if element == "VARCHAR" else _NUMBER_TYPES
    return lambda raw: (
        f"CASE WHEN json_type({raw}) = 'ARRAY' AND len(list_filter(TRY_CAST({raw} AS JSON[]), "
        f"lambda e: e IS NULL OR json_type(e) NOT IN {elements})) = 0 THEN TRY_CAST({raw} AS {element}[]) END"
    )


def _vector_problem(name: str, feature: VectorFeature) -> Callable[[str, str], str]:
    named = literal(f"{name} is ")
    return lambda raw, typed: cases(
        (f"{raw} IS NOT NULL AND {typed} IS NULL", f"{named} || {_shown(raw)} || ', not a list of numbers'"),
        (
            f"len({typed}) <> {feature.length}",
            f"{literal(name + ' has ')} || len({typed}) || ' numbers instead of {feature.length}'",
        ),
        (
            f"NOT coalesce(list_bool_and(list_transform({typed}, lambda e: isfinite(e))), true)",
            literal(f"{name} has a number that is not finite"),
        ),
        (f"len(list_filter({typed}, lambda e: e IS NULL)) > 0", literal(f"{name} has a null inside")),
    )


def _timestamp(contract: Contract, textual: bool) -> Callable[[str], str]:
    form = contract.time.format
    if form in {"epoch_s", "epoch_ms"}:
        divisor = 1 if form == "epoch_s" else 1000
        return lambda raw: f"TRY(to_timestamp({_number(textual)(raw)} / {divisor}))"
    instant = instant_sql(contract)
    return lambda raw: instant(_text(raw))


def _timestamp_problem(contract: Contract) -> Callable[[str, str], str]:
    form, zone = contract.time.format, contract.time.zone
    wanted = "ISO 8601" if form == "iso" else form
    found: list[Callable[[str, str], tuple[str, str]]] = []
    if zone is None and form not in {"epoch_s", "epoch_ms"} and "%z" not in form.lower():
        has_zone = f"regexp_matches(%s, {HAS_ZONE})" if form == "iso" else "false"
        found.append(
            lambda raw, _: (
                f"{raw} IS NOT NULL AND NOT {has_zone.replace('%s', _text(raw))}",
                f"'timestamp ' || {_shown(raw)} || ' has no time zone; set time.zone in the contract'",
            )
        )
    found.append(
        lambda raw, typed: (
            f"{raw} IS NOT NULL AND ({typed} IS NULL OR NOT isfinite({typed}))",
            f"'timestamp is ' || {_shown(raw)} || {literal(f', not a time of the form {wanted}')}",
        )
    )
    found.append(
        lambda raw, typed: (
            f"{typed} NOT BETWEEN {FIRST_INSTANT} AND {LAST_INSTANT}",
            f"'timestamp is ' || {_shown(raw)} || ', outside the years 1 to 9999; is time.format right?'",
        )
    )
    return lambda raw, typed: cases(*[case(raw, typed) for case in found])


def _action_problem(contract: Contract) -> Callable[[str, str], str]:
    known = ", ".join(literal(name) for name in contract.actions.names)
    shown = ", ".join(contract.actions.names[:10]) + (", ..." if len(contract.actions.names) > 10 else "")
    return lambda raw, typed: cases(
        (
            f"{raw} IS NOT NULL AND ({typed} IS NULL OR {typed} NOT IN ({known}))",
            f"'action is ' || {_shown(raw)} || {literal(f', none of the contract’s actions ({shown})')}",
        )
    )


def _binned_problem(bins: tuple[float, ...]) -> Callable[[str, str], str]:
    number = _number_problem("action", None, None)
    outside = literal(f", outside the contract's bins from {bins[0]} to {bins[-1]}")
    return lambda raw, typed: (
        f"coalesce({number(raw, typed)}, "
        + cases((f"{typed} NOT BETWEEN {bins[0]!r} AND {bins[-1]!r}", f"'action is ' || {typed} || {outside}"))
        + ")"
    )


def _mask_problem(contract: Contract) -> Callable[[str, str], str]:
    known, action = _labels(contract), logged_label(contract)
    return lambda raw, typed: cases(
        (
            f"{raw} IS NOT NULL AND {typed} IS NULL",
            f"'available_actions is ' || {_shown(raw)} || ', not a list of labels'",
        ),
        (
            f"NOT list_has_all({known}, {typed})",
            f"'available_actions ' || {_shown(raw)} || ' names an action that is not in the contract'",
        ),
        (
            f"NOT list_contains({typed}, {action})",
            f"'action ' || {action} || ' is not among the available actions ' || {_shown(raw)}",
        ),
    )


def _probability_problem() -> Callable[[str, str], str]:
    number = _number_problem("behavior_prob", None, 1.0)
    return lambda raw, typed: (
        f"coalesce({number(raw, typed)}, "
        + cases(
            (
                f"{typed} <= 0",
                f"'behavior_prob is ' || {typed} || ', and the probability of a logged action is above 0'",
            )
        )
        + ")"
    )


def _probabilities_problem(contract: Contract) -> Callable[[str, str], str]:
    n = len(contract.actions.names)
    logged = logged_position(contract)
    return lambda raw, typed: cases(
        (
            f"{raw} IS NOT NULL AND {typed} IS NULL",
            f"'behavior_probs is ' || {_shown(raw)} || ', not a list of numbers'",
        ),
        (f"len({typed}) <> {n}", f"'behavior_probs has ' || len({typed}) || ' entries for {n} actions'"),
        (
            f"NOT coalesce(list_min({typed}) >= 0, true) OR NOT coalesce(abs(list_sum({typed}) - 1) <= 1e-3, true)",
            f"'behavior_probs ' || {_shown(raw)} || ' are no probabilities that sum to 1'",
        ),
        (f"{typed}[{logged}] <= 0", f"'behavior_probs ' || {_shown(raw)} || ' give the logged action no chance'"),
        (
            f"abs({typed}[{logged}] - {typed_of('behavior_prob')}) > 1e-3",
            "'behavior_probs and behavior_prob disagree on the logged action'",
        ),
    )
