"""The networks that are trained: K of one shape, as one batched computation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name torch's own documentation uses
from torch import Tensor

from offline_dqn.architecture import CONVOLUTIONS, Architecture, ImageShape, Weights

Parameters = dict[str, Tensor]
"""By the names of `Architecture.parameter_shapes`, each with a leading axis of K members."""


def network_values(architecture: Architecture, parameters: Mapping[str, Tensor], encoded: Tensor) -> Tensor:
    """Values (K, B, A, N) of encoded observations (B, D): the torch twin of `architecture.forward`, same numbers."""
    features = encoded if architecture.image is None else _with_convolved_image(architecture, parameters, encoded)
    for layer in range(len(architecture.hidden)):
        features = torch.relu_(_affine(parameters, f"hidden.{layer}", features))  # in place: spares an allocation
    shape = (architecture.n_members, len(encoded), architecture.n_actions, architecture.n_quantiles)
    values = _affine(parameters, "head", features).reshape(shape)
    if architecture.dueling:
        state_values = _affine(parameters, "value", features).reshape(*shape[:2], 1, -1)
        values = values - values.mean(dim=2, keepdim=True) + state_values
    return values


def initial_parameters(architecture: Architecture, member_seeds: tuple[int, ...]) -> Parameters:
    """Uniform in +-1/sqrt(inputs) (LeCun et al. 1998, and torch's own), one seed for each of the K members.

    Members of the same seed begin alike, whatever stands beside them: learners are then compared with the same luck.
    """
    shapes = architecture.parameter_shapes()
    generators = [torch.Generator().manual_seed(seed) for seed in member_seeds]
    parameters: Parameters = {}
    for name, (_, *shape) in shapes.items():
        layer = shapes[name.replace(".bias", ".weight")]
        n_inputs = int(np.prod(layer[2:])) if name.startswith("convolution") else layer[1]
        members = [(torch.rand(shape, generator=generator) * 2 - 1) * n_inputs**-0.5 for generator in generators]
        parameters[name] = torch.stack(members)
    return parameters


def start_at(architecture: Architecture, parameters: Parameters, value: float, silent_inputs: Tensor) -> None:
    """Begin near a known level, deaf to inputs that the data never use; changes the parameters in place.

    Bootstrapping would need about 1 / (1 - gamma) target updates to carry the level of the returns back to the
    first step; starting at it leaves only the differences to be learned. An input that is 0 in every training row
    never receives a gradient: its random weights would add noise on the first live row that sets it.

    Args:
        architecture: of the parameters.
        parameters: initial ones.
        value: mean of the values to come, in the networks' scaled units.
        silent_inputs: (D,) bool, inputs that are 0 in every training row.
    """
    parameters["value.bias" if architecture.dueling else "head.bias"].fill_(value)
    first = "hidden.0.weight" if architecture.hidden else "head.weight"
    n_flat = 0 if architecture.image is None else architecture.image.size
    n_convolved = parameters[first].shape[1] - (len(silent_inputs) - n_flat)
    silent_rows = n_convolved + torch.nonzero(silent_inputs[n_flat:]).squeeze(1)
    parameters[first][:, silent_rows] = 0.0


def with_mean_head(architecture: Architecture, parameters: Mapping[str, Tensor]) -> tuple[Architecture, Parameters]:
    """The same networks with one value per action: the mean of its quantiles, by a head that is linear in them."""
    n = architecture.n_quantiles
    means = {
        name: p.reshape(*p.shape[:-1], -1, n).mean(dim=-1) if name.startswith(("head.", "value.")) else p
        for name, p in parameters.items()
    }
    return architecture.model_copy(update={"n_quantiles": 1}), means


def to_weights(parameters: Mapping[str, Tensor], members: slice = slice(None)) -> Weights:
    """The parameters of some members as numpy arrays of their own."""
    return {name: np.array(p.detach()[members].cpu().numpy(), dtype=np.float32) for name, p in parameters.items()}


def _affine(parameters: Mapping[str, Tensor], layer: str, inputs: Tensor) -> Tensor:
    """(K, B, outputs) of (B, inputs) or (K, B, inputs); of one network (B, outputs)."""
    weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
    if len(weight) == 1:
        # The plain product is faster than a batch of one, and no view of it: a ReLU in place on a view costs a copy.
        return torch.addmm(bias.view(-1), inputs.view(-1, inputs.shape[-1]), weight.squeeze(0))
    # Adding in place afterwards spares baddbmm's copy of the broadcast bias.
    return torch.bmm(inputs.expand(len(weight), *inputs.shape[-2:]), weight).add_(bias)


def _with_convolved_image(architecture: Architecture, parameters: Mapping[str, Tensor], encoded: Tensor) -> Tensor:
    """(K, B, features + other inputs)."""
    image, members = architecture.image, architecture.n_members
    assert isinstance(image, ImageShape)
    # Members are groups of one convolution: (B, K * C, h, w).
    picture = encoded[:, : image.size].reshape(-1, image.channels, image.height, image.width).repeat(1, members, 1, 1)
    for i in range(len(CONVOLUTIONS)):
        kernels, bias = parameters[f"convolution.{i}.weight"], parameters[f"convolution.{i}.bias"]
        picture = torch.relu_(
            F.conv2d(picture, kernels.flatten(0, 1), bias.flatten(), stride=2, padding=1, groups=members)
        )
    features = picture.reshape(len(encoded), members, -1).transpose(0, 1)
    return torch.cat([features, encoded[:, image.size :].expand(members, -1, -1)], dim=2)
