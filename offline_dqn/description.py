"""A policy as plain JSON values and named tensors, and back: nothing of it needs pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from datasets.contract import Contract, contract_from_json
from datasets.encoding import Encoder, FeatureEncoding
from datasets.errors import OfflineDqnError
from datasets.settings import Settings, build_settings
from offline_dqn.architecture import Architecture, Weights
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.guard_description import build_guard, describe_guard, guard_tensors
from offline_dqn.guarded import GuardedPolicy
from offline_dqn.int8_weights import Int8Weights, int8_names
from offline_dqn.mixture import MixturePolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import Rule, RulePolicy

AnyPolicy = QPolicy | RulePolicy | MixturePolicy | GuardedPolicy
Tensors = Mapping[str, NDArray[Any]]
KINDS = ("q", "rules", "mixture", "guarded")


class PolicyArtifactError(OfflineDqnError):
    """A policy folder that is missing, altered, or of another format, or a policy that cannot become one."""


class _Part(Settings):
    """Base of what a manifest says of a policy; the manifest says more, which is not read here."""

    model_config = ConfigDict(extra="ignore")


class _Mixture(_Part):
    share: float = Field(gt=0, lt=1)
    own: dict[str, Any]
    partner: dict[str, Any]


class _Guarded(_Part):
    own: dict[str, Any]
    fallback: dict[str, Any]
    guard: dict[str, Any]


class _Common(_Part):
    contract: dict[str, Any]
    exploration: float = Field(ge=0, le=1)


class _Rule(_Part):
    when: str
    action: str


class _Rules(_Common):
    rules: tuple[_Rule, ...]
    otherwise: str


class _Encoding(_Part):
    kind: Literal["number", "labels", "image"]
    mean: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    missing: bool
    labels: tuple[str, ...]
    shape: tuple[Annotated[int, Field(gt=0)], ...]


class _Networks(_Part):
    architecture: Architecture
    precision: Literal["float32", "int8"]


class _Q(_Common, _Networks):
    outputs: Literal["values", "logits"]
    encoder: dict[str, _Encoding]
    reward_scale: float = Field(gt=0)
    choice: Choice
    behavior: _Networks | None
    potential: str | None
    snapshot_digest: str
    config: dict[str, Any]


def along(policy: AnyPolicy, actions: tuple[str, ...]) -> AnyPolicy:
    """The same policy, with action axes that follow these labels."""
    if isinstance(policy, GuardedPolicy):
        own, fallback = along(policy.own, actions), along(policy.fallback, actions)
        assert not isinstance(own, GuardedPolicy)
        assert isinstance(fallback, QPolicy | RulePolicy)
        return replace(policy, own=own, fallback=fallback)
    if isinstance(policy, MixturePolicy):
        own = replace(policy.own, actions=actions)
        return replace(policy, own=own, partner=along(policy.partner, actions))
    return replace(policy, actions=actions)


def describe(policy: AnyPolicy) -> dict[str, Any]:
    """Plain JSON values of everything but the tensors; what is made of parts holds them whole."""
    if isinstance(policy, GuardedPolicy):
        return {
            "kind": "guarded",
            "own": describe(policy.own),
            "fallback": describe(policy.fallback),
            "guard": describe_guard(policy.guard),
        }
    if isinstance(policy, MixturePolicy):
        return {
            "kind": "mixture",
            "share": policy.share,
            "own": describe(policy.own),
            "partner": describe(policy.partner),
        }
    common = {
        "contract": policy.contract.to_json(),
        "contract_digest": policy.contract.digest,
        "actions": list(policy.contract.actions.names),
        "exploration": policy.exploration,
    }
    if isinstance(policy, RulePolicy):
        rules = [{"when": rule.when, "action": rule.action} for rule in policy.rules]
        return {"kind": "rules", **common, "rules": rules, "otherwise": policy.otherwise}
    return {
        "kind": "q",
        **common,
        "outputs": policy.kind,
        "architecture": policy.architecture.model_dump(mode="json"),
        "precision": _precision(policy.weights),
        "encoder": policy.encoder.to_json(),
        "reward_scale": policy.reward_scale,
        "choice": policy.choice.model_dump(mode="json"),
        "behavior": _described_behavior(policy.behavior),
        "potential": policy.potential,
        "snapshot_digest": policy.snapshot_digest,
        "config": dict(policy.config),
    }


def tensors_of(policy: AnyPolicy) -> dict[str, NDArray[Any]]:
    """Every tensor by name: those of a behavior model after "behavior.", those of a partner after "partner.", those of
    a fallback after "fallback.", those of a guard after "guard."."""
    if isinstance(policy, RulePolicy):
        return {}
    if isinstance(policy, GuardedPolicy):
        fallback = {f"fallback.{name}": tensor for name, tensor in tensors_of(policy.fallback).items()}
        return tensors_of(policy.own) | fallback | guard_tensors(policy.guard)
    if isinstance(policy, MixturePolicy):
        partner = tensors_of(policy.partner)
        return tensors_of(policy.own) | {f"partner.{name}": tensor for name, tensor in partner.items()}
    tensors = _stored(policy.weights)
    if policy.behavior is not None:
        tensors |= {f"behavior.{name}": tensor for name, tensor in _stored(policy.behavior.weights).items()}
    return tensors


def build(description: Mapping[str, Any], tensors: Tensors, where: str, actions: tuple[str, ...] | None) -> AnyPolicy:
    """The policy that `describe` and `tensors_of` took apart.

    Args:
        description: what `describe` gave.
        tensors: what `tensors_of` gave.
        where: names the description in errors.
        actions: labels and order of the action axes; without them, those of its own contract.

    Raises:
        PolicyArtifactError: the policy knows an action that is not among `actions`, tensors and description differ, or
            a part is missing, of another type, or no value that a policy can have.
    """
    try:
        return _build(description, tensors, where, actions)
    except PolicyArtifactError:
        raise
    except (OfflineDqnError, ValueError) as error:
        raise PolicyArtifactError(f"{where} does not describe a policy: {error}") from error


def _build(description: Mapping[str, Any], tensors: Tensors, where: str, actions: tuple[str, ...] | None) -> AnyPolicy:
    kind = description.get("kind")
    if kind == "guarded":
        return _built_guarded(build_settings(_Guarded, description, where), tensors, where, actions)
    if kind == "mixture":
        mixture = build_settings(_Mixture, description, where)
        own = _build(mixture.own, tensors, where, actions)
        if not isinstance(own, QPolicy):
            raise PolicyArtifactError(f"{where}: own of a mixture has kind {mixture.own['kind']!r}, wanted is 'q'.")
        partner = _build(mixture.partner, _below("partner.", tensors), where, own.actions)
        return MixturePolicy(own, partner, mixture.share)
    if kind == "rules":
        return _built_rules(build_settings(_Rules, description, where), where, actions)
    if kind == "q":
        return _built_q(build_settings(_Q, description, where), tensors, where, actions)
    raise PolicyArtifactError(f"{where} has kind {kind!r}; known are {', '.join(KINDS)}.")


def _built_guarded(described: _Guarded, tensors: Tensors, where: str, actions: tuple[str, ...] | None) -> GuardedPolicy:
    own = _build(described.own, tensors, where, actions)
    fallback = _build(described.fallback, _below("fallback.", tensors), where, own.actions)
    if isinstance(own, GuardedPolicy):
        raise PolicyArtifactError(f"{where}: own of a guarded policy is guarded itself; one guard decides.")
    if not isinstance(fallback, QPolicy | RulePolicy):
        raise PolicyArtifactError(
            f"{where}: fallback of a guarded policy has kind {described.fallback['kind']!r}, wanted is 'rules' or 'q'."
        )
    return GuardedPolicy(own, fallback, build_guard(described.guard, tensors, own.contract, where))


def _built_rules(described: _Rules, where: str, actions: tuple[str, ...] | None) -> RulePolicy:
    contract = contract_from_json(described.contract, where)
    _check_actions(contract, actions, where)
    return RulePolicy(
        contract=contract,
        rules=tuple(Rule(when=rule.when, action=rule.action) for rule in described.rules),
        otherwise=described.otherwise,
        exploration=described.exploration,
        actions=actions or (),
    )


def _built_q(described: _Q, tensors: Tensors, where: str, actions: tuple[str, ...] | None) -> QPolicy:
    contract = contract_from_json(described.contract, where)
    _check_actions(contract, actions, where)
    encoder = Encoder({name: FeatureEncoding(**dict(encoding)) for name, encoding in described.encoder.items()})
    _check_networks(contract, encoder, described, where)
    return QPolicy(
        contract=contract,
        encoder=encoder,
        architecture=described.architecture,
        weights=_loaded(described, tensors, where),
        reward_scale=described.reward_scale,
        exploration=described.exploration,
        kind=described.outputs,
        choice=described.choice,
        behavior=None if described.behavior is None else _built_behavior(described.behavior, tensors, where),
        potential=described.potential,
        snapshot_digest=described.snapshot_digest,
        config=described.config,
        actions=actions or (),
    )


def _built_behavior(described: _Networks, tensors: Tensors, where: str) -> BehaviorModel:
    return BehaviorModel(described.architecture, _loaded(described, _below("behavior.", tensors), where))


def _check_networks(contract: Contract, encoder: Encoder, described: _Q, where: str) -> None:
    """Contract, encoder and networks must speak of the same inputs and outputs."""
    unknown = [name for name in encoder.features if name not in contract.features]
    if unknown:
        raise PolicyArtifactError(f"{where}: the encoder's features {', '.join(unknown)} are none of the contract's.")
    uneven = [name for name, encoding in encoder.features.items() if len(encoding.mean) != len(encoding.scale)]
    if uneven:
        raise PolicyArtifactError(f"{where}: mean and scale of the encoder's {', '.join(uneven)} differ in length.")
    wanted = (encoder.size, len(contract.actions.names))
    for networks in (described, described.behavior):
        found = wanted if networks is None else (networks.architecture.n_inputs, networks.architecture.n_actions)
        if found != wanted:
            raise PolicyArtifactError(
                f"{where}: networks with (inputs, actions) = {found}; its encoder and contract want {wanted}."
            )


def _check_actions(contract: Contract, actions: tuple[str, ...] | None, where: str) -> None:
    lost = [name for name in contract.actions.names if actions is not None and name not in actions]
    if lost:
        raise PolicyArtifactError(
            f"{where}: the policy's actions {', '.join(lost)} are not among {', '.join(actions or ())}."
        )


def _described_behavior(behavior: BehaviorModel | None) -> dict[str, Any] | None:
    if behavior is None:
        return None
    architecture = behavior.architecture.model_dump(mode="json")
    return {"architecture": architecture, "precision": _precision(behavior.weights)}


def _precision(weights: Weights) -> str:
    return "int8" if isinstance(weights, Int8Weights) else "float32"


def _stored(weights: Weights) -> dict[str, NDArray[Any]]:
    return weights.tensors() if isinstance(weights, Int8Weights) else dict(weights)


def _loaded(described: _Networks, tensors: Tensors, where: str) -> Weights:
    """The weights of one network, from tensors that may also hold others'."""
    shapes = described.architecture.parameter_shapes()
    names = [stored for name in shapes for stored in int8_names(name, described.precision)]
    absent = [name for name in names if name not in tensors]
    if absent:
        raise PolicyArtifactError(f"{where} describes {', '.join(absent)}, which the weights do not hold.")
    own = {name: tensors[name] for name in names}
    bad = [name for name, tensor in own.items() if not _is_usable(name, tensor)]
    if bad:
        raise PolicyArtifactError(
            f"{where} describes weights of which {', '.join(bad)} are not usable: wanted are finite float32 numbers, "
            "int8 codes, and scales above 0. Restore the release from its copy."
        )
    weights: Weights = Int8Weights.from_tensors(own) if described.precision == "int8" else own
    wrong = {name: np.shape(weights[name]) for name in shapes if np.shape(weights[name]) != shapes[name]}
    if wrong:
        raise PolicyArtifactError(f"{where} describes { ({n: shapes[n] for n in wrong}) }, the weights hold {wrong}.")
    return weights


def _is_usable(name: str, tensor: NDArray[Any]) -> bool:
    if name.endswith(".codes"):
        return tensor.dtype == np.int8
    usable = np.issubdtype(tensor.dtype, np.floating) and bool(np.isfinite(tensor).all())
    return usable and (not name.endswith(".scales") or bool((tensor > 0).all()))


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
