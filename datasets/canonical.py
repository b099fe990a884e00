"""From log rows as they were written to canonical steps, or to a reason why not: one SQL query from the contract.

The query has three layers, innermost first: the log's own value of each canonical field (JSON or text), the field's
typed value, and the row with its reason. Nothing is coerced silently: a string is no number, 1.7 no step, and a time
without a zone no instant. Only CSV, which knows nothing but text, is read by value.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from datasets.contract import (
    STEP_COLUMNS,
    BooleanFeature,
    CategoricalFeature,
    Contract,
    Feature,
    NumericFeature,
    VectorFeature,
)
from datasets.duck import FEATURE_TYPES, literal, quoted
from datasets.logfiles import LINE, PROBLEM, RAW
from datasets.settings import SettingsError

_NUMBER_TYPES = "('DOUBLE', 'BIGINT', 'UBIGINT', 'HUGEINT')"
_LABEL_TYPES = "('VARCHAR', 'BIGINT', 'UBIGINT', 'HUGEINT', 'DOUBLE', 'BOOLEAN')"
_HAS_ZONE = r"'\d{1,2}:\d{2}.*(Z|z|[+-]\d{2}(:?\d{2})?)$'"
_MAX_STEP = 2**31 - 1
_REMEDIES = {"behavior_prob": " (where a log has none, set behavior.propensity = 'estimated' in the contract)"}
"""What to do where a field is missing and the contract could do without it."""


@dataclass(frozen=True)
class _Field:
    """One canonical field: where the log may hold it, its typed value, and what may be wrong with it.

    `typed` and `problem` take the SQL of the raw value; `problem` also takes that of the typed value and yields NULL
    where nothing is wrong.
    """

    name: str
    paths: tuple[str, ...]
    typed: Callable[[str], str]
    problem: Callable[[str, str], str]
    required: bool


def canonical_sql(contract: Contract, columns: Iterable[str] | None, *, textual: bool) -> str:
    """The query that turns a registered chunk `chunk` into canonical rows.

    Args:
        columns: names of the log's columns; None for JSON Lines, whose rows are read from RAW.
        textual: whether values are text (CSV) rather than typed JSON.

    Returns:
        A SELECT with the columns of a step (observation and final_observation as structs), `source_line`, `raw`
        (where there is a reason) and `reason`, null for a row that fits the contract.

    Raises:
        SettingsError: two paths of the contract contradict each other.
    """
    fields = _fields(contract, textual)
    values = ", ".join(f"{sql} AS {_raw(f.name)}" for f, sql in _values(fields, columns))
    typed = ", ".join(f"{f.typed(_raw(f.name))} AS {_typed(f.name)}" for f in fields)
    reason = f"nullif(concat_ws('; ', {', '.join(_reasons(contract, fields))}), '')"
    return f"""
WITH documents AS ({_documents(fields, columns)}),
raw_values AS (SELECT {LINE}, {RAW}, {PROBLEM}, {values} FROM documents),
typed_values AS (SELECT *, {typed} FROM raw_values),
judged AS (SELECT *, coalesce({PROBLEM}, {reason}) AS reason FROM typed_values)
SELECT {", ".join(_outputs(contract))}, {LINE} AS source_line,
    CASE WHEN reason IS NOT NULL THEN {RAW} END AS raw, reason
