"""A graph under construction: nodes, constants and inputs of an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from datasets.contract import CategoricalFeature, Feature, ImageFeature, VectorFeature
from offline_dqn.architecture import Weights
from offline_dqn.int8_weights import Int8Weights
from offline_dqn.onnx_policy import input_name

_OPSETS = (("", 18), ("ai.onnx.ml", 3))
_IR_VERSION = 9
"""Old enough for engines of the last years; nothing newer is needed."""


class Graph:
    """Collects nodes, constants and inputs; every tensor is named by a number that no feature can have.

    The same node of the same inputs is there once, so that a guard and its policy share what both compute.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._features: dict[str, str] = {}
        self._named: dict[object, str] = {}

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """An input of the model, declared once."""
        if name not in self._inputs:
            self._inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def feature(self, name: str, feature: Feature) -> str:
        """The input that takes a feature; two policies of a mixture share it."""
        self._features[input_name(name)] = name
        kind, shape = _type_of(feature)
        return self.input(input_name(name), kind, shape)

    def constant(self, values: NDArray[Any]) -> str:
        """A tensor that the model holds."""
        values = np.asarray(values)
        key = ("constant", values.dtype.str, values.shape, values.tobytes())
        if key not in self._named:
            self._named[key] = name = f"/constant/{len(self._constants)}"
            self._constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return self._named[key]

    def axes(self, *values: int) -> str:
        """A constant of int64, such as axes or a shape."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant of float64."""
        return self.constant(np.array(value, dtype=np.float64))

    def parameter(self, weights: Weights, name: str) -> str:
        """A network's parameter; one of int8 codes stays so, and is widened as `Int8Weights` does it."""
        if not isinstance(weights, Int8Weights) or name not in weights.codes:
            return self.constant(weights[name])
        wide = self.op("Cast", self.constant(weights.codes[name]), to=TensorProto.FLOAT)
        return self.op("Mul", wide, self.constant(weights.scales[name]))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node; returns the name of its one output."""
        key = (kind, inputs, domain, repr(sorted(attributes.items())))
        if key not in self._named:
            self._named[key] = name = f"/{kind}/{len(self._nodes)}"
            self._nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        return self._named[key]

    def described(self) -> list[dict[str, Any]]:
        """Name, feature (None for the mask), type and shape of each input."""
        described = []
        for name, info in self._inputs.items():
            tensor = info.type.tensor_type
            shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            described.append({"name": name, "feature": self._features.get(name), "type": kind, "shape": shape})
        return described

    def model(self, outputs: dict[str, str], widths: dict[str, int], metadata: dict[str, str]) -> onnx.ModelProto:
        """The checked model whose outputs are the given tensors, each float64 with n rows of its width."""
        for name, tensor in outputs.items():
            self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", widths[name]]) for name in outputs]
        graph = helper.make_graph(self._nodes, "policy", list(self._inputs.values()), infos, self._constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="offline-dqn")
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def _type_of(feature: Feature) -> tuple[int, list[int | str]]:
    """Type and shape of the input that takes a feature."""
    if isinstance(feature, CategoricalFeature):
        return TensorProto.STRING, ["n"]
    if isinstance(feature, ImageFeature):
        return TensorProto.UINT8, ["n", feature.size + 1]
    return TensorProto.DOUBLE, ["n", feature.length] if isinstance(feature, VectorFeature) else ["n"]
