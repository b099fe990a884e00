"""The Q-network that is trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from offline_dqn.architecture import Architecture, Weights


class QNetwork(nn.Module):
    """The torch twin of `architecture.forward`: same parameters, same names, same numbers."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        sizes = (architecture.n_inputs, *architecture.hidden)
        self.hidden = nn.ModuleList(
            nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes, architecture.hidden, strict=False)
        )
        self.head = nn.Linear(sizes[-1], architecture.n_actions)
        self.value = nn.Linear(sizes[-1], 1) if architecture.dueling else None

    def forward(self, encoded: Tensor) -> Tensor:
        """Q-values (B, A) of encoded observations (B, D)."""
        features = encoded
        for layer in self.hidden:
            features = torch.relu_(layer(features))  # in place: spares an allocation
        q_values: Tensor = self.head(features)
        if self.value is not None:
            q_values = q_values - q_values.mean(dim=1, keepdim=True) + self.value(features)
        return q_values

    @torch.no_grad()
    def start_at(self, value: float, silent_inputs: Tensor) -> None:
        """Begin near a known level, deaf to inputs that the data never use.

        Bootstrapping would need about 1 / (1 - gamma) target updates to carry the level of the returns back to the
        first step; starting at it leaves only the differences to be learned. An input that is 0 in every training row
        never receives a gradient: its random weights would add noise on the first live row that sets it.

        Args:
            value: mean of the values to come, in the network's scaled units.
            silent_inputs: (D,) bool, inputs that are 0 in every training row.
        """
        (self.value if self.value is not None else self.head).bias.fill_(value)
        first = self.hidden[0] if len(self.hidden) else self.head
        first.weight[:, silent_inputs] = 0.0  # type: ignore[operator]  # ModuleList forgets the layer's type

    def to_weights(self) -> Weights:
        """The parameters as numpy arrays."""
        return {name: np.array(tensor.cpu().numpy(), dtype=np.float32) for name, tensor in self.state_dict().items()}
