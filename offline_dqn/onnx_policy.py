"""A policy as another engine runs it: `policy.onnx` in onnxruntime, for one row or many."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, ImageFeature
from datasets.observations import Observations
from offline_dqn.guard import reasons_of

# Since 1.29 it sends what it is asked to run to its makers, and leaves a device number in the home folder, unless told
# not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

AVAILABLE, Q_VALUES, PROBS, OWN_PROBS = "available_actions", "q_values", "probabilities", "own_probabilities"
EXCESS = "guard_excess"
_RESERVED = {AVAILABLE, Q_VALUES, PROBS, OWN_PROBS, EXCESS}


@dataclass(frozen=True)
class Scored:
    """What one run of a graph says of n rows.

    Attributes:
        probs: (n, A) probabilities with which it acts, those of the fallback where the guard fires. Where
            `OnnxPolicy.depth` is above 0, of the part that the graph holds alone.
        q_values: (n, A) in reward units; None where the policy has none.
        excess: (n, 3) score over threshold of each of `guard.CAUSES`, above 1 it fires; None without a guard.
    """

    probs: NDArray[np.float64]
    q_values: NDArray[np.float64] | None
    excess: NDArray[np.float64] | None

    @property
    def reasons(self) -> NDArray[np.str_] | None:
        """(n,) why the guard fires, "" where it does not; None without a guard."""
        return None if self.excess is None else reasons_of(self.excess)


def input_name(feature: str) -> str:
    """The input of the graph that takes a feature: its name, unless the graph uses that for something else."""
    return f"observation.{feature}" if feature in _RESERVED else feature


class OnnxPolicy:
    """Scores observations with a graph that `onnx_export.export_graph` made.

    Args:
        contract: the one the policy was trained under.
        content: the bytes of `policy.onnx`.
        description: of its inputs and outputs, as `policy.json` holds it under "graph".

    Attributes:
        actions: labels of its action axes.
        features: that it takes.
        depth: 0 where it holds all of the policy; else what it holds stands behind so many guards and mixtures.
    """

    def __init__(self, contract: Contract, content: bytes, description: Mapping[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # networks this small gain nothing from more
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._contract = contract
        self.actions: tuple[str, ...] = tuple(description["actions"])
        self.features: tuple[str, ...] = tuple(
            entry["feature"] for entry in description["inputs"] if entry["feature"] is not None
        )
        self._outputs: list[str] = list(description["outputs"])
        self.depth = int(description.get("depth", 0))

    def score(
        self, observations: Observations, available: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """(n, A) probabilities and (n, A) Q-values in reward units, None where the policy has none.

        Args:
            observations: n rows, n at least 1.
            available: (n, A) bool; the probabilities of a row without any are NaN.
        """
        found = self.run({name: _fed(self._contract, observations, name) for name in self.features}, available)
        return found.probs, found.q_values

    def guard_excess(self, observations: Observations) -> NDArray[np.float64] | None:
        """(n, 3) as `GuardedPolicy.guard_excess`; None without a guard."""
        everything = np.ones((len(observations), len(self.actions)), dtype=bool)
        return self.run({name: _fed(self._contract, observations, name) for name in self.features}, everything).excess

    def run(self, feeds: Mapping[str, NDArray[Any]], available: NDArray[np.bool_]) -> Scored:
        """As `score`, and what the guard says, of features as the graph takes them: numbers with NaN where missing,
        labels with ""."""
        inputs = {input_name(name): values for name, values in feeds.items()}
        inputs[AVAILABLE] = available
        found = self._session.run(self._outputs, inputs)
        outputs = dict(zip(self._outputs, found, strict=True))
        q_values, excess = outputs.pop(Q_VALUES, None), outputs.pop(EXCESS, None)
        (probs,) = outputs.values()
        return Scored(probs, q_values, excess)


def _fed(contract: Contract, observations: Observations, name: str) -> NDArray[Any]:
    """A feature as the graph takes it: numbers with NaN, labels with "" where missing, images as bytes."""
    if isinstance(contract.features[name], ImageFeature):
        return observations.columns[name]
    if isinstance(contract.features[name], CategoricalFeature):
        labels = observations.labels(name)
        return np.where(labels == None, "", labels).astype(object)  # noqa: E711  # element by element
    return np.asarray(observations.columns[name], dtype=np.float64)
