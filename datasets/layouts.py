"""What a row of each table is made of: the fields that are read from a log, and the stored columns they become."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from datasets.contract import Contract
from datasets.duck import FEATURE_TYPES, literal
from datasets.fast_rules import FIRST_INSTANT, LAST_INSTANT
from datasets.fields import (
    Field,
    action_field,
    boolean_field,
    cases,
    feature_field,
    label_field,
    logged_label,
    logged_position,
    mask_field,
    number_field,
    probabilities_field,
    probability_field,
    raw_of,
    step_field,
    timestamp_field,
    typed_of,
)
from datasets.hashed_fields import hashed_field, hashed_fields, keys_output
from datasets.tables import table_columns

_REMEDIES = {"behavior_prob": " (where a log has none, set behavior.propensity = 'estimated' in the contract)"}
"""What to do where a field is missing and the contract could do without it."""


@dataclass(frozen=True)
class Layout:
    """How rows of one kind are read and stored. All SQL is over the columns `raw_of` and `typed_of` of the fields.

    Attributes:
        kind: "steps" or "outcomes".
        fields: what is read.
        outputs: SQL of each stored column that the row itself determines, by name. `episode_id` is null where only the
            row's place in its file can name it.
        reasons: what is wrong with a row, one SQL text per field and rule; NULL where nothing is.
        is_good: SQL that is true only where no reason holds, over the values of the fast reader, from the fields that
            it reads and whether it applies a field's fast rule.
    """

    kind: str
    fields: tuple[Field, ...]
    outputs: Mapping[str, str]
    reasons: tuple[str, ...]
    is_good: Callable[[Iterable[Field], Callable[[Field], bool]], str]


def step_layout(contract: Contract, *, textual: bool, latest: datetime | None = None) -> Layout:
    """Logged steps.

    Args:
        textual: values are text (CSV) rather than typed JSON.
        latest: a timestamp behind it lies in the future; None where that cannot be told.
    """
    fields = tuple(_step_fields(contract, textual))
    rules = [*_step_rules(contract), *_future_rules(latest)]
    reasons = (*_reasons(contract, fields), *rules)
    return Layout("steps", fields, _step_outputs(contract), reasons, _good(contract, rules))


def outcome_layout(contract: Contract, *, textual: bool, latest: datetime | None = None) -> Layout:
    """Outcomes: rewards of earlier decisions, and ends of episodes. Arguments as of `step_layout`."""

    def paths(name: str) -> tuple[str, ...]:
        return (contract.outcome_path(name),)

    decision = label_field("decision_id", paths("decision_id"), required=True)
    finals = [
        feature_field(name, feature, paths(name), textual, required=False)
        for name, feature in ((f"final_observation.{n}", f) for n, f in contract.features.items())
    ]
    fields = (
        hashed_field(decision) if decision.paths[0] in contract.privacy.hash else decision,
        timestamp_field(contract, paths("timestamp"), textual, required=True),
        number_field("reward", paths("reward"), textual),
        boolean_field("terminated", paths("terminated"), textual),
        boolean_field("truncated", paths("truncated"), textual),
        *(hashed_field(field) if field.name in contract.hashed_columns else field for field in finals),
    )
    outputs = {
        **{name: typed_of(name) for name in ("decision_id", "timestamp", "reward")},
        **{name: f"coalesce({typed_of(name)}, false)" for name in ("terminated", "truncated")},
        "final_observation": _final_output(contract),
    }
    ends = f"coalesce({typed_of('terminated')} OR {typed_of('truncated')}, false)"
    nothing = f"{raw_of('reward')} IS NULL AND NOT {ends}"
    rules = [
        _both_ends_rule(),
        cases((nothing, "'reward is missing, and it tells of no end of an episode'")),
        *_future_rules(latest),
    ]
    return Layout("outcomes", fields, outputs, (*_reasons(contract, fields), *rules), _good(contract, rules))


def lean_layout(layout: Layout, contract: Contract, found: Collection[str]) -> Layout:
    """The layout without what a sample of the log's rows does not hold, which makes it cheaper to read.

    If it comes later after all, it shows: a row with a value at a path that the sample lacks is in doubt.

    Args:
        found: dotted paths in the sample.
    """

    def lean(field: Field) -> Field:
        paths = tuple(path for path in field.paths if path in found)
        if field.required:
            return replace(field, paths=paths or field.paths)
        if paths or _is_final(field) or field.name.startswith("keys."):
            return field
        return _never(field.name, field.paths, _stored_type(contract, layout.kind, field.name))

    fields = tuple(lean(field) for field in layout.fields)
    read = {path for field in fields for path in field.paths}
    elsewhere = tuple(dict.fromkeys(p for field in layout.fields for p in field.paths if p not in read))
    if elsewhere:
        fields = (*fields, _never("elsewhere", elsewhere, "VARCHAR"))
    named = contract.columns if layout.kind == "steps" else contract.outcomes.columns if contract.outcomes else {}
    root = named.get("final_observation", "final_observation")
    finals = [path for field in fields if _is_final(field) for path in field.paths]
    if not finals or root in found or not all(path.startswith(f"{root}.") for path in finals):
        return replace(layout, fields=fields)
    type_ = table_columns(contract)[layout.kind]["final_observation"]
    return replace(
        layout,
        fields=(*(field for field in fields if not _is_final(field)), _never("final_observation", (root,), type_)),
        outputs={**layout.outputs, "final_observation": typed_of("final_observation")},
    )


def _never(name: str, paths: tuple[str, ...], type_: str) -> Field:
    """A field that the sample lacks: a row that has it after all is in doubt."""
    return Field(name, paths, lambda _: f"NULL::{type_}", lambda *_: "'not in the sample'")


def _stored_type(contract: Contract, kind: str, name: str) -> str:
    struct, _, feature = name.partition(".")
    return FEATURE_TYPES[contract.features[feature].type] if feature else table_columns(contract)[kind][struct]


def _is_final(field: Field) -> bool:
    return field.name.startswith("final_observation.")


def unmapped_columns(layout: Layout, columns: Iterable[str]) -> list[str]:
    """Top-level columns of a log that no field reads: they are dropped."""
    paths = {path for field in layout.fields for path in field.paths}
    used = paths | {path.split(".")[0] for path in paths}
    return sorted(column for column in columns if column not in used)


def struct_sql(contract: Contract, value: Callable[[str], str]) -> str:
    """A struct of the contract's features, `value(name)` cast to each feature's stored type."""
    fields = (f"{literal(name)}: ({value(name)})::{FEATURE_TYPES[f.type]}" for name, f in contract.features.items())
    return "{" + ", ".join(fields) + "}"


# --- fields


def _step_fields(contract: Contract, textual: bool) -> list[Field]:
    sequence = contract.episodes.kind == "sequence"

    paths = contract.log_paths
    reward = contract.reward
    fields = [
        label_field("episode_id", paths("episode_id"), required=sequence),
        step_field(paths("step"), textual),
        timestamp_field(contract, paths("timestamp"), textual, required=sequence),
        action_field(contract, paths("action"), textual),
        mask_field(contract, paths("available_actions"), textual),
        number_field(
            "reward", paths("reward"), textual, low=reward.min, high=reward.max, required=contract.outcomes is None
        ),
        boolean_field("terminated", paths("terminated"), textual),
        boolean_field("truncated", paths("truncated"), textual),
        probability_field(paths("behavior_prob"), textual, required=contract.behavior.propensity == "logged"),
        probabilities_field(contract, paths("behavior_probs"), textual),
        *[label_field(name, paths(name)) for name in ("decision_id", "policy_version", "decided_by")],
    ]
    if contract.episodes.cluster is not None:
        cluster = contract.episodes.cluster
        fields.append(label_field("cluster", (cluster,), shown=cluster, required=True))
    for struct, required in (("observation", True), ("final_observation", False)):
        for name, feature in contract.features.items():
            full = f"{struct}.{name}"
            needed = required and not feature.nullable
            fields.append(feature_field(full, feature, paths(full), textual, required=needed))
    return hashed_fields(contract, fields)


# --- what is wrong


def _reasons(contract: Contract, fields: Iterable[Field]) -> list[str]:
    reasons = []
    for field in fields:
        problem = field.problem(raw_of(field.name), typed_of(field.name))
        if field.required:
            absent = f"{field.name} is missing" + _REMEDIES.get(field.name, "")
            problem = f"CASE WHEN {_is_missing(field)} THEN {literal(absent)} ELSE {problem} END"
        if _is_final(field):
            feature = contract.features[field.name.removeprefix("final_observation.")]
            absent = literal(field.name + " is missing")
            needed = "" if feature.nullable else f"WHEN {raw_of(field.name)} IS NULL THEN {absent}"
            problem = f"CASE WHEN NOT {_has_final(contract)} THEN NULL {needed} ELSE {problem} END"
        reasons.append(problem)
    return reasons


def _is_missing(field: Field) -> str:
    missing = f"{raw_of(field.name)} IS NULL"
    if field.name == "behavior_prob":  # the list of all probabilities holds that of the logged action
        missing += f" AND {raw_of('behavior_probs')} IS NULL"
    return missing


def _step_rules(contract: Contract) -> list[str]:
    """What is wrong between the fields of a step."""
    rules = [_both_ends_rule()]
    if contract.outcomes is not None:
        awaited = f"{raw_of('reward')} IS NULL AND {raw_of('decision_id')} IS NULL"
        rules.append(cases((awaited, "'reward is missing, and without a decision_id no outcome can bring it'")))
        untimed = f"{raw_of('reward')} IS NULL AND {raw_of('timestamp')} IS NULL"
        rules.append(cases((untimed, "'reward is missing, and without a timestamp its outcomes have no window'")))
    return rules


def _both_ends_rule() -> str:
    both = f"{typed_of('terminated')} AND {typed_of('truncated')}"
    return cases((both, "'terminated and truncated are both true'"))


def _future_rules(latest: datetime | None) -> list[str]:
    if latest is None:
        return []
    timestamp, limit = typed_of("timestamp"), f"TIMESTAMPTZ {literal(latest.isoformat())}"
    return [cases((f"{timestamp} > {limit}", f"'timestamp is ' || {timestamp} || ', which lies in the future'"))]


def _good(contract: Contract, rules: Iterable[str]) -> Callable[[Iterable[Field], Callable[[Field], bool]], str]:
    def is_good(fields: Iterable[Field], is_fast: Callable[[Field], bool]) -> str:
        tests = [_field_is_good(contract, field, fast=is_fast(field)) for field in fields]
        return " AND ".join([*tests, *(f"({rule}) IS NULL" for rule in rules)])

    return is_good


def _field_is_good(contract: Contract, field: Field, *, fast: bool) -> str:
    raw, typed = raw_of(field.name), typed_of(field.name)
    if fast and field.fast is not None:
        good = f"coalesce({field.fast.good(raw, typed)}, false)"
    else:
        good = f"({field.problem(raw, typed)}) IS NULL"
    if _is_final(field):
        feature = contract.features[field.name.removeprefix("final_observation.")]
        absent = f"{raw} IS NULL" if feature.nullable else "false"
        return f"(NOT {_has_final(contract)} OR {absent} OR ({raw} IS NOT NULL AND {good}))"
    if field.required:
        return f"(NOT ({_is_missing(field)}) AND ({raw} IS NULL OR {good}))"
    return f"({raw} IS NULL OR {good})"


def _has_final(contract: Contract) -> str:
    """Whether a truncated step brings what it bootstraps from; elsewhere a final observation means nothing."""
    given = " OR ".join(f"{raw_of(f'final_observation.{name}')} IS NOT NULL" for name in contract.features)
    return f"(coalesce({typed_of('truncated')}, false) AND ({given}))"


# --- what is stored


def _step_outputs(contract: Contract) -> dict[str, str]:
    one_step = contract.episodes.kind == "one_step"
    episode_id = typed_of("episode_id")
    if one_step:
        episode_id = f"coalesce({episode_id}, {typed_of('decision_id')})"
    step = f"TRY_CAST({typed_of('step')} AS INTEGER)"
    logged_probability = f"{typed_of('behavior_probs')}[{logged_position(contract)}]"
    return {
        "episode_id": episode_id,
        "step": f"coalesce({step}, 0)" if one_step else step,
        "timestamp": typed_of("timestamp"),
        "observation": _typed_struct(contract, "observation"),
        "action": logged_label(contract),
        **({"action_value": typed_of("action")} if contract.actions.bins is not None else {}),
        "available_actions": typed_of("available_actions"),
        "reward": typed_of("reward"),
        "terminated": f"coalesce({typed_of('terminated')}, {str(one_step).lower()})",
        "truncated": f"coalesce({typed_of('truncated')}, false)",
        "final_observation": _final_output(contract),
        "behavior_prob": f"coalesce({typed_of('behavior_prob')}, {logged_probability})",
        "behavior_probs": typed_of("behavior_probs"),
        "cluster": typed_of("cluster") if contract.episodes.cluster is not None else episode_id,
        **keys_output(contract),
        "decision_id": typed_of("decision_id"),
        "policy_version": typed_of("policy_version"),
        "decided_by": typed_of("decided_by"),
        "log_date": _day(typed_of("timestamp")),
    }


def _typed_struct(contract: Contract, name: str) -> str:
    return struct_sql(contract, lambda feature: typed_of(f"{name}.{feature}"))


def _final_output(contract: Contract) -> str:
    return f"CASE WHEN {_has_final(contract)} THEN {_typed_struct(contract, 'final_observation')} END"


def _day(instant: str) -> str:
    """The UTC day of an instant; a cast would ask the time zone database for every row."""
    day = f"DATE '1970-01-01' + floor(epoch_us({instant}) / 86400000000)::INTEGER"
    return f"CASE WHEN {instant} BETWEEN {FIRST_INSTANT} AND {LAST_INSTANT} THEN {day} END"
