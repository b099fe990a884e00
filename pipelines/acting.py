"""Acting with a release: needs neither torch nor MLflow, so that the light install can do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets.compatibility import IncompatibleContractError
from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from datasets.observations import ObservationError, observation_problems, observations_of_checked, record_of
from datasets.row_conditions import Record
from offline_dqn.compiled_shield import CompiledShield
from offline_dqn.decisions import Scorer, decide, forbidden_by, merged, permit
from offline_dqn.policy import GRAPH_FILE, MANIFEST_FILE, AnyPolicy, check_compatible, load_policy
from offline_dqn.scorers import NumpyScorer, OnnxScorer
from pipelines.workspace import Workspace
from reports.manifest import read_manifest
from reports.release_bucket import mend_release


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
    if damage and mend_release(workspace.releases_path, release):
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
    scorer = _scorer(workspace.release_path(release), policy, engine)
    forbidden = CompiledShield(contract).forbidden(records)
    permission = permit(contract.actions, scorer.known, masks, merged(forbidden))
    decided = decide(scorer, contract.actions, records, permission)
    names, probs, q = policy.actions, decided.probs, decided.q_values
    spread = policy.disagreement(observations_of_checked(contract, records))
    chosen = probs.argmax(axis=1)
    return [
        {
            "action": names[chosen[i]],
            "action_value": policy.contract.actions.value_of(names[chosen[i]]),
            "decided_by": decided.decided_by[i],
            "guard": decided.guard[i] or None,
            "forbidden": forbidden_by(names, forbidden, i, masks[i]),
            "probabilities": dict(zip(names, probs[i].round(6).tolist(), strict=True)),
            "q_values": None if q is None else dict(zip(names, q[i].round(6).tolist(), strict=True)),
            "disagreement": None if spread is None else round(float(spread[i, chosen[i]]), 6),
        }
        for i in range(len(records))
    ]


def _scorer(folder: Path, policy: AnyPolicy, engine: Engine) -> Scorer:
    if engine == "numpy":
        return NumpyScorer(policy)
    graph = read_graph(folder)
    if graph is None or not graph[1]["whole"]:
        holder = "acts by rules" if graph is None else "mixes in, or falls back on, a policy of rules"
        raise ReleaseError(
            f"Release {folder.name} {holder}, and these have no graph: leave out --engine onnx, and it acts as it is."
        )
    from offline_dqn.onnx_policy import OnnxPolicy  # onnxruntime takes a moment that acting with numpy does not need

    return OnnxScorer(policy, OnnxPolicy(policy.contract, *graph))


def read_graph(folder: Path) -> tuple[bytes, dict[str, Any]] | None:
    """Content and description of the graph in a release's folder; None where there is none."""
    described: dict[str, Any] | None = json.loads((folder / MANIFEST_FILE).read_text()).get("graph")
    return None if described is None else ((folder / GRAPH_FILE).read_bytes(), described)


def _read_observations(path: Path, policy: AnyPolicy, contract: Contract) -> tuple[list[Record], NDArray[np.bool_]]:
    """The observations of a file, and (n, A) which actions are available to each."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise ObservationError(
            f"{path} does not exist. Name a file of observations, one JSON object a line."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ObservationError(f"{path} cannot be read as text: {error}.") from error
    records: list[Record] = []
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


def _read_line(line: str, policy: AnyPolicy, contract: Contract) -> tuple[Record, list[bool], list[str]]:
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
    wrong = observation_problems(contract, record)
    return (
        {} if wrong else record_of(contract, record),
        [name in allowed for name in policy.actions],
        [*problems, *wrong],
    )
