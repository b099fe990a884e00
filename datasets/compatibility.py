"""Which changes of a contract a lake or a release survives."""

from __future__ import annotations

from collections.abc import Mapping

from datasets.actions import Actions
from datasets.caps import Cap, counter_field
from datasets.contract import CategoricalFeature, Contract, Feature, ImageFeature, NumericFeature, VectorFeature
from datasets.errors import OfflineDqnError


class IncompatibleContractError(OfflineDqnError):
    """The contract changed in a way that what was written before cannot follow."""


def lake_incompatibilities(old: Contract, new: Contract) -> list[str]:
    """What in `new` would make rows written under `old` wrong; empty if they can stand side by side.

    Compatible are added nullable features (null in history), actions added behind the others, added categories, wider
    ranges, caps added or changed in how much they allow, and everything that is not stored in a row: the discount, the
    log's column names and time format. Bins of numeric actions stay as they are.
    """
    problems = []
    if old.name != new.name:
        problems.append(
            f"name was '{old.name}' and is '{new.name}'; splits are salted with it, and no episode may change sides"
        )
    problems += [
        f"features.{name} is gone (it was {feature.type}); keep it, or start a new workspace"
        for name, feature in old.features.items()
        if name not in new.features
    ]
    for name, feature in new.features.items():
        if name in old.features:
            problems += [f"features.{name}: {text}" for text in _feature_differences(old.features[name], feature)]
            if old.features[name].nullable and not feature.nullable:
                problems.append(f"features.{name} was nullable and is not any more; history may hold nulls")
        elif not feature.nullable:
            problems.append(f"features.{name} is new and history has no value for it; set nullable = true")
    problems += _action_differences(old.actions, new.actions)
    problems += _counted_otherwise(old.actions.caps, new.actions.caps)
    problems += _narrower("reward", old.reward.min, old.reward.max, new.reward.min, new.reward.max)
    if old.outcomes is not None and new.outcomes is None:
        problems.append("outcomes is gone; steps in history may await them, and would never have a reward")
    if old.behavior.propensity == "estimated" and new.behavior.propensity == "logged":
        problems.append("behavior.propensity was 'estimated' and is 'logged'; history may lack probabilities")
    if old.episodes.kind != new.episodes.kind:
        problems.append(f"episodes.kind was '{old.episodes.kind}' and is '{new.episodes.kind}'")
    problems += [
        f"privacy.hash lost '{name}', by which the rows of a subject are found; keep it"
        for name in old.privacy.hash
        if name not in new.privacy.hash
    ]
    problems += [
        f"{name} {'is hashed now and was not' if name in new.hashed_columns else 'was hashed and is not any more'}; "
        "equal values would no longer be equal, so start a new workspace"
        for name in dict.fromkeys([*old.hashed_columns, *new.hashed_columns])
        if (name in old.hashed_columns) != (name in new.hashed_columns)
    ]
    if old.episodes.cluster != new.episodes.cluster:
        problems.append(
            f"episodes.cluster was {old.episodes.cluster!r} and is {new.episodes.cluster!r}; splits go by cluster and "
            "must never change"
        )
    return problems


def policy_incompatibilities(policy: Contract, current: Contract) -> list[str]:
    """Why a policy made under `policy` cannot act under `current`; empty if it can."""
    problems = []
    for name, feature in policy.features.items():
        if name not in current.features:
            problems.append(f"features.{name} is gone")
        else:
            problems += [f"features.{name}: {text}" for text in _type_differences(feature, current.features[name])]
    if policy.actions.bins != current.actions.bins:
        return [*problems, _other_bins(policy.actions, current.actions)]
    problems += [f"action '{a}' is gone" for a in policy.actions.names if a not in current.actions.names]
    return problems


def _action_differences(old: Actions, new: Actions) -> list[str]:
    if old.bins != new.bins:
        return [
            f"{_other_bins(old, new)}; rows already stored lie in the old ones, and their probabilities too: start a "
            "new workspace"
        ]
    problems = [
        f"actions.names lost '{action}', which logged rows may hold; keep it"
        for action in old.names
        if action not in new.names
    ]
    kept = [action for action in old.names if action in new.names]
    if list(new.names[: len(kept)]) != kept:
        problems.append(
            f"actions.names was {', '.join(old.names)} and is {', '.join(new.names)}; behavior_probs "
            "already stored are in the old order, so add new actions at the end"
        )
    return problems


def _counted_otherwise(old: Mapping[str, Cap], new: Mapping[str, Cap]) -> list[str]:
    """Counters that would mean another number than they did. How many are allowed is not in them and may change."""
    return [
        f"actions.caps.{action} counted per {old[action].per} by {old[action].by} and counts per {cap.per} by "
        f"{cap.by}: '{counter_field(action, cap)}' holds another number in history. Give the cap a new `field`, and "
        "keep the old one among the features (numeric, nullable)"
        for action, cap in new.items()
        if action in old
        and counter_field(action, cap) == counter_field(action, old[action])
        and (cap.per_us, cap.by) != (old[action].per_us, old[action].by)
    ]


def _other_bins(old: Actions, new: Actions) -> str:
    return f"actions.bins was {_bins_of(old)} and is {_bins_of(new)}"


def _bins_of(actions: Actions) -> str:
    return "none" if actions.bins is None else ", ".join(actions.names)


def _feature_differences(old: Feature, new: Feature) -> list[str]:
    differences = _type_differences(old, new)
    if isinstance(old, NumericFeature) and isinstance(new, NumericFeature):
        differences += _narrower("range", old.min, old.max, new.min, new.max)
    if isinstance(old, CategoricalFeature) and isinstance(new, CategoricalFeature) and old.values and new.values:
        lost = [label for label in old.values if label not in new.values]
        differences += [f"lost the labels {', '.join(lost)}"] if lost else []
    return differences


def _type_differences(old: Feature, new: Feature) -> list[str]:
    if old.type != new.type:
        return [f"was {old.type} and is {new.type}"]
    differences = []
    if isinstance(old, NumericFeature) and isinstance(new, NumericFeature) and old.unit != new.unit:
        differences.append(f"unit was '{old.unit}' and is '{new.unit}'")
    if isinstance(old, VectorFeature) and isinstance(new, VectorFeature) and old.length != new.length:
        differences.append(f"length was {old.length} and is {new.length}")
    if isinstance(old, ImageFeature) and isinstance(new, ImageFeature) and old.shape != new.shape:
        differences.append(f"shape was {old.shown_shape} and is {new.shown_shape}")
    return differences


def _narrower(
    what: str, old_min: float | None, old_max: float | None, new_min: float | None, new_max: float | None
) -> list[str]:
    problems = []
    if new_min is not None and (old_min is None or new_min > old_min):
        problems.append(f"{what} min was {old_min} and is {new_min}: rows already stored may lie below it")
    if new_max is not None and (old_max is None or new_max < old_max):
        problems.append(f"{what} max was {old_max} and is {new_max}: rows already stored may lie above it")
    return problems