FROM judged"""


def unmapped_columns(contract: Contract, columns: Iterable[str]) -> list[str]:
    """Top-level columns of a log that no canonical field reads: they are dropped."""
    paths = {path for field in _fields(contract, textual=False) for path in field.paths}
    used = paths | {path.split(".")[0] for path in paths}
    return sorted(column for column in columns if column not in used)


def struct_sql(contract: Contract, value: Callable[[str], str]) -> str:
    """A struct of the contract's features, `value(name)` cast to each feature's stored type."""
    fields = (f"{literal(name)}: ({value(name)})::{FEATURE_TYPES[f.type]}" for name, f in contract.features.items())
    return "{" + ", ".join(fields) + "}"


def _raw(name: str) -> str:
    return quoted(f"raw {name}")


def _typed(name: str) -> str:
    return quoted(f"typed {name}")


# --- where the values come from


def _documents(fields: list[_Field], columns: Iterable[str] | None) -> str:
    if columns is not None:
        own = ", ".join(f"{quoted(c)} := {quoted(c)}" for c in columns)
        raw = f"coalesce({RAW}, to_json(struct_pack({own}))::VARCHAR)"
        return f"SELECT * REPLACE ({raw} AS {RAW}) FROM chunk"
    structure = _json_structure(fields)
    repeated = " OR ".join(
        f"len(json_keys({RAW}, {literal(path)})) <> len(list_distinct(json_keys({RAW}, {literal(path)})))"
        for path in _objects(structure)
    )
    problem = f"""CASE WHEN {PROBLEM} IS NOT NULL THEN {PROBLEM}
        WHEN NOT json_valid({RAW}) THEN 'the line is not valid JSON'
        WHEN json_type({RAW}) <> 'OBJECT' THEN 'the line is no JSON object'
        WHEN {repeated} THEN 'the JSON object has a key twice' END"""
    document = f"from_json({RAW}, {literal(json.dumps(structure))})"
    return f"""SELECT *, CASE WHEN {PROBLEM} IS NULL THEN {document} END AS document
    FROM (SELECT * REPLACE ({problem} AS {PROBLEM}) FROM chunk)"""


def _objects(structure: dict[str, Any], path: str = "$") -> list[str]:
    """JSON paths of the objects that hold the structure's values."""
    inner = [_objects(node, _pointer(path, key)) for key, node in structure.items() if isinstance(node, dict)]
    return [path, *(found for paths in inner for found in paths)]


def _pointer(path: str, key: str) -> str:
    return f'{path}."{key}"'


def _json_structure(fields: list[_Field]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path in (path for field in fields for path in field.paths):
        *parents, leaf = path.split(".")
        node = root
        for part in parents:
            _refuse_twin(node, part)
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"The contract reads '{path}' inside '{part}' and also '{part}' itself as a value.")
        _refuse_twin(node, leaf)
        if isinstance(node.setdefault(leaf, "JSON"), dict):
            raise SettingsError(f"The contract reads '{path}' as a value and also fields inside it. Map one of them.")
    return root


def _refuse_twin(node: dict[str, Any], name: str) -> None:
    for twin in (other for other in node if other != name and other.lower() == name.lower()):
        raise SettingsError(
            f"The contract reads '{twin}' and '{name}' from the log, which differ in case only; SQL cannot tell them "
            "apart. Rename one of them in the log."
        )


def _values(fields: list[_Field], columns: Iterable[str] | None) -> list[tuple[_Field, str]]:
    known = None if columns is None else set(columns)
    values = []
    for field in fields:
        found = [sql for sql in (_path_sql(path, known) for path in field.paths) if sql]
        values.append((field, f"coalesce({', '.join(found)})" if found else "NULL::JSON"))
    return values


def _path_sql(path: str, columns: set[str] | None) -> str | None:
    if columns is None:
        return "document." + ".".join(quoted(part) for part in path.split("."))
    if path in columns:
        return _column_json(quoted(path))
    root, *rest = path.split(".")
    if rest and root in columns:
        # A nested column as JSON, then the path inside it: null where the column has no such field.
        pointer = functools.reduce(_pointer, rest, "$")
        return f"nullif(to_json({quoted(root)})->{literal(pointer)}, 'null'::JSON)"
    return None


def _column_json(column: str) -> str:
    return f"nullif(to_json({column}), 'null'::JSON)"


# --- the fields and their rules


