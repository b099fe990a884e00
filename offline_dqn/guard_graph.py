"""A guard as nodes of an ONNX graph: the same coordinates, distances and spread as in numpy, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from datasets.contract import Contract
from offline_dqn.familiarity import FARTHEST, FeatureView, pooling
from offline_dqn.guard import DISAGREEMENT, MISSING, STRANGE, Guard
from offline_dqn.onnx_graph import Graph


def add_guard(graph: Graph, guard: Guard, contract: Contract, spread: Callable[[], str | None]) -> str:
    """(n, 3) float64, as `Guard.excess`.

    Args:
        graph: of the policy.
        guard: to be added.
        contract: whose features it looks at.
        spread: adds (n, 1) float64 as `guard.choice_spread`; None where there is no ensemble.
    """
    absence, distance = _absence(graph, guard, contract), _distance(graph, guard, contract)
    parts = [_over(graph, absence, guard.thresholds[MISSING]), _over(graph, distance, guard.thresholds[STRANGE])]
    found = spread() if guard.watches_disagreement else None
    parts.append(_nothing(graph, absence) if found is None else _over(graph, found, guard.thresholds[DISAGREEMENT]))
    return graph.op("Concat", *parts, axis=1)


def _over(graph: Graph, score: str, threshold: float) -> str:
    return _nothing(graph, score) if math.isinf(threshold) else graph.op("Div", score, graph.number(threshold))


def _nothing(graph: Graph, like: str) -> str:
    """(n, 1) zeros."""
    return graph.op("Mul", like, graph.number(0.0))


def _absence(graph: Graph, guard: Guard, contract: Contract) -> str:
    total = ""
    for name, view in guard.familiarity.features.items():
        nats = _absent(graph, name, view, contract)
        total = graph.op("Add", total, nats) if total else nats
    return total


def _absent(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    """(n, 1) nats of one feature."""
    zero, missing_nats = graph.number(0.0), graph.number(view.missing_nats)
    if view.kind == "labels":
        slots = _slots(graph, name, view, contract)
        missing = graph.op("Where", graph.op("Equal", slots, graph.axes(-1)), missing_nats, zero)
        unseen = graph.op("Where", graph.op("Equal", slots, graph.axes(-2)), graph.number(view.unseen_nats), zero)
        return graph.op("Add", missing, unseen)
    return graph.op("Where", _missing(graph, name, view, contract), missing_nats, zero)


def _missing(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    """(n, 1) bool of anything but labels."""
    if view.kind == "image":
        size = math.prod(view.shape)
        rows = graph.feature(name, contract.features[name])
        flag = graph.op("Slice", rows, graph.axes(size), graph.axes(size + 1), graph.axes(1))
        return graph.op("Cast", flag, to=TensorProto.BOOL)
    gone = graph.op("IsNaN", _table(graph, name, contract))
    if view.n_components == 1:
        return gone
    flags = graph.op("Cast", gone, to=TensorProto.FLOAT)
    any_gone = graph.op("ReduceMax", flags, graph.axes(1), keepdims=1)
    return graph.op("Cast", any_gone, to=TensorProto.BOOL)


def _table(graph: Graph, name: str, contract: Contract) -> str:
    """(n, L) float64 of a feature of numbers."""
    values = graph.feature(name, contract.features[name])
    return values if contract.features[name].type == "vector" else graph.op("Unsqueeze", values, graph.axes(1))


def _slots(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    """(n, 1) int64 as `Familiarity.slots`."""
    slots = graph.op(
        "LabelEncoder",
        graph.feature(name, contract.features[name]),
        domain="ai.onnx.ml",
        keys_strings=["", *view.labels],
        values_int64s=[-1, *range(len(view.labels))],
        default_int64=-2,
    )
    return graph.op("Unsqueeze", slots, graph.axes(1))


def _distance(graph: Graph, guard: Guard, contract: Contract) -> str:
    familiarity = guard.familiarity
    n_stretched, measures = len(familiarity.center), []
    blocks = []
    if n_stretched:
        stretched = _stretched(graph, guard, contract)
        blocks.append(stretched)
        farthest = graph.op("ReduceMax", graph.op("Abs", stretched), graph.axes(1), keepdims=1)
        measures.append(graph.op("Div", farthest, graph.number(familiarity.farthest_unit)))
    blocks += _flags(graph, guard, contract)
    coordinates = graph.op("Concat", *blocks, axis=1)
    centred = graph.op("Sub", coordinates, graph.constant(familiarity.mean))
    along = graph.op("MatMul", centred, graph.constant(familiarity.directions))
    squared = graph.op("MatMul", graph.op("Mul", along, along), graph.constant(familiarity.precision[:, None]))
    if familiarity.rest:
        others = graph.op("ReduceSum", graph.op("Mul", centred, centred), graph.axes(1), keepdims=1)
        squared = graph.op("Add", squared, graph.op("Mul", others, graph.number(familiarity.rest)))
    joint = graph.op("Sqrt", graph.op("Max", squared, graph.number(0.0)))
    measures.append(graph.op("Div", joint, graph.number(familiarity.joint_unit)))
    return measures[0] if len(measures) == 1 else graph.op("Max", *measures)


def _stretched(graph: Graph, guard: Guard, contract: Contract) -> str:
    """(n, C) as `Familiarity.stretched`."""
    familiarity = guard.familiarity
    raw = [_raw(graph, name, view, contract) for name, view in familiarity.features.items() if view.n_stretched]
    beyond = graph.op("Sub", graph.op("Concat", *raw, axis=1), graph.constant(familiarity.center))
    zero, one = graph.number(0.0), graph.number(1.0)
    missing = graph.op("IsNaN", beyond)
    beyond = graph.op("Where", missing, zero, beyond)
    sides = []
    for (bend, scale), towards in ((familiarity.high, beyond), (familiarity.low, graph.op("Neg", beyond))):
        bent = graph.op("Mul", graph.op("Max", towards, zero), graph.constant(bend))
        sides.append(graph.op("Div", graph.op("Log", graph.op("Add", bent, one)), graph.constant(scale)))
    return graph.op("Clip", graph.op("Sub", *sides), graph.number(-FARTHEST), graph.number(FARTHEST))


def _raw(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    if view.kind == "image":
        return _block_means(graph, name, view, contract)
    table = _table(graph, name, contract)
    if not view.logged:
        return table
    logarithm = graph.op("Log", graph.op("Max", table, graph.number(view.floor)))
    # Max takes a NaN for the floor in some engines: what is missing stays so.
    gone = graph.op("IsNaN", table)
    return graph.op("Concat", table, graph.op("Where", gone, graph.number(math.nan), logarithm), axis=1)


def _block_means(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    height, width, channels = view.shape
    rows = graph.feature(name, contract.features[name])
    pixels = graph.op("Slice", rows, graph.axes(0), graph.axes(math.prod(view.shape)), graph.axes(1))
    pictures = graph.op("Div", graph.op("Cast", pixels, to=TensorProto.DOUBLE), graph.number(255.0))
    vertical, horizontal = (pooling(side, n) for side, n in zip((height, width), view.blocks, strict=True))
    pictures = graph.op("Reshape", pictures, graph.axes(-1, height, width * channels))
    bands = graph.op("MatMul", graph.constant(vertical), pictures)
    bands = graph.op("Reshape", bands, graph.axes(-1, len(vertical), width, channels))
    means = graph.op("Reshape", graph.op("MatMul", graph.constant(horizontal), bands), graph.axes(-1, view.n_stretched))
    missing = _missing(graph, name, view, contract)
    return graph.op("Where", missing, graph.number(math.nan), means)


def _flags(graph: Graph, guard: Guard, contract: Contract) -> list[str]:
    """Blocks of (n, D - C) as `Familiarity.flags`."""
    familiarity = guard.familiarity
    start, blocks = len(familiarity.center), []
    for name, view in familiarity.features.items():
        mean = familiarity.mean[start : start + view.n_flags]
        start += view.n_flags
        if not view.n_flags:
            continue
        if view.kind == "boolean":
            values = _table(graph, name, contract)
            blocks.append(graph.op("Where", graph.op("IsNaN", values), graph.constant(mean), values))
            continue
        slots = _slots(graph, name, view, contract)
        here = graph.op("Equal", slots, graph.constant(np.arange(view.n_flags)))
        missing = graph.op("Equal", slots, graph.axes(-1))
        flags = graph.op("Cast", here, to=TensorProto.DOUBLE)
        blocks.append(graph.op("Where", missing, graph.constant(mean), flags))
    return blocks
