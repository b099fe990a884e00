"""`policy.onnx`: raw features and masks in, Q-values and action probabilities out, for engines other than ours."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from datasets.encoding import CLIP, FeatureEncoding
from offline_dqn.architecture import CONVOLUTIONS, Architecture, ImageShape, Weights
from offline_dqn.choice import quantile_weights
from offline_dqn.description import AnyPolicy, PolicyArtifactError
from offline_dqn.guard import CAUSES, SAME_EXCESS
from offline_dqn.guard_graph import add_guard
from offline_dqn.guarded import GuardedPolicy, learned_part
from offline_dqn.mixture import MixturePolicy
from offline_dqn.onnx_graph import Graph
from offline_dqn.onnx_policy import AVAILABLE, EXCESS, OWN_PROBS, PROBS, Q_VALUES, OnnxPolicy
from offline_dqn.parity import measure_parity, probe_rows
from offline_dqn.q_policy import QPolicy
from offline_dqn.rule_graph import has_graph, preferred
from offline_dqn.rule_policy import PolicyRuleError, RulePolicy

_N_PROBES = 256
"""Rows on which a graph is compared with the policy before it is kept."""


def export_graph(policy: AnyPolicy) -> tuple[bytes, dict[str, Any]] | None:
    """The policy as an ONNX model, and what its inputs and outputs are; None where it acts by rules that have none.

    Inputs are raw features by name: numbers, truth values (1, 0) and vectors as float64 with NaN where missing, labels
    as strings with "" where missing, images as rows of uint8 (height * width * channels numbers, then 1 where it is
    missing, else 0); and `available_actions` (n, A) bool. Any number of rows. Outputs are float64:
    `q_values` (n, A) in reward units, absent for a policy without values, and `probabilities` (n, A), exploration and
    masks included. A row that allows no action has probabilities of NaN. Where the partner of a mixture, or what a
    guard falls back on, acts by rules that have no graph, this holds the own policy alone and calls its output
    `own_probabilities`. A guarded policy has `guard_excess` (n, 3) besides, each cause's score over its threshold:
    above 1 it fires.

    Raises:
        PolicyArtifactError: on probe rows, the graph does not say what the policy says.
    """
    whole = is_whole(policy)
    shown, depth = _shown(policy)
    if shown is None:
        return None
    names, graph = policy.contract.actions.names, Graph()
    allowed = graph.input(AVAILABLE, TensorProto.BOOL, ["n", len(names)])
    q_values, probs = _act(graph, shown, names, allowed)
    outputs = {**({Q_VALUES: q_values} if q_values else {}), (PROBS if whole else OWN_PROBS): probs}
    if isinstance(policy, GuardedPolicy):
        outputs[EXCESS] = _excess(graph, policy)
    widths = {**dict.fromkeys(outputs, len(names)), EXCESS: len(CAUSES)}
    content = graph.model(outputs, widths, {"actions": json.dumps(names)}).SerializeToString(deterministic=True)
    description = {
        "inputs": graph.described(),
        "outputs": list(outputs),
        "actions": list(names),
        "whole": whole,
        "depth": depth,
    }
    _verify(shown, content, description)
    if isinstance(policy, GuardedPolicy):
        _verify_guard(policy, content, description)
    return content, description


def _shown(policy: AnyPolicy) -> tuple[AnyPolicy | None, int]:
    """The largest part that acts alone and has a graph, and behind how many guards and mixtures it stands."""
    depth = 0
    while not is_whole(policy):
        if isinstance(policy, QPolicy | RulePolicy):
            return None, depth
        policy, depth = policy.own, depth + 1
    return policy, depth


def is_whole(policy: AnyPolicy) -> bool:
    """Whether a graph can hold all of it."""
    if isinstance(policy, GuardedPolicy):
        return is_whole(policy.own) and is_whole(policy.fallback)
    if isinstance(policy, MixturePolicy):
        return is_whole(policy.partner)
    return not isinstance(policy, RulePolicy) or (has_graph(policy) and _rules_agree(policy))


def _rules_agree(policy: RulePolicy) -> bool:
    """Whether the graph of rules does as DuckDB does, on probe rows; where it does not, there is none for them."""
    graph = Graph()
    allowed = graph.input(AVAILABLE, TensorProto.BOOL, ["n", len(policy.actions)])
    _, probs = _act(graph, policy, policy.actions, allowed)
    content = graph.model({PROBS: probs}, {PROBS: len(policy.actions)}, {}).SerializeToString()
    description = {"inputs": graph.described(), "outputs": [PROBS], "actions": list(policy.actions)}
    try:
        parity = measure_parity(
            policy, OnnxPolicy(policy.contract, content, description), *probe_rows(policy, _N_PROBES)
        )
    except PolicyRuleError:
        return False
    return parity.holds


def _verify(policy: AnyPolicy, content: bytes, description: dict[str, Any]) -> None:
    probes = probe_rows(policy, _N_PROBES)
    parity = measure_parity(policy, OnnxPolicy(policy.contract, content, description), *probes)
    if not parity.holds:
        raise PolicyArtifactError(
            f"policy.onnx would not act as the policy does: on {parity.n_rows} probe rows {parity.text}. Nothing was "
            "written. Very large weights can do this: see whether training diverged."
        )


def _verify_guard(policy: GuardedPolicy, content: bytes, description: dict[str, Any]) -> None:
    observations, _ = probe_rows(policy, _N_PROBES)
    wanted = policy.guard_excess(observations)
    found = OnnxPolicy(policy.contract, content, description).guard_excess(observations)
    assert found is not None
    if not (np.abs(found - wanted) <= SAME_EXCESS * np.maximum(1.0, wanted)).all():
        raise PolicyArtifactError(
            f"policy.onnx would not guard as the policy does: on {len(wanted)} probe rows scores differ by up to "
            f"{np.abs(found - wanted).max():.1e} of their thresholds. Nothing was written. Very large weights can do "
            "this: see whether training diverged."
        )


def _excess(graph: Graph, policy: GuardedPolicy) -> str:
    """(n, 3) as `GuardedPolicy.guard_excess`."""
    learned = learned_part(policy)

    def spread() -> str | None:
        if not isinstance(learned, QPolicy) or learned.kind == "logits" or learned.architecture.n_members == 1:
            return None
        return _choice_spread(graph, learned)

    return add_guard(graph, policy.guard, policy.contract, spread)


def _choice_spread(graph: Graph, policy: QPolicy) -> str:
    """(n, 1) float64 as `guard.choice_spread`."""
    outputs = _network(graph, policy.architecture, policy.weights, _encode(graph, policy))
    wide = graph.op("Cast", outputs, to=TensorProto.DOUBLE)
    values = graph.op("Mul", graph.op("ReduceMean", wide, graph.axes(3), keepdims=0), graph.number(policy.reward_scale))
    above = graph.op("Sub", values, graph.op("ReduceMean", values, graph.axes(2), keepdims=1))
    apart = graph.op("Sub", above, graph.op("ReduceMean", above, graph.axes(0), keepdims=1))
    squared = graph.op("ReduceSum", graph.op("Mul", apart, apart), graph.axes(0), keepdims=0)
    n_others = float(policy.architecture.n_members - 1)
    deviations = graph.op("Sqrt", graph.op("Div", squared, graph.number(n_others)))
    return graph.op("ReduceMax", deviations, graph.axes(1), keepdims=1)


def _act(graph: Graph, policy: AnyPolicy, names: Sequence[str], available: str) -> tuple[str, str]:
    """Q-values ("" where there are none) and probabilities, both along `names`."""
    if isinstance(policy, GuardedPolicy):
        q_values, own = _act(graph, policy.own, names, available)
        _, fallback = _act(graph, policy.fallback, names, available)
        largest = graph.op("ReduceMax", _excess(graph, policy), graph.axes(1), keepdims=1)
        able_to = graph.constant(np.isin(names, policy.fallback.contract.actions.names))
        able = graph.op("Cast", graph.op("And", available, able_to), to=TensorProto.FLOAT)
        able = graph.op("Cast", graph.op("ReduceMax", able, graph.axes(1), keepdims=1), to=TensorProto.BOOL)
        falls_back = graph.op("And", able, graph.op("Greater", largest, graph.number(1.0)))
        return q_values, graph.op("Where", falls_back, fallback, own)
    if isinstance(policy, MixturePolicy):
        q_values, own = _act(graph, policy.own, names, available)
        _, partner = _act(graph, policy.partner, names, available)
        ours = graph.op("Mul", own, graph.number(policy.share))
        theirs = graph.op("Mul", partner, graph.number(1.0 - policy.share))
        return q_values, graph.op("Add", ours, theirs)
    known = np.isin(names, policy.contract.actions.names)
    allowed = available if known.all() else graph.op("And", available, graph.constant(known))
    if isinstance(policy, RulePolicy):
        chosen = _normalised(graph, graph.op("Cast", preferred(graph, policy, names, allowed), to=TensorProto.DOUBLE))
        return "", _explore(graph, chosen, allowed, policy.exploration)
    encoded = _encode(graph, policy)
    values = _network(graph, policy.architecture, policy.weights, encoded)
    scores = _score(graph, policy, names, values, policy.choice.cvar_share)
    valued = policy.kind == "values" and policy.potential is None
    q_values = _score(graph, policy, names, values, 1.0) if valued else ""
    candidates = _supported(graph, policy, names, encoded, allowed)
    return q_values, _explore(graph, _choose(graph, policy, scores, candidates), allowed, policy.exploration)


# --- from raw features to the network's input


def _encode(graph: Graph, policy: QPolicy) -> str:
    """(n, D) float32, as `Encoder.encode`."""
    blocks: list[str] = []
    for name, encoding in policy.encoder.features.items():
        feature = policy.contract.features[name]
        values = graph.feature(name, feature)
        if encoding.kind == "labels":
            blocks += _encode_labels(graph, values, encoding)
        elif encoding.kind == "image":
            blocks += _encode_images(graph, values, encoding)
        else:
            table = values if feature.type == "vector" else graph.op("Unsqueeze", values, graph.axes(1))
            blocks += _encode_numbers(graph, table, encoding)
    return graph.op("Concat", *blocks, axis=1)


def _encode_labels(graph: Graph, labels: str, encoding: FeatureEncoding) -> list[str]:
    known = encoding.labels
    slots = graph.op(
        "LabelEncoder",
        labels,
        domain="ai.onnx.ml",
        keys_strings=["", *known],
        values_int64s=[-1, *range(len(known))],
        default_int64=len(known),
    )
    slots = graph.op("Unsqueeze", slots, graph.axes(1))
    blocks = [graph.op("Equal", slots, graph.constant(np.arange(len(known) + 1)))]
    if encoding.missing:
        blocks.append(graph.op("Equal", slots, graph.axes(-1)))
    return [graph.op("Cast", block, to=TensorProto.FLOAT) for block in blocks]


def _encode_numbers(graph: Graph, values: str, encoding: FeatureEncoding) -> list[str]:
    missing = graph.op("IsNaN", values)
    centred = graph.op("Sub", values, graph.constant(np.array(encoding.mean)))
    standardised = graph.op("Div", centred, graph.constant(np.array(encoding.scale)))
    clipped = graph.op("Clip", standardised, graph.number(-CLIP), graph.number(CLIP))
    blocks = [graph.op("Cast", graph.op("Where", missing, graph.number(0.0), clipped), to=TensorProto.FLOAT)]
    if encoding.missing:
        flags = graph.op("Cast", missing, to=TensorProto.FLOAT)
        blocks.append(graph.op("ReduceMax", flags, graph.axes(1), keepdims=1))
    return blocks


def _encode_images(graph: Graph, rows: str, encoding: FeatureEncoding) -> list[str]:
    n_numbers = math.prod(encoding.shape)
    begin, end, flag = graph.axes(0), graph.axes(n_numbers), graph.axes(n_numbers + 1)
    picture = graph.op("Cast", graph.op("Slice", rows, begin, end, graph.axes(1)), to=TensorProto.FLOAT)
    picture = graph.op("Reshape", picture, graph.axes(-1, *encoding.shape))
    picture = graph.op("Reshape", graph.op("Transpose", picture, perm=[0, 3, 1, 2]), graph.axes(-1, n_numbers))
    blocks = [graph.op("Div", picture, graph.constant(np.array(255, dtype=np.float32)))]
    if encoding.missing:
        missing = graph.op("Cast", graph.op("Slice", rows, end, flag, graph.axes(1)), to=TensorProto.BOOL)
        blocks.append(graph.op("Cast", missing, to=TensorProto.FLOAT))
    return blocks


# --- the networks


def _network(graph: Graph, architecture: Architecture, weights: Weights, encoded: str) -> str:
    """(K, n, A, N) float32, as `architecture.forward`."""
    features = encoded
    if architecture.image is not None:
        features = _with_convolved_image(graph, architecture, architecture.image, weights, encoded)
    for layer in range(len(architecture.hidden)):
        features = graph.op("Relu", _affine(graph, weights, f"hidden.{layer}", features))
    members, quantiles = architecture.n_members, architecture.n_quantiles
    head = _affine(graph, weights, "head", features)
    values = graph.op("Reshape", head, graph.axes(members, -1, architecture.n_actions, quantiles))
    if architecture.dueling:
        mean = graph.op("ReduceMean", values, graph.axes(2), keepdims=1)
        level = _affine(graph, weights, "value", features)
        level = graph.op("Reshape", level, graph.axes(members, -1, 1, quantiles))
        values = graph.op("Add", graph.op("Sub", values, mean), level)
    return values


def _affine(graph: Graph, weights: Weights, layer: str, features: str) -> str:
    product = graph.op("MatMul", features, graph.parameter(weights, f"{layer}.weight"))
    return graph.op("Add", product, graph.constant(weights[f"{layer}.bias"]))


def _with_convolved_image(
    graph: Graph, architecture: Architecture, image: ImageShape, weights: Weights, encoded: str
) -> str:
    """(K, n, features + other inputs)."""
    members = architecture.n_members
    bounds = [graph.axes(v) for v in (0, image.size, architecture.n_inputs, 1)]
    picture = graph.op("Slice", encoded, bounds[0], bounds[1], bounds[3])
    shape = graph.axes(-1, image.channels, image.height, image.width)
    picture = graph.op("Reshape", picture, shape)
    for i, n_out in enumerate(CONVOLUTIONS):
        # The members share the picture: the first convolution has K times the outputs, and then each has its own.
        kernels = graph.parameter(weights, f"convolution.{i}.weight")
        n_in = weights[f"convolution.{i}.weight"].shape[2]
        kernels = graph.op("Reshape", kernels, graph.axes(members * n_out, n_in, 3, 3))
        bias = graph.constant(weights[f"convolution.{i}.bias"].reshape(-1))
        groups = 1 if i == 0 else members
        convolved = graph.op("Conv", picture, kernels, bias, strides=[2, 2], pads=[1, 1, 1, 1], group=groups)
        picture = graph.op("Relu", convolved)
    features = graph.op("Reshape", picture, graph.axes(-1, members, image.n_features))
    features = graph.op("Transpose", features, perm=[1, 0, 2])
    if architecture.n_inputs == image.size:
        return features
    others = graph.op("Slice", encoded, bounds[1], bounds[2], bounds[3])
    others = graph.op("Expand", others, graph.axes(members, 1, 1))
    return graph.op("Concat", features, others, axis=2)


# --- from values to probabilities


def _score(graph: Graph, policy: QPolicy, names: Sequence[str], values: str, cvar_share: float) -> str:
    """(n, A) float64 in reward units, along `names`."""
    weights = quantile_weights(policy.architecture.n_quantiles, cvar_share) * policy.reward_scale
    return _along(graph, policy, names, _mean_over_members(graph, values, weights))


def _mean_over_members(graph: Graph, values: str, quantiles: NDArray[np.float64]) -> str:
    wide = graph.op("Cast", values, to=TensorProto.DOUBLE)
    mean = graph.op("ReduceMean", wide, graph.axes(0), keepdims=0)
    return graph.op("MatMul", mean, graph.constant(quantiles))


def _along(graph: Graph, policy: QPolicy, names: Sequence[str], own: str) -> str:
    """Columns of the policy's contract spread along `names`, -inf where it does not know the action."""
    mine = policy.contract.actions.names
    if tuple(names) == mine:
        return own
    columns = [mine.index(name) if name in mine else 0 for name in names]
    spread = graph.op("Gather", own, graph.constant(np.array(columns)), axis=1)
    return graph.op("Where", graph.constant(np.isin(names, mine)), spread, graph.number(-np.inf))