def _fields(contract: Contract, textual: bool) -> list[_Field]:
    one_step = contract.episodes.kind == "one_step"
    fields = [
        _Field("episode_id", _paths(contract, "episode_id"), _label, _label_problem("episode_id"), not one_step),
        _Field("step", _paths(contract, "step"), _number(textual), _step_problem(), False),
        _Field(
            "timestamp",
            _paths(contract, "timestamp"),
            _timestamp(contract, textual),
            _timestamp_problem(contract),
            not one_step,
        ),
        _Field("action", _paths(contract, "action"), _label, _action_problem(contract), True),
        _Field(
            "available_actions",
            _paths(contract, "available_actions"),
            _list("VARCHAR", textual),
            _mask_problem(contract),
            False,
        ),
        _Field(
            "reward",
            _paths(contract, "reward"),
            _number(textual),
            _number_problem("reward", contract.reward.min, contract.reward.max),
            True,
        ),
        _Field("terminated", _paths(contract, "terminated"), _boolean(textual), _boolean_problem("terminated"), False),
        _Field("truncated", _paths(contract, "truncated"), _boolean(textual), _boolean_problem("truncated"), False),
        _Field(
            "behavior_prob",
            _paths(contract, "behavior_prob"),
            _number(textual),
            _probability_problem(),
            contract.behavior.propensity == "logged",
        ),
        _Field(
            "behavior_probs",
            _paths(contract, "behavior_probs"),
            _list("DOUBLE", textual),
            _probabilities_problem(contract),
            False,
        ),
        *[
            _Field(name, _paths(contract, name), _label, _label_problem(name), False)
            for name in ("decision_id", "policy_version", "decided_by")
        ],
    ]
    if contract.episodes.cluster is not None:
        fields.append(
            _Field("cluster", (contract.episodes.cluster,), _label, _label_problem(contract.episodes.cluster), True)
        )
    for struct, required in (("observation", True), ("final_observation", False)):
        for name, feature in contract.features.items():
            full = f"{struct}.{name}"
            typed, problem = _feature_rules(full, feature, textual)
            fields.append(_Field(full, _paths(contract, full), typed, problem, required and not feature.nullable))
    return fields


def _paths(contract: Contract, canonical: str) -> tuple[str, ...]:
    """Where the log may hold a canonical column: the mapped name, else its own; features also as own columns."""
    if canonical in contract.columns:
        return (contract.columns[canonical],)
    struct, _, name = canonical.partition(".")
    if not name:
        return (canonical,)
    nested = f"{contract.columns.get(struct, struct)}.{name}"
    return (nested, name) if struct == "observation" and not _reserved(name) else (nested,)


def _reserved(name: str) -> bool:
    """Whether a column of this name already is a canonical column, so that a feature must stand under `observation`."""
    return name.lower() in {*STEP_COLUMNS, "observation", "final_observation"}


def _feature_rules(
    name: str, feature: Feature, textual: bool
) -> tuple[Callable[[str], str], Callable[[str, str], str]]:
    if isinstance(feature, NumericFeature):
        return _number(textual), _number_problem(name, feature.min, feature.max)
    if isinstance(feature, BooleanFeature):
        return _boolean(textual), _boolean_problem(name)
    if isinstance(feature, VectorFeature):
        return _list("DOUBLE", textual), _vector_problem(name, feature)
    assert isinstance(feature, CategoricalFeature)
    return _label, _label_problem(name)


def _text(raw: str) -> str:
    return f"({raw}->>'$')"


def _shown(raw: str) -> str:
    return f"left({raw}::VARCHAR, 60)"


def _label(raw: str) -> str:
    return f"CASE WHEN json_type({raw}) IN {_LABEL_TYPES} THEN {_text(raw)} END"


