"""The policy artifact: what acts, saved so that it can be read without pickle and refused if a byte changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from datasets.compatibility import IncompatibleContractError, policy_incompatibilities
from datasets.contract import Contract
from datasets.durable import write_durably
from datasets.observations import Observations
from offline_dqn.description import KINDS, AnyPolicy, PolicyArtifactError, along, build, describe, tensors_of
from offline_dqn.guarded import GuardedPolicy
from offline_dqn.mixture import MixturePolicy
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_policy import Rule, RulePolicy

__all__ = [
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "WEIGHTS_FILE",
    "AnyPolicy",
    "GuardedPolicy",
    "MixturePolicy",
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
GRAPH_FILE = "policy.onnx"
_FORMAT = 2


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

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, A) float64 standard deviation over an ensemble's values, reward units; None where there is none."""


def save_policy(directory: Path, policy: AnyPolicy) -> str:
    """Write `policy.json`, `policy.safetensors` where there are weights and `policy.onnx` where there can be one.

    The same policy gives the same bytes. The manifest is written last: without it there is no artifact.

    Returns:
        The artifact's digest.

    Raises:
        PolicyArtifactError: a weight is not a finite number, or the graph does not say what the policy says.
    """
    from offline_dqn.onnx_export import export_graph  # needs onnx, which acting does not

    policy = along(policy, policy.contract.actions.names)
    contents: dict[str, bytes] = {}
    manifest: dict[str, Any] = {"format": _FORMAT, "code_version": _code_version(), **describe(policy)}
    tensors = tensors_of(policy)
    if tensors:
        _check_finite(tensors)
        contents[WEIGHTS_FILE] = safetensors.numpy.save({n: np.ascontiguousarray(t) for n, t in tensors.items()})
    graph = export_graph(policy)
    if graph is not None:
        contents[GRAPH_FILE], manifest["graph"] = graph
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, content in contents.items():
        write_durably(directory / name, content)
    digest = _digest(manifest)
    write_durably(directory / MANIFEST_FILE, json.dumps(manifest | {"digest": digest}, indent=1))
    return digest


def load_policy(directory: Path, *, actions: tuple[str, ...] | None = None) -> AnyPolicy:
    """The policy that `save_policy` wrote.

    Args:
        directory: the release's folder.
        actions: labels and order of the action axes that the policy shall speak, such as those of a newer contract;
            it never takes one that it does not know. Without them, those of its own contract.

    Raises:
        PolicyArtifactError: a file is missing, altered or malformed, or its format or kind is not known here; or the
            policy has an action that is not among `actions`.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PolicyArtifactError(f"{path} does not exist: {directory} holds no policy.") from error
    except (OSError, ValueError) as error:
        raise PolicyArtifactError(f"{path} cannot be read: {error}. Restore the release from its copy.") from error
    _check_manifest(manifest, path)
    contents = {name: _read_file(directory / name, wanted) for name, wanted in manifest["files"].items()}
    tensors = _tensors(contents[WEIGHTS_FILE], directory / WEIGHTS_FILE) if WEIGHTS_FILE in contents else {}
    return replace(build(manifest, tensors, str(path), actions), digest=manifest["digest"])


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


def _check_finite(tensors: dict[str, NDArray[Any]]) -> None:
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise PolicyArtifactError(
            f"the weights {', '.join(bad)} are not finite numbers: training diverged. Nothing was written; lower "
            "train.learning_rate or raise train.penalty_weights."
        )


def _check_manifest(manifest: Any, path: Path) -> None:
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise PolicyArtifactError(f"{path} is no policy manifest.")
    if manifest["format"] != _FORMAT:
        raise PolicyArtifactError(
            f"{path} has format {manifest['format']!r}; this version ({_code_version()}) of offline-dqn reads "
            f"{_FORMAT}."
        )
    if manifest.get("kind") not in KINDS:
        raise PolicyArtifactError(f"{path} has kind {manifest.get('kind')!r}; known are {', '.join(KINDS)}.")
    found, wanted = _digest(manifest), manifest.get("digest")
    if found != wanted:
        raise PolicyArtifactError(
            f"{path} was altered after it was written: its content has the digest {found}, it says {wanted}. "
            "Restore the release from its copy."
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not set(files) <= {WEIGHTS_FILE, GRAPH_FILE}:
        raise PolicyArtifactError(
            f"{path} has files = {files!r}; a policy has {WEIGHTS_FILE} and {GRAPH_FILE}, each with its SHA-256."
        )


def _tensors(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that numpy lacks
        raise PolicyArtifactError(f"{path} holds no tensors: {error}. Restore the release from its copy.") from error


def _read_file(path: Path, wanted: str) -> bytes:
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
    return content


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest's content without its own digest; it covers the other files through theirs."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _code_version() -> str:
    try:
        return importlib.metadata.version("offline-dqn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
