"""A guard as nodes of an ONNX graph: the same coordinates, distances and spread as in numpy, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
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
    """(n, 1) as `Familiarity.absence`."""
    views = guard.familiarity.features
    single = {name: view for name, view in views.items() if _is_single(view)}
    parts = []
    if single:  # all of them at once: of one row, each node costs as much as its arithmetic
        gone = graph.op("Cast", graph.op("IsNaN", _tables(graph, list(single), contract)), to=TensorProto.DOUBLE)
        nats = np.array([[view.missing_nats] for view in single.values()])
        parts.append(graph.op("MatMul", gone, graph.constant(nats)))
    for name, view in views.items():
        if view.kind == "labels":
            # -1 picks the last entry, what is missing, and -2 the one before it, what was never seen.
            nats = np.array([*(0.0 for _ in view.labels), view.unseen_nats, view.missing_nats])
            parts.append(graph.op("Gather", graph.constant(nats[:, None]), _slots(graph, name, view, contract)))
        elif name not in single:
            missing = _missing(graph, name, view, contract)
            parts.append(graph.op("Where", missing, graph.number(view.missing_nats), graph.number(0.0)))
    return parts[0] if len(parts) == 1 else graph.op("Sum", *parts)


def _is_single(view: FeatureView) -> bool:
    return view.kind in ("number", "boolean") and view.n_components == 1


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


def _tables(graph: Graph, names: list[str], contract: Contract) -> str:
    """(n, sum of L) of several."""
    tables = [_table(graph, name, contract) for name in names]
    return tables[0] if len(tables) == 1 else graph.op("Concat", *tables, axis=1)


def _slots(graph: Graph, name: str, view: FeatureView, contract: Contract) -> str:
    """(n,) int64 as `Familiarity.slots`."""
    return graph.op(
        "LabelEncoder",
        graph.feature(name, contract.features[name]),
        domain="ai.onnx.ml",
        keys_strings=["", *view.labels],
        values_int64s=[-1, *range(len(view.labels))],
        default_int64=-2,
    )


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
    order = np.concatenate([_stretched_order(guard), np.arange(n_stretched, len(familiarity.mean))])
    centred = graph.op("Sub", coordinates, graph.constant(familiarity.mean[order]))
    along = graph.op("MatMul", centred, graph.constant(familiarity.directions[order]))
    squared = graph.op("MatMul", graph.op("Mul", along, along), graph.constant(familiarity.precision[:, None]))
    if familiarity.rest:
        others = graph.op("ReduceSum", graph.op("Mul", centred, centred), graph.axes(1), keepdims=1)
        squared = graph.op("Add", squared, graph.op("Mul", others, graph.number(familiarity.rest)))
    joint = graph.op("Sqrt", graph.op("Max", squared, graph.number(0.0)))
    measures.append(graph.op("Div", joint, graph.number(familiarity.joint_unit)))
    return measures[0] if len(measures) == 1 else graph.op("Max", *measures)


def _stretched(graph: Graph, guard: Guard, contract: Contract) -> str:
    """(n, C) as `Familiarity.stretched`, in the order of `_stretched_order`."""
    familiarity, order = guard.familiarity, _stretched_order(guard)
    raw = _raw(graph, guard, contract)
    beyond = graph.op("Sub", raw, graph.constant(familiarity.center[order]))
    zero, one = graph.number(0.0), graph.number(1.0)
    missing = graph.op("IsNaN", beyond)
    beyond = graph.op("Where", missing, zero, beyond)
    sides = []
    for (bend, scale), towards in ((familiarity.high, beyond), (familiarity.low, graph.op("Neg", beyond))):
        bent = graph.op("Mul", graph.op("Max", towards, zero), graph.constant(bend[order]))
        sides.append(graph.op("Div", graph.op("Log", graph.op("Add", bent, one)), graph.constant(scale[order])))
    return graph.op("Clip", graph.op("Sub", *sides), graph.number(-FARTHEST), graph.number(FARTHEST))


def _stretched_order(guard: Guard) -> NDArray[np.int64]:
    """(C,) where each stretched coordinate of the graph stands in `Familiarity`.

    There every feature has its numbers and their logarithms; here come all numbers, all logarithms and then images, so
    that few nodes do all of them.
    """
    numbers, logarithms, images, at = [], [], [], 0
    for view in guard.familiarity.features.values():
        places = np.arange(at, at + view.n_stretched)
        at += view.n_stretched
        if view.kind == "image":
            images.append(places)
        elif view.kind == "number":
            numbers.append(places[: view.n_components])
            logarithms.append(places[view.n_components :])
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *numbers, *logarithms, *images])


def _raw(graph: Graph, guard: Guard, contract: Contract) -> str:
    """(n, C) as `Familiarity.raw`, in the order of `_stretched_order`."""
    views = guard.familiarity.features
    numbers = [name for name, view in views.items() if view.kind == "number"]
    blocks = []
    if numbers:
        table = _tables(graph, numbers, contract)
        blocks.append(table)
        logged = np.repeat([views[name].logged for name in numbers], [views[name].n_components for name in numbers])
        floors = np.repeat([views[name].floor for name in numbers], [views[name].n_components for name in numbers])
        if logged.any():
            part = table if logged.all() else graph.op("Gather", table, graph.axes(*np.flatnonzero(logged)), axis=1)
            logarithms = graph.op("Log", graph.op("Max", part, graph.constant(floors[logged])))
            # Max takes a NaN for the floor in some engines: what is missing stays so.
            blocks.append(graph.op("Where", graph.op("IsNaN", part), graph.number(math.nan), logarithms))
    blocks += [_block_means(graph, name, view, contract) for name, view in views.items() if view.kind == "image"]
    return blocks[0] if len(blocks) == 1 else graph.op("Concat", *blocks, axis=1)


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
        # A row for each label, one for what was never seen (-2), and one for what is missing (-1).
        rows = np.concatenate([np.eye(view.n_flags), np.zeros((1, view.n_flags)), mean[None]])
        blocks.append(graph.op("Gather", graph.constant(rows), _slots(graph, name, view, contract)))
    return blocks
