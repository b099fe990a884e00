"""Acting with a release: needs neither torch nor MLflow, so that the light install can do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.compatibility import IncompatibleContractError
from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from datasets.observations import ObservationError, Observations, observation_problems, observations_from_records
from datasets.step_rules import forbidden_actions, permitted_actions
from offline_dqn.exploration import allowed_actions
from offline_dqn.policy import GRAPH_FILE, MANIFEST_FILE, AnyPolicy, check_compatible, load_policy
from offline_dqn.shield import shielded_probs
from pipelines.workspace import Workspace
from reports.manifest import read_manifest


class ReleaseError(OfflineDqnError):
    """A release that is not there, not whole, or made for another problem."""


def load_release(
    workspace: Workspace, release: int, contract: Contract | None = None, *, with_evaluation: bool = False
) -> AnyPolicy:
    """A release's policy, once every byte of its folder is what was registered. Needs no MLflow, so anybody can act.

    Its actions follow `contract`: by default the current one, otherwise that of the snapshot it is asked about.

    Args:
        with_evaluation: whether what an evaluation added must be whole too: to act it must, to be judged it need not.
    """
    folder = workspace.release_path(release)
    manifest = read_manifest(folder)
    if manifest is None:
        known = ", ".join(map(str, workspace.releases_on_disk())) or "none"
        raise ReleaseError(f"There is no release {release} in {workspace.root}; there are: {known}.")
    damage = manifest.damage(folder, without_evaluation=not with_evaluation)
    if damage:
        raise ReleaseError(
            f"Release {release} is not what was registered: {damage}. Use another one; nothing was done."
        )
    under = contract or workspace.contract
    try:
        policy = load_policy(folder, actions=under.actions.names)
        check_compatible(policy.contract, under)
        return policy
    except IncompatibleContractError as error:
        raise ReleaseError(f"Release {release} cannot act under this contract: {error}") from error


Engine = Literal["numpy", "onnx"]


def act(workspace: Workspace, release: int, path: Path, engine: Engine = "numpy") -> list[dict[str, Any]]:
    """What a release would do on each observation of a JSON Lines file: action, probabilities and Q-values.

    A line is an observation, or an object with `observation` and, optionally, `available_actions`. The action is the
    most probable one; what is served draws from the probabilities. `action_value` is the number to act with where
    actions are bins. `disagreement` is the standard deviation of that action's value over the networks of an ensemble,
    in reward units.

    Args:
        workspace: of the release.
        release: its number.
        path: of the observations.
        engine: "numpy" is what is evaluated; "onnx" runs the release's policy.onnx, which says the same to rounding.

    Raises:
        ObservationError: a line is no JSON object or does not fit the contract; every problem is named, nothing acts.
        ReleaseError: the release cannot act, or has no graph that holds all of it.
    """
    policy, contract = load_release(workspace, release, with_evaluation=True), workspace.contract
    records, masks = _read_observations(path, policy, contract)
    if not records:
        return []
    observations = observations_from_records(contract, records)
    forbidden = forbidden_actions(contract, observations)
    permitted = permitted_actions(contract, observations, masks)
    left = masks & ~np.logical_or.reduce([*forbidden.values(), np.zeros_like(masks)])
    stuck = ~(left & np.isin(policy.actions, policy.contract.actions.names)).any(axis=1)
    probs = shielded_probs(policy, contract, observations, permitted)
    q = policy.q_values(observations)
    if engine == "onnx":
        free = np.flatnonzero(~stuck) if forbidden else np.arange(len(records))
        folder = workspace.release_path(release)
        own_probs, own_q = _score_with_graph(folder, policy, observations.take(free), permitted[free])
        probs[free] = own_probs
        if q is not None and own_q is not None:
            q = np.array(q)
            q[free] = own_q
    spread = policy.disagreement(observations)
    names, chosen = policy.actions, probs.argmax(axis=1)
    return [
        {
            "action": names[chosen[i]],
            "action_value": policy.contract.actions.value_of(names[chosen[i]]),
            "decided_by": "shield" if forbidden and stuck[i] else "policy",
            "forbidden": {
                names[a]: name for name, mask in reversed(forbidden.items()) for a in np.flatnonzero(mask[i] & masks[i])
            },
            "probabilities": dict(zip(names, probs[i].round(6).tolist(), strict=True)),
            "q_values": None if q is None else dict(zip(names, q[i].round(6).tolist(), strict=True)),
            "disagreement": None if spread is None else round(float(spread[i, chosen[i]]), 6),
        }
        for i in range(len(records))
    ]


def _score_with_graph(
    folder: Path, policy: AnyPolicy, observations: Observations, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """(n, A) probabilities and Q-values by policy.onnx, along the policy's actions."""
    from offline_dqn.onnx_policy import OnnxPolicy  # onnxruntime takes a moment that acting with numpy does not need

    described = json.loads((folder / MANIFEST_FILE).read_text()).get("graph")
    if described is None or not described["whole"]:
        holder = "acts by rules" if described is None else "mixes in a policy of rules"
        raise ReleaseError(
            f"Release {folder.name} {holder}, and these have no graph: leave out --engine onnx, and it acts as it is."
        )
    allowed = allowed_actions(masks, np.isin(policy.actions, described["actions"]), len(observations))
    columns = [policy.actions.index(name) for name in described["actions"]]
    graph = OnnxPolicy(policy.contract, (folder / GRAPH_FILE).read_bytes(), described)
    own_probs, own_q = graph.score(observations, allowed[:, columns])
    probs, q = np.zeros(masks.shape), np.full(masks.shape, -np.inf)
    probs[:, columns] = own_probs
    if own_q is None:
        return probs, None
    q[:, columns] = own_q
    return probs, q


