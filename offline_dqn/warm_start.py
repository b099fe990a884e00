"""Beginning where the champion ended: its parameters, said anew for today's encoder and reward scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.encoding import Encoder
from datasets.errors import OfflineDqnError
from offline_dqn.description import AnyPolicy
from offline_dqn.guarded import learned_part
from offline_dqn.networks import Parameters
from offline_dqn.q_policy import QPolicy
from offline_dqn.sampling import BatchSource
from offline_dqn.train_config import TrainConfig

_SAME = ("n_inputs", "n_actions", "hidden", "dueling", "n_quantiles", "image")


class WarmStartError(OfflineDqnError):
    """A champion that training cannot begin with; says what differs."""


def champion_parameters(champion: AnyPolicy, source: BatchSource, config: TrainConfig) -> Parameters:
    """What every Q-learner of `fit` begins with, so that its values are the champion's to rounding.

    The encoder and the reward scale are fitted anew every night; the change of both is folded into the first and the
    last layer. It is exact but for values that were cut as too far out, and for vectors with missing components.

    Args:
        champion: behind guard and mixture, its own part counts.
        source: today's steps, with their encoder and reward scale.
        config: today's settings.

    Returns:
        Parameters with a leading axis of `config.n_members`: as many of the champion's networks, one by one. Their mean
        would be no network of any use: hidden units of independent networks do not correspond.

    Raises:
        WarmStartError: its networks do not learn values, or have another shape, inputs, actions or potential.
    """
    own = learned_part(champion)
    if not isinstance(own, QPolicy) or own.kind != "values":
        raise WarmStartError("it acts by rules or clones the log: it has no networks that learned values")
    found = list(_differences(own, source, config))
    if found:
        raise WarmStartError("; ".join(found))
    weights = {name: np.array(own.weights[name][: config.n_members], dtype=np.float64) for name in own.weights}
    _say_for_encoder(weights, own, source.encoder)
    for layer in ("head", "value"):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in weights:
                weights[name] *= own.reward_scale / source.reward_scale
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in weights.items()}


def _differences(own: QPolicy, source: BatchSource, config: TrainConfig) -> Iterator[str]:
    before = own.architecture
    image = source.encoder.image_shape
    now = {
        "n_inputs": source.encoder.size,
        "n_actions": len(source.contract.actions.names),
        "hidden": config.hidden,
        "dueling": config.dueling,
        "n_quantiles": config.n_quantiles,
        "image": image,
    }
    was = {name: getattr(before, name) for name in _SAME}
    was["image"] = None if before.image is None else (before.image.height, before.image.width, before.image.channels)
    yield from (f"{name} was {was[name]} and is {now[name]}" for name in _SAME if was[name] != now[name])
    if before.n_members < config.n_members:
        yield f"it has {before.n_members} networks and n_members is {config.n_members}: two that begin alike stay alike"
    if own.contract.actions.names != source.contract.actions.names:
        yield f"actions were {', '.join(own.contract.actions.names)}"
    if own.encoder.names != source.encoder.names:
        moved = sorted(set(own.encoder.names) ^ set(source.encoder.names)) or list(own.encoder.names)
        yield f"encoded columns differ ({', '.join(moved[:5])})"
    if own.contract.gamma != source.contract.gamma:
        yield f"gamma was {own.contract.gamma:g} and is {source.contract.gamma:g}: its values reach another way ahead"
    if own.potential != config.potential:
        yield f"potential was {own.potential} and is {config.potential}"


def _say_for_encoder(weights: dict[str, NDArray[np.float64]], own: QPolicy, encoder: Encoder) -> None:
    """Changes the first layer so that columns of `encoder` give what those of the policy's own gave."""
    stretch, shift, flag = _change(own.encoder, encoder)
    image = own.architecture.image
    n_flat = 0 if image is None else image.size
    first = ("hidden.0",) if own.architecture.hidden else ("head", "value")
    for layer in first:
        if f"{layer}.weight" not in weights:
            continue
        weight = weights[f"{layer}.weight"]
        own_rows = weight[:, weight.shape[1] - (len(stretch) - n_flat) :]  # behind what the convolutions leave
        offset = own_rows * shift[n_flat:, None]  # (K, columns, outputs)
        weights[f"{layer}.bias"] += offset.sum(axis=1, keepdims=True)
        for column in np.flatnonzero(flag[n_flat:] >= 0):  # a missing value is at the mean, the old one as the new one
            own_rows[:, flag[n_flat + column] - n_flat] -= offset[:, column]
        own_rows *= stretch[n_flat:, None]


def _change(before: Encoder, now: Encoder) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Each (D,): old column = stretch * new column + shift, and the column that flags it as missing, -1 for none."""
    stretch, shift, flag = np.ones(now.size), np.zeros(now.size), np.full(now.size, -1)
    start = 0
    for name, encoding in now.features.items():
        old, n = before.features[name], len(encoding.mean)
        if n:
            columns = slice(start, start + n)
            stretch[columns] = np.array(encoding.scale) / np.array(old.scale)
            shift[columns] = (np.array(encoding.mean) - np.array(old.mean)) / np.array(old.scale)
        if n == 1 and encoding.missing:
            flag[start] = start + 1
        start += encoding.size
    return stretch, shift, flag