def _label_problem(name: str) -> Callable[[str, str], str]:
    return lambda raw, typed: _cases(
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
        cases = [
            (f"{raw} IS NOT NULL AND {typed} IS NULL", f"{named} || {_shown(raw)} || ', not a number'"),
            (f"NOT isfinite({typed})", f"{named} || {_shown(raw)} || ', not finite'"),
        ]
        if low is not None:
            cases.append((f"{typed} < {low!r}", f"{named} || {typed} || ', below the contract''s min {low}'"))
        if high is not None:
            cases.append((f"{typed} > {high!r}", f"{named} || {typed} || ', above the contract''s max {high}'"))
        return _cases(*cases)

    return problem


def _step_problem() -> Callable[[str, str], str]:
    number = _number_problem("step", 0, _MAX_STEP)
    return lambda raw, typed: (
        f"coalesce({number(raw, typed)}, "
        + _cases(
            (f"isfinite({typed}) AND {typed} <> floor({typed})", f"'step is ' || {typed} || ', not a whole number'")
        )
        + ")"
    )


def _boolean(textual: bool) -> Callable[[str], str]:
    if textual:
        return lambda raw: f"TRY_CAST({_text(raw)} AS BOOLEAN)"
    return lambda raw: f"CASE WHEN json_type({raw}) = 'BOOLEAN' THEN TRY_CAST({raw} AS BOOLEAN) END"


def _boolean_problem(name: str) -> Callable[[str, str], str]:
    return lambda raw, typed: _cases(
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
    return lambda raw, typed: _cases(
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
    form, zone = contract.time.format, contract.time.zone
    if form in {"epoch_s", "epoch_ms"}:
        divisor = 1 if form == "epoch_s" else 1000
        return lambda raw: f"TRY(to_timestamp({_number(textual)(raw)} / {divisor}))"
    if form == "iso":
        naive = f"timezone({literal(zone)}, TRY_CAST(%s AS TIMESTAMP))" if zone else "NULL"
        return lambda raw: (
            f"CASE WHEN regexp_matches({_text(raw)}, {_HAS_ZONE}) THEN TRY_CAST({_text(raw)} AS TIMESTAMPTZ) "
            f"ELSE {naive.replace('%s', _text(raw))} END"
        )
    parsed = f"try_strptime(%s, {literal(form)})"
    if "%z" in form or "%Z" in form:
        return lambda raw: f"{parsed.replace('%s', _text(raw))}::TIMESTAMPTZ"
    if zone is None:
        return lambda raw: f"CASE WHEN {raw} IS NULL THEN NULL::TIMESTAMPTZ END"
    return lambda raw: f"timezone({literal(zone)}, {parsed.replace('%s', _text(raw))}::TIMESTAMP)"


def _timestamp_problem(contract: Contract) -> Callable[[str, str], str]:
    form, zone = contract.time.format, contract.time.zone
    wanted = "ISO 8601" if form == "iso" else form
    cases: list[Callable[[str, str], tuple[str, str]]] = []
    if zone is None and form not in {"epoch_s", "epoch_ms"} and "%z" not in form.lower():
        has_zone = f"regexp_matches(%s, {_HAS_ZONE})" if form == "iso" else "false"
        cases.append(
            lambda raw, _: (
                f"{raw} IS NOT NULL AND NOT {has_zone.replace('%s', _text(raw))}",
                f"'timestamp ' || {_shown(raw)} || ' has no time zone; set time.zone in the contract'",
            )
        )
    cases.append(
        lambda raw, typed: (
            f"{raw} IS NOT NULL AND ({typed} IS NULL OR NOT isfinite({typed}))",
            f"'timestamp is ' || {_shown(raw)} || {literal(f', not a time of the form {wanted}')}",
        )
    )
    cases.append(
        lambda raw, typed: (
            f"{typed} NOT BETWEEN TIMESTAMPTZ '0001-01-01 00:00:00+00' AND TIMESTAMPTZ '9999-12-31 23:59:59+00'",
            f"'timestamp is ' || {_shown(raw)} || ', outside the years 1 to 9999; is time.format right?'",
        )
    )
    return lambda raw, typed: _cases(*[case(raw, typed) for case in cases])


def _action_problem(contract: Contract) -> Callable[[str, str], str]:
    known = ", ".join(literal(name) for name in contract.actions.names)
    shown = ", ".join(contract.actions.names[:10]) + (", ..." if len(contract.actions.names) > 10 else "")
    return lambda raw, typed: _cases(
        (
            f"{raw} IS NOT NULL AND ({typed} IS NULL OR {typed} NOT IN ({known}))",
            f"'action is ' || {_shown(raw)} || {literal(f', none of the contract’s actions ({shown})')}",
        )
    )


def _mask_problem(contract: Contract) -> Callable[[str, str], str]:
    known = "[" + ", ".join(literal(name) for name in contract.actions.names) + "]"
    action = _typed("action")
    return lambda raw, typed: _cases(
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
        + _cases(
            (
                f"{typed} <= 0",
                f"'behavior_prob is ' || {typed} || ', and the probability of a logged action is above 0'",
            )
        )
        + ")"
    )


def _probabilities_problem(contract: Contract) -> Callable[[str, str], str]:
    n = len(contract.actions.names)
    logged = _logged_position(contract)
    return lambda raw, typed: _cases(
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
            f"abs({typed}[{logged}] - {_typed('behavior_prob')}) > 1e-3",
            "'behavior_probs and behavior_prob disagree on the logged action'",
        ),
    )


def _logged_position(contract: Contract) -> str:
    """Place of the logged action among the contract's, from 1."""
    labels = "[" + ", ".join(literal(name) for name in contract.actions.names) + "]"
    return f"list_position({labels}, {_typed('action')})"


def _cases(*cases: tuple[str, str]) -> str:
    return "CASE " + " ".join(f"WHEN {condition} THEN {text}" for condition, text in cases) + " END"


def _reasons(contract: Contract, fields: list[_Field]) -> list[str]:
    has_final = _has_final(contract)
    reasons = []
    for field in fields:
        problem = field.problem(_raw(field.name), _typed(field.name))
        if field.required:
            missing = f"{_raw(field.name)} IS NULL"
            if field.name == "behavior_prob":  # the list of all probabilities holds that of the logged action
                missing += f" AND {_raw('behavior_probs')} IS NULL"
            absent = f"{field.name} is missing" + _REMEDIES.get(field.name, "")
            problem = f"CASE WHEN {missing} THEN {literal(absent)} ELSE {problem} END"
        if field.name.startswith("final_observation."):
            feature = contract.features[field.name.removeprefix("final_observation.")]
            absent = (
                ""
                if feature.nullable
                else f"WHEN {_raw(field.name)} IS NULL THEN {literal(field.name + ' is missing')}"
            )
            problem = f"CASE WHEN NOT {has_final} THEN NULL {absent} ELSE {problem} END"
        reasons.append(problem)
    both = f"{_typed('terminated')} AND {_typed('truncated')}"
    reasons.append(_cases((both, "'terminated and truncated are both true'")))
    return reasons


def _has_final(contract: Contract) -> str:
    """Whether a truncated step brings what it bootstraps from; elsewhere a final observation means nothing."""
    given = " OR ".join(f"{_raw(f'final_observation.{name}')} IS NOT NULL" for name in contract.features)
    return f"(coalesce({_typed('truncated')}, false) AND ({given}))"


# --- the canonical row


def _outputs(contract: Contract) -> list[str]:
    """The columns of a step, each cast to its stored type."""

    def struct(prefix: str) -> str:
        return struct_sql(contract, lambda name: _typed(f"{prefix}.{name}"))

    one_step = contract.episodes.kind == "one_step"
    terminated = f"coalesce({_typed('terminated')}, {str(one_step).lower()})"
    place = f"coalesce({_typed('decision_id')}, $file_digest || ':' || {LINE})"
    episode_id = f"coalesce({_typed('episode_id')}, {place})" if one_step else _typed("episode_id")
    step = f"TRY_CAST({_typed('step')} AS INTEGER)"
    logged_probability = f"{_typed('behavior_probs')}[{_logged_position(contract)}]"
    values = {
        "episode_id": episode_id,
        "step": f"coalesce({step}, 0)" if one_step else step,
        "timestamp": _typed("timestamp"),
        "observation": struct("observation"),
        "action": _typed("action"),
        "available_actions": _typed("available_actions"),
        "reward": _typed("reward"),
        "terminated": terminated,
        "truncated": f"coalesce({_typed('truncated')}, false)",
        "final_observation": f"CASE WHEN {_has_final(contract)} THEN {struct('final_observation')} END",
        "behavior_prob": f"coalesce({_typed('behavior_prob')}, {logged_probability})",
        "behavior_probs": _typed("behavior_probs"),
        "cluster": _typed("cluster") if contract.episodes.cluster is not None else episode_id,
        "decision_id": _typed("decision_id"),
        "policy_version": _typed("policy_version"),
        "decided_by": _typed("decided_by"),
    }
    return [f"{value} AS {name}" for name, value in values.items()]
