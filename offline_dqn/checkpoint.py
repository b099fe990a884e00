"""Training state on disk: one safetensors file, replaced atomically, holding all that the next update depends on."""

from __future__ import annotations

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

_FILE = "training.safetensors"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` updates.

    Attributes:
        step: updates done.
        online, target: parameters by name.
        optimizer: state of parameter i under "i.<name>".
        sampling: state of the generator that draws the batches. Nothing else draws after initialisation.
        history: the metrics logged so far.
    """

    step: int
    online: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    sampling: Tensor
    history: tuple[dict[str, float], ...]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Replace the directory's checkpoint; killed at any moment, either the old or the new one is there whole.

    Args:
        directory: made if missing.
        checkpoint: the state.
        fingerprint: digest of the data and settings that the state belongs to.
    """
    groups = {"online": checkpoint.online, "target": checkpoint.target, "optimizer": checkpoint.optimizer}
    tensors = {f"{group}/{name}": t.contiguous() for group, members in groups.items() for name, t in members.items()}
    tensors["sampling"] = checkpoint.sampling
    meta = {"step": checkpoint.step, "fingerprint": fingerprint, "history": list(checkpoint.history)}
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / _FILE, safetensors.torch.save(tensors, metadata={"offline_dqn": json.dumps(meta)}))


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
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("the checkpoint %s cannot be read (%s); training starts anew", path, error)
        return None
    if meta["fingerprint"] != fingerprint:
        _logger.warning("the checkpoint %s belongs to other data or settings; training starts anew", path)
        return None

    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    return Checkpoint(
        step=meta["step"],
        online=group("online/"),
        target=group("target/"),
        optimizer=group("optimizer/"),
        sampling=tensors["sampling"],
        history=tuple(meta["history"]),
    )


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