def _read_observations(
    path: Path, policy: AnyPolicy, contract: Contract
) -> tuple[list[Mapping[str, object]], NDArray[np.bool_]]:
    """The observations of a file, and (n, A) which actions are available to each."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise ObservationError(
            f"{path} does not exist. Name a file of observations, one JSON object a line."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ObservationError(f"{path} cannot be read as text: {error}.") from error
    records: list[Mapping[str, object]] = []
    masks: list[list[bool]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record, mask, wrong = _read_line(line, policy, contract)
        problems += [f"line {number}: {text}" for text in wrong]
        records.append(record)
        masks.append(mask)
    if problems:
        listed = "\n".join(f"  {text}" for text in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        what = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise ObservationError(f"{path} has {what}, so nothing acted:\n{listed}{more}")
    return records, np.array(masks, dtype=bool).reshape(len(records), len(policy.actions))


_SHOWN = 10
"""Problems that a message lists."""


def _read_line(line: str, policy: AnyPolicy, contract: Contract) -> tuple[Mapping[str, object], list[bool], list[str]]:
    """The observation of one line, which actions it allows, and what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return {}, [], [f"is not valid JSON: {error}"]
    if not isinstance(row, dict):
        return {}, [], [f"wants a JSON object, found {line.strip()[:60]}"]
    problems = []
    allowed = row.pop("available_actions", None)
    if allowed is None:
        allowed = list(policy.actions)
    if not isinstance(allowed, list):
        problems.append(f"available_actions wants a list of actions, found {json.dumps(allowed)[:60]}")
        allowed = []
    elif not allowed:
        problems.append("available_actions is empty, so there is nothing to choose from")
    unknown = [str(name) for name in allowed if name not in policy.actions]
    problems += [f"'{name}' is no action of this release ({', '.join(policy.actions)})" for name in unknown]
    record = row.get("observation", row)
    if not isinstance(record, dict):
        return {}, [], [*problems, f"observation wants a JSON object, found {json.dumps(record)[:60]}"]
    problems += observation_problems(contract, record)
    return record, [name in allowed for name in policy.actions], problems