def _supported(graph: Graph, policy: QPolicy, names: Sequence[str], encoded: str, allowed: str) -> str:
    """(n, A) bool, as `choice.supported`."""
    threshold, behavior = policy.choice.support_threshold, policy.behavior
    if behavior is None or threshold == 0.0:
        return allowed
    outputs = _network(graph, behavior.architecture, behavior.weights, encoded)
    quantiles = quantile_weights(behavior.architecture.n_quantiles, 1.0)
    logits = _along(graph, policy, names, _mean_over_members(graph, outputs, quantiles))
    favourite = _largest(graph, graph.op("Where", allowed, logits, graph.number(-np.inf)))
    enough = graph.op("Greater", logits, graph.op("Add", favourite, graph.number(float(np.log(threshold)))))
    return graph.op("And", allowed, enough)


def _choose(graph: Graph, policy: QPolicy, scores: str, candidates: str) -> str:
    """(n, A) probabilities, as `choice.choose`."""
    possible = graph.op("Where", candidates, scores, graph.number(-np.inf))
    best = _largest(graph, possible)
    if policy.choice.rule == "softmax":
        below = graph.op("Div", graph.op("Sub", possible, best), graph.number(policy.choice.temperature))
        weights = graph.op("Exp", below)
    else:
        weights = graph.op("Cast", graph.op("Equal", possible, best), to=TensorProto.DOUBLE)
    return _normalised(graph, weights)


def _explore(graph: Graph, chosen: str, allowed: str, exploration: float) -> str:
    """(n, A) probabilities, as `exploration.explore`."""
    uniform = _normalised(graph, graph.op("Cast", allowed, to=TensorProto.DOUBLE))
    floor = graph.op("Mul", uniform, graph.number(exploration))
    return graph.op("Add", graph.op("Mul", chosen, graph.number(1.0 - exploration)), floor)


def _largest(graph: Graph, values: str) -> str:
    return graph.op("ReduceMax", values, graph.axes(1), keepdims=1)


def _normalised(graph: Graph, weights: str) -> str:
    return graph.op("Div", weights, graph.op("ReduceSum", weights, graph.axes(1), keepdims=1))
