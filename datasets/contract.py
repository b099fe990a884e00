"""The contract: one description of a decision problem, from which everything else is derived."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import zoneinfo
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from datasets.actions import Actions
from datasets.caps import cap_conditions, cap_problems, counter_problems, with_counters
from datasets.constraints import (
    Constraint,
    Rules,
    Slices,
    Success,
    constraint_problems,
    slice_problems,
    success_problem,
)
from datasets.durations import seconds_of
from datasets.settings import Settings, SettingsError, build_settings, parse_toml

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_STRPTIME = re.compile(r"%(-?[dmyHIMSj]|[aAbBwYpfgnzZUWcxX%])")
"""The specifiers that DuckDB's strptime knows."""

STEP_COLUMNS = (
    "episode_id",
    "step",
    "timestamp",
    "action",
    "available_actions",
    "reward",
    "terminated",
    "truncated",
    "behavior_prob",
    "behavior_probs",
    "decision_id",
    "policy_version",
    "decided_by",
)
"""Canonical columns of a step that a log may carry, beside observation, final_observation and the cluster."""


class _FeatureBase(Settings):
    exogenous: bool = False
    """Not moved by our own actions: keeps its drift reference after a promotion."""
    nullable: bool = False
    """May be missing; otherwise a row without it breaks the contract."""


