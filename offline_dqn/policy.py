"""The policy artifact: what acts, saved so that it can be read without pickle and refused if a byte changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from datasets.compatibility import IncompatibleContractError, policy_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.durable import write_durably
from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from datasets.observations import Observations
from datasets.settings import build_settings
from offline_dqn.architecture import Architecture, Weights
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import Rule, RulePolicy

__all__ = [
    "MANIFEST_FILE",
    "WEIGHTS_FILE",
    "Policy",
    "PolicyArtifactError",
    "QPolicy",
    "Rule",
    "RulePolicy",
    "check_compatible",
    "load_policy",
    "save_policy",
]

MANIFEST_FILE = "policy.json"
WEIGHTS_FILE = "policy.safetensors"
_FORMAT = 1


class PolicyArtifactError(OfflineDqnError):
    """A policy folder that is missing, altered, or of another format."""


class Policy(Protocol):
    """Anything that acts. What is evaluated is exactly what `action_probs` says."""

    @property
    def contract(self) -> Contract:
        """The contract it was made under."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of every action axis here."""

    @property
    def digest(self) -> str:
        """Of the artifact it was loaded from."""

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, A) float64; rows sum to 1, 0 where unavailable."""

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 in reward units; None for a policy without values."""


def save_policy(directory: Path, policy: QPolicy | RulePolicy) -> str:
    """Write `policy.json` (and `policy.safetensors` for a learned one) and return the artifact's digest.

    The same policy gives the same bytes. The manifest is written last: without it there is no artifact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "kind": "q" if isinstance(policy, QPolicy) else "rules",
        "code_version": _code_version(),
        "contract": policy.contract.to_json(),
        "contract_digest": policy.contract.digest,
        "actions": list(policy.contract.actions.names),
        "exploration": policy.exploration,
    }
    if isinstance(policy, QPolicy):
        content = safetensors.numpy.save({name: np.ascontiguousarray(w) for name, w in policy.weights.items()})
        write_durably(directory / WEIGHTS_FILE, content)
        manifest |= {
            "architecture": policy.architecture.model_dump(mode="json"),
            "encoder": policy.encoder.to_json(),
            "reward_scale": policy.reward_scale,
            "snapshot_digest": policy.snapshot_digest,
            "config": dict(policy.config),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
        }
    else:
        manifest |= {
            "rules": [{"when": rule.when, "action": rule.action} for rule in policy.rules],
            "otherwise": policy.otherwise,
        }
    digest = _digest(manifest)
    text = json.dumps(manifest | {"digest": digest}, indent=1)
    write_durably(directory / MANIFEST_FILE, text.encode())
    return digest


def load_policy(directory: Path, *, actions: tuple[str, ...] | None = None) -> QPolicy | RulePolicy:
    """The policy that `save_policy` wrote.

    Args:
        directory: the release's folder.
        actions: labels and order of the action axes that the policy shall speak, such as those of a newer contract;
            it never takes one that it does not know. Without them, those of its own contract.

    Raises:
        PolicyArtifactError: a file is missing or altered, or its format or kind is not known here; or the policy has an
            action that is not among `actions`.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PolicyArtifactError(f"{path} does not exist: {directory} holds no policy.") from error
    except (OSError, ValueError) as error:
        raise PolicyArtifactError(f"{path} cannot be read: {error}. Restore the release from its copy.") from error
    _check_manifest(manifest, path)
    contract = contract_from_json(manifest["contract"], str(path))
    lost = [name for name in contract.actions.names if actions is not None and name not in actions]
    if lost:
        raise PolicyArtifactError(
            f"{path}: the policy's actions {', '.join(lost)} are not among {', '.join(actions or ())}."
        )
    if manifest["kind"] == "rules":
        return RulePolicy(
            contract=contract,
            rules=tuple(Rule(when=rule["when"], action=rule["action"]) for rule in manifest["rules"]),
            otherwise=manifest["otherwise"],
            exploration=manifest["exploration"],
            actions=actions or (),
            digest=manifest["digest"],
        )
    architecture = build_settings(Architecture, manifest["architecture"], str(path))
    return QPolicy(
        contract=contract,
        encoder=Encoder.from_json(manifest["encoder"]),
        architecture=architecture,
        weights=_read_weights(directory / WEIGHTS_FILE, manifest["weights_sha256"], architecture),
        reward_scale=manifest["reward_scale"],
        exploration=manifest["exploration"],
        snapshot_digest=manifest["snapshot_digest"],
        config=manifest["config"],
        actions=actions or (),
        digest=manifest["digest"],
    )


def check_compatible(policy_contract: Contract, current: Contract) -> None:
    """Whether a policy made under one contract may act under another.

    Raises:
        IncompatibleContractError: with every difference. Features must still exist with the same type and unit, actions
            must still exist; added ones do no harm.
    """
    problems = policy_incompatibilities(policy_contract, current)
    if problems:
        lines = "\n".join(f"  {text}" for text in problems)
        raise IncompatibleContractError(
            f"the policy was made under another contract and cannot act under this one:\n{lines}\n"
            "Bring these back, or train anew."
        )


def _check_manifest(manifest: Any, path: Path) -> None:
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise PolicyArtifactError(f"{path} is no policy manifest.")
    if manifest["format"] != _FORMAT:
        raise PolicyArtifactError(
            f"{path} has format {manifest['format']!r}; this version ({_code_version()}) of offline-dqn reads "
            f"{_FORMAT}."
        )
    if manifest.get("kind") not in {"q", "rules"}:
        raise PolicyArtifactError(f"{path} has kind {manifest.get('kind')!r}; known are 'q' and 'rules'.")
    found, wanted = _digest(manifest), manifest.get("digest")
    if found != wanted:
        raise PolicyArtifactError(
            f"{path} was altered after it was written: its content has the digest {found}, it says {wanted}. "
            "Restore the release from its copy."
        )


def _read_weights(path: Path, wanted: str, architecture: Architecture) -> Weights:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyArtifactError(f"{path} cannot be read: {error}. Restore the release from its copy.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise PolicyArtifactError(
            f"{path} was altered after it was written: its SHA-256 is {found}, the manifest says {wanted}. "
            "Restore the release from its copy."
        )
    weights: Weights = safetensors.numpy.load(content)
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != architecture.parameter_shapes():
        raise PolicyArtifactError(f"{path} holds {shapes}, the manifest describes {architecture.parameter_shapes()}.")
    return weights


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest's content without its own digest; it covers the weights through theirs."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _code_version() -> str:
    try:
        return importlib.metadata.version("offline-dqn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
