"""Training state on disk: one safetensors file, replaced atomically, holding all that the next update depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datasets.durable import write_durably
from datasets.errors import OfflineDqnError

FORMAT = 1
"""Of the groups in a checkpoint; another one is passed over."""

_FILE = "training.safetensors"
_logger = logging.getLogger(__name__)


class CheckpointError(OfflineDqnError):
    """A checkpoint that cannot be written."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` updates.

    Attributes:
        step: updates done.
        groups: tensors by group and name: "online" and "target" parameters, the "optimizer"'s state of parameter i
            under "i.<name>", the "source" of batches, Lagrange multipliers, and each network kept so far under
            "kept.<step>". Nothing else decides the next update.
        history: the metrics logged so far.
        diverged: learners that are no candidates any more, and why.
    """

    step: int
    groups: Mapping[str, Mapping[str, Tensor]]
    history: tuple[dict[str, float], ...]
    diverged: Mapping[str, str]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Replace the directory's checkpoint; killed at any moment, either the old or the new one is there whole.

    Args:
        directory: made if missing.
        checkpoint: the state.
        fingerprint: digest of the data and settings that the state belongs to.

    Raises:
        CheckpointError: it cannot be written; the one before it is still there.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in checkpoint.groups.items()
        for name, tensor in members.items()
    }
    meta = {
        "format": FORMAT,
        "sha256": _digest(tensors),
        "step": checkpoint.step,
        "fingerprint": fingerprint,
        "history": list(checkpoint.history),
        "diverged": dict(checkpoint.diverged),
    }
    content = safetensors.torch.save(tensors, metadata={"offline_dqn": json.dumps(meta)})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(directory / _FILE, content)
    except OSError as error:
        before = "the one before it is still there" if (directory / _FILE).exists() else "there is none before it"
        raise CheckpointError(
            f"the checkpoint {directory / _FILE} of update {checkpoint.step} ({len(content):,} bytes) cannot be "
            f"written ({error}); {before}. Make room, then repeat the command: training goes on from there."
        ) from error


def load_checkpoint(directory: Path, fingerprint: str) -> Checkpoint | None:
    """The directory's checkpoint if it belongs to `fingerprint`, else None.

    One of other data or settings, or one that cannot be read, is passed over with a logged warning and overwritten by
    the next `save_checkpoint`: starting anew is always right, resuming something else never is.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["offline_dqn"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a mapping
        if meta["format"] != FORMAT or meta["sha256"] != _digest(tensors):
            raise ValueError(f"its content is not what was written, or its format is not {FORMAT}")
        belongs, found = meta["fingerprint"] == fingerprint, (meta["step"], meta["history"], meta["diverged"])
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("the checkpoint %s cannot be read (%s); training starts anew", path, error)
        return None
    if not belongs:
        _logger.warning("the checkpoint %s belongs to other data or settings; training starts anew", path)
        return None
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, name = key.split("/", 1)
        groups.setdefault(group, {})[name] = tensor
    step, history, diverged = found
    return Checkpoint(step, groups, tuple(history), diverged)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names and bytes: flipped bits would be learned from, quietly."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give a fresh optimizer of the same parameters the state that `optimizer_tensors` named."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