class NumericFeature(_FeatureBase):
    """A finite number."""

    type: Literal["numeric"]
    min: float | None = None
    """Smallest valid value; a row below it breaks the contract."""
    max: float | None = None
    """Largest valid value."""
    unit: str = ""
    """Shown in reports."""

    @model_validator(mode="after")
    def _ordered(self) -> NumericFeature:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class CategoricalFeature(_FeatureBase):
    """A label. One outside `values` is no violation: it takes the encoder's "unseen" slot and shows as drift."""

    type: Literal["categorical"]
    values: tuple[str, ...] | None = None
    """Known labels; without them they are learned from the training split."""

    @field_validator("values")
    @classmethod
    def _unique(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError("wants at least one label, each once")
        return values


class BooleanFeature(_FeatureBase):
    """True or false."""

    type: Literal["boolean"]


class VectorFeature(_FeatureBase):
    """A list of finite numbers of fixed length."""

    type: Literal["vector"]
    length: int = Field(gt=0)
    """Number of components."""


class ImageFeature(_FeatureBase):
    """A picture: whole numbers from 0 to 255, logged row by row from the top, each pixel with its channels."""

    type: Literal["image"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Height, width and channels."""

    @property
    def size(self) -> int:
        """Numbers that it holds."""
        height, width, channels = self.shape
        return height * width * channels

    @property
    def shown_shape(self) -> str:
        """The shape in words."""
        return " x ".join(map(str, self.shape))


Feature = Annotated[
    NumericFeature | CategoricalFeature | BooleanFeature | VectorFeature | ImageFeature,
    Field(discriminator="type"),
]


class RewardRange(Settings):
    """The smallest and largest reward of one step; a row outside breaks the contract."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> RewardRange:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class Behavior(Settings):
    """What the log knows of the policy that wrote it."""

    propensity: Literal["logged", "estimated"] = "logged"
    """`logged`: every row carries the probability of its action. `estimated`: they are fitted from the log, and
    every number that rests on them says so."""


class EpisodeRules(Settings):
    """What an episode is, and when it has ended."""

    kind: Literal["sequence", "one_step"] = "sequence"
    """`one_step`: every row is an episode of its own and needs no id."""
    timeout: str = "1h"
    """An episode idle this long has ended. Also where logs carry no end flags."""
    on_timeout: Literal["truncated", "terminated"] = "truncated"
    """How an idle episode ended: `truncated` has a future that the log does not show, `terminated` has none."""
    clock_tolerance: str = "1m"
    """How far the times of an episode may contradict the numbers of its steps; beyond that its clock has jumped."""
    cluster: str | None = None
    """The log column that names what makes episodes dependent (a user, a service); default: the episode itself."""

    @field_validator("timeout", "clock_tolerance")
    @classmethod
    def _duration(cls, duration: str) -> str:
        seconds_of(duration)
        return duration

    @property
    def timeout_s(self) -> float:
        """`timeout` in seconds."""
        return seconds_of(self.timeout)

    @property
    def clock_tolerance_s(self) -> float:
        """`clock_tolerance` in seconds."""
        return seconds_of(self.clock_tolerance)


class TimeFormat(Settings):
    """How timestamps are written in the log."""

    format: str = "iso"
    """`iso`, `epoch_s`, `epoch_ms`, or a strptime pattern such as `%Y-%m`."""
    zone: str | None = None
    """Zone of times that carry none; without it they are refused."""

    @model_validator(mode="after")
    def _known(self) -> TimeFormat:
        if self.format not in {"iso", "epoch_s", "epoch_ms"} and "%" not in self.format:
            raise ValueError(f"format = '{self.format}' is neither iso, epoch_s, epoch_ms nor a strptime pattern")
        if "%" in _STRPTIME.sub("", self.format):
            raise ValueError(f"format = '{self.format}' has a % that begins no strptime specifier")
        if self.zone is not None and self.zone not in zoneinfo.available_timezones():
            raise ValueError(f"zone = '{self.zone}' is no IANA time zone")
        return self


OUTCOME_COLUMNS = ("decision_id", "timestamp", "reward", "terminated", "truncated")
"""Canonical columns of an outcome, beside final_observation."""


class OutcomeRules(Settings):
    """What is known only after the decision: its reward, and that its episode ended with it. It arrives in logs of its
    own and is joined by `decision_id`.

    A step that carries its own reward needs no outcome; one without waits for its outcomes until the window closes.
    """

    attribution_window: str
    """How long after its decision an outcome still counts."""
    combine: Literal["sum", "last", "max"] = "sum"
    """What several outcomes of one decision make together; `last` by their timestamps."""
    default: float = 0.0
    """Reward of a decision without an outcome once the window has closed."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Canonical name = name in the outcome log; dots reach into nested fields."""

    @field_validator("attribution_window")
    @classmethod
    def _duration(cls, attribution_window: str) -> str:
        seconds_of(attribution_window)
        return attribution_window

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = (*OUTCOME_COLUMNS, "final_observation")
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise ValueError(f"'{unknown[0]}' is no column of an outcome; known: {', '.join(known)}")
        wrong = [path for path in columns.values() if not all(path.split(".")) or '"' in path]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is no name of a log column")
        return columns

    @property
    def window_s(self) -> float:
        """`attribution_window` in seconds."""
        return seconds_of(self.attribution_window)


class Privacy(Settings):
    """What of a log must never be stored as it is. Names are those of log columns; dots reach into nested ones."""

    drop: tuple[str, ...] = ()
    """Columns that are taken out before anything is written, from quarantined text too."""
    hash: tuple[str, ...] = ()
    """Columns stored as a keyed hash (HMAC-SHA-256, the key from the environment): equal values stay equal, and a
    subject's rows can be found and erased. A canonical column that reads one of them holds the hash too."""
    raw_days: int = Field(30, ge=0)
    """Days after which the encrypted text of lines that could not be parsed, and so not redacted, is purged."""

    @model_validator(mode="after")
    def _consistent(self) -> Privacy:
        names = [*self.drop, *self.hash]
        wrong = [name for name in names if not all(name.split(".")) or '"' in name]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is no name of a log column")
        twice = sorted({name for name in names if [n.lower() for n in names].count(name.lower()) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' is named twice in drop and hash")
        inside = [(name, outer) for name in names for outer in names if name != outer and _is_within(name, outer)]
        if inside:
            raise ValueError(f"'{inside[0][0]}' lies inside '{inside[0][1]}', which is hidden whole")
        return self

    @property
    def is_set(self) -> bool:
        """Whether anything is dropped or hashed: then text that cannot be redacted is encrypted."""
        return bool(self.drop or self.hash)


class Contract(Settings):
    """A decision problem, described once."""

    name: str = Field(min_length=1)
    """Of the problem; also the name under which releases are registered."""
    gamma: float = Field(gt=0.0, le=1.0)
    """Discount of one step."""
    features: dict[str, Feature] = Field(min_length=1)
    """The observation, by name, in the order of every array with a feature axis."""
    actions: Actions
    reward: RewardRange = RewardRange()
    outcomes: OutcomeRules | None = None
    """Where rewards arrive later; without it every step carries its own."""
    behavior: Behavior = Behavior()
    success: Success | None = None
    """When a decision was a success; its rate is shown beside the value."""
    constraints: dict[str, Constraint] = Field(default_factory=dict)
    """What must not happen, by name. The current contract's hold, whatever a release was made under."""
    slices: Slices = Slices()
    privacy: Privacy = Privacy()
    episodes: EpisodeRules = EpisodeRules()
    time: TimeFormat = TimeFormat()
    columns: dict[str, str] = Field(default_factory=dict)
    """Canonical name = name in the log; dots reach into nested fields."""

    @model_validator(mode="before")
    @classmethod
    def _counting(cls, given: Any) -> Any:
        return with_counters(given) if isinstance(given, Mapping) else given

    @field_validator("features")
    @classmethod
    def _feature_names(cls, features: dict[str, Feature]) -> dict[str, Feature]:
        problems = [
            f"'{name}' is no feature name; that is a letter or underscore, then letters, digits, underscores or dashes"
            for name in features
            if not _NAME.fullmatch(name)
        ]
        folded = [name.lower() for name in features]
        problems += [
            f"'{name}' differs from another feature in case only, which SQL cannot tell apart"
            for name in features
            if folded.count(name.lower()) > 1
        ]
        images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        if len(images) > 1:
            problems.append(f"{', '.join(images)} are images, and an observation holds one at most")
        if problems:
            raise ValueError("; ".join(problems))
        return features

    @field_validator("success", "constraints", "slices")
    @classmethod
    def _rules_fit(cls, rules: Any, info: ValidationInfo) -> Any:
        if "features" not in info.data or "actions" not in info.data:  # they have problems of their own
            return rules
        problems = _rule_problems(rules, info.data["features"], info.data["actions"])
        if problems:
            raise ValueError("; ".join(problems))
        return rules

    @field_validator("columns")
    @classmethod
    def _column_names(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        features = info.data.get("features")  # absent where they have problems of their own
        nested = [f"{struct}.{name}" for struct in ("observation", "final_observation") for name in features or ()]
        known = [*STEP_COLUMNS, "observation", "final_observation", *nested]
        problems = []
        for canonical, path in columns.items():
            if canonical not in known and (features is not None or "." not in canonical):
                nearest = difflib.get_close_matches(canonical, known, n=1, cutoff=0.5)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known)}"
                problems.append(f"'{canonical}' is no canonical column of this contract; {hint}")
            if not all(path.split(".")) or '"' in path:
                problems.append(f"'{canonical}' is mapped to '{path}', which is no name of a log column")
        if problems:
            raise ValueError("; ".join(problems))
        return columns

    @model_validator(mode="after")
    def _default_within_range(self) -> Contract:
        low, high = self.reward.min, self.reward.max
        if self.outcomes is not None:
            default = self.outcomes.default
            if (low is not None and default < low) or (high is not None and default > high):
                raise ValueError(f"outcomes.default is {default}, outside the rewards from {low} to {high}")
        return self

    @model_validator(mode="after")
    def _counters_fit(self) -> Contract:
        caps = self.actions.caps
        problems = counter_problems(caps, self.features)
        if self.episodes.cluster is None:
            problems += [
                f"actions.caps.{action} is by cluster, and episodes.cluster names no column"
                for action, cap in caps.items()
                if cap.by == "cluster"
            ]
        if self.episodes.kind == "one_step":
            problems += [
                f"actions.caps.{action} is by episode, and every row is an episode of its own (episodes.kind)"
                for action, cap in caps.items()
                if cap.by == "episode"
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> Contract:
        problems = privacy_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def rules(self) -> Rules:
        """What it asks of decisions beside their reward."""
        actions = self.actions
        return Rules(
            success=self.success,
            constraints=self.constraints,
            slices=self.slices,
            safe=actions.safe,
            caps=actions.caps,
        )

    @property
    def forbids(self) -> dict[str, str]:
        """Condition of each constraint that forbids actions, by name, those that follow from caps behind the others."""
        declared = {name: rule.forbid for name, rule in self.constraints.items() if rule.forbid is not None}
        return {**declared, **cap_conditions(self.actions.caps)}

    @property
    def breaches(self) -> dict[str, str]:
        """Condition of each constraint that an outcome may breach, by name."""
        return {name: rule.breached for name, rule in self.constraints.items() if rule.breached is not None}

    @property
    def image(self) -> tuple[str, ImageFeature] | None:
        """The one image among the features, by name; None where there is none."""
        return next(((n, f) for n, f in self.features.items() if isinstance(f, ImageFeature)), None)

    def log_paths(self, canonical: str) -> tuple[str, ...]:
        """Where a log may hold a canonical column: the mapped name, else its own; features also as own columns."""
        if canonical == "cluster":
            return (self.episodes.cluster,) if self.episodes.cluster else ()
        if canonical in self.columns:
            return (self.columns[canonical],)
        struct, _, name = canonical.partition(".")
        if not name:
            return (canonical,)
        nested = f"{self.columns.get(struct, struct)}.{name}"
        # A column that is canonical already is no feature: that one must stand under `observation`.
        alone = name.lower() not in {*STEP_COLUMNS, "observation", "final_observation"}
        return (nested, name) if struct == "observation" and alone else (nested,)

    def outcome_path(self, canonical: str) -> str:
        """Where a log of outcomes holds a canonical column of an outcome."""
        named = self.outcomes.columns if self.outcomes is not None else {}
        struct, _, feature = canonical.partition(".")
        return f"{named.get(struct, struct)}.{feature}" if feature else named.get(struct, struct)

    @cached_property
    def hashed_columns(self) -> tuple[str, ...]:
        """Canonical columns of a step that hold keyed hashes: those that read a hashed path, and a feature in both of
        its structs."""
        hashed = set(self.privacy.hash)
        read = {name for name in canonical_names(self) if hashed & set(self.log_paths(name))}
        features = {name.partition(".")[2] for name in read if "." in name}
        return tuple(n for n in canonical_names(self) if n in read or n.partition(".")[2] in features)

    @cached_property
    def hashed_paths(self) -> tuple[str, ...]:
        """Paths of a log whose values are hashed: those in `privacy.hash`, and wherever else a hashed column may
        stand."""
        elsewhere = [path for name in self.hashed_columns for path in self.log_paths(name)]
        if self.outcomes is not None:
            elsewhere += [self.outcome_path(n) for n in outcome_names(self) if "." in n and n in self.hashed_columns]
        return tuple(dict.fromkeys([*self.privacy.hash, *elsewhere]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contract's content: equal contracts have equal digests whatever the file's layout."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The contract as plain JSON values, in the order it was written."""
        return self.model_dump(mode="json", exclude_none=True)


def canonical_names(contract: Contract) -> list[str]:
    """Every canonical column of a step that is read from a log."""
    structs = [f"{struct}.{name}" for struct in ("observation", "final_observation") for name in contract.features]
    return [*STEP_COLUMNS, *(["cluster"] if contract.episodes.cluster else []), *structs]


def outcome_names(contract: Contract) -> list[str]:
    """Every canonical column of an outcome that is read from a log."""
    return [*OUTCOME_COLUMNS, *(f"final_observation.{name}" for name in contract.features)]


def _rule_problems(
    rules: Success | Slices | Mapping[str, Constraint] | None, features: Mapping[str, Feature], actions: Actions
) -> list[str]:
    if rules is None:
        return []
    if isinstance(rules, Success):
        problem = success_problem(rules, features, actions)
        return [] if problem is None else [problem]
    if isinstance(rules, Slices):
        return slice_problems(rules, features)
    names = [f"'{name}' is no name of a constraint" for name in rules if not _NAME.fullmatch(name)]
    return names + [
        problem for name, rule in rules.items() for problem in constraint_problems(name, rule, features, actions)
    ]


def with_rules(contract: Contract, rules: Rules) -> Contract:
    """`contract` with other rules, such as those of the current contract on that of an older snapshot.

    Raises:
        ValueError: naming every rule that speaks of a feature or action which `contract` lacks.
    """
    safe = rules.safe if rules.safe in contract.actions.names else None
    caps = {action: cap for action, cap in rules.caps.items() if action in contract.actions.names}
    actions = contract.actions.model_copy(update={"safe": safe, "caps": caps})
    changes = {"success": rules.success, "constraints": rules.constraints, "slices": rules.slices}
    problems = [text for rule in changes.values() for text in _rule_problems(rule, contract.features, actions)]
    problems += cap_problems(caps, actions.names, safe) + counter_problems(caps, contract.features)
    if problems:
        raise ValueError("; ".join(problems))
    kept = {name: getattr(contract, name) for name in Contract.model_fields}
    return Contract(**{**kept, **changes, "actions": actions})  # a copy would keep the old digest


_HASHABLE = ("episode_id", "decision_id", "decided_by", "cluster")
"""Canonical columns whose labels mean nothing but themselves, so that a hash serves as well."""


def privacy_problems(contract: Contract) -> list[str]:
    """What the contract reads from a log although `[privacy]` takes it away, or cannot read once it is hashed."""
    privacy, outcomes = contract.privacy, contract.outcomes
    read = [(name, path) for name in canonical_names(contract) for path in contract.log_paths(name)]
    if outcomes is not None:
        read += [(f"outcomes.{name}", contract.outcome_path(name)) for name in outcome_names(contract)]
    problems = [
        f"privacy.drop takes out '{path}', which the contract reads as {name}"
        for name, path in read
        if any(_is_within(path, dropped) for dropped in privacy.drop)
    ]
    hidden = [*privacy.drop, *privacy.hash]
    problems += [
        f"the contract reads '{path}' as {name}, and privacy hides '{inner}' inside it"
        for name, path in read
        for inner in hidden
        if _is_within(inner, path) and inner.lower() != path.lower()
    ]
    for name, path in read:
        for hashed in (h for h in privacy.hash if _is_within(path, h)):
            if path != hashed:
                problems.append(f"the contract reads '{path}' as {name}, which privacy.hash calls '{hashed}'")
            elif not _is_hashable(contract, name):
                problems.append(
                    f"privacy.hash names '{path}', which the contract reads as {name}: a hash is no such value. "
                    f"Possible are {', '.join(_HASHABLE)} and categorical features without values"
                )
    if outcomes is not None:
        joined = outcomes.columns.get("decision_id", "decision_id") in privacy.hash
        if joined != ("decision_id" in contract.hashed_columns):
            problems.append("privacy.hash names the decision_id of only one of the two logs, which then never join")
    return list(dict.fromkeys(problems))


def _is_within(path: str, outer: str) -> bool:
    return f"{path.lower()}.".startswith(f"{outer.lower()}.")


def _is_hashable(contract: Contract, name: str) -> bool:
    name = name.removeprefix("outcomes.")
    if name in _HASHABLE:
        return True
    feature = contract.features.get(name.partition(".")[2])
    return isinstance(feature, CategoricalFeature) and feature.values is None


def contract_from_text(text: str, where: str) -> Contract:
    """The contract that a TOML text describes; `where` names it in errors."""
    return build_settings(Contract, parse_toml(text, where), where)


def contract_from_json(values: dict[str, Any], where: str) -> Contract:
    """The contract that `Contract.to_json` wrote."""
    return build_settings(Contract, values, where)


def read_contract(path: Path) -> Contract:
    """The contract in a TOML file.

    Raises:
        SettingsError: the file is missing, not TOML, or breaks a rule; every problem is named at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"{path} does not exist. `offline-dqn init DIR` writes a workspace with one.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error
    return contract_from_text(text, str(path))
