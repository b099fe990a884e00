"""Acting with a release: needs neither torch nor MLflow, so that the light install can do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.compatibility import IncompatibleContractError
from datasets.errors import OfflineDqnError
from datasets.observations import ObservationError, observations_from_records
from offline_dqn.policy import QPolicy, RulePolicy, load_policy
from pipelines.workspace import Workspace
from reports.manifest import read_manifest


class ReleaseError(OfflineDqnError):
    """A release that is not there, not whole, or made for another problem."""


def load_release(workspace: Workspace, release: int) -> QPolicy | RulePolicy:
    """A release's policy, once every byte of its folder is what was registered. Needs no MLflow, so anybody can act."""
    folder = workspace.release_path(release)
    manifest = read_manifest(folder)
    if manifest is None:
        known = ", ".join(map(str, workspace.releases_on_disk())) or "none"
        raise ReleaseError(f"There is no release {release} in {workspace.root}; there are: {known}.")
    damage = manifest.damage(folder, without_evaluation=True)
    if damage:
        raise ReleaseError(
            f"Release {release} is not what was registered: {damage}. Use another one; nothing was done."
        )
    try:
        return load_policy(workspace.release_path(release), actions=workspace.contract.actions.names)
    except IncompatibleContractError as error:
        raise ReleaseError(f"Release {release} cannot act under the current contract: {error}") from error


def act(workspace: Workspace, release: int, path: Path) -> list[dict[str, Any]]:
    """What a release would do on each observation of a JSON Lines file: action, probabilities and Q-values.

    A line is an observation, or an object with `observation` and, optionally, `available_actions`.

    Raises:
        ObservationError: a line is no JSON object or does not fit the contract; every problem is named, nothing acts.
    """
    policy = load_release(workspace, release)
    records, masks = _read_observations(path, policy.actions)
    if not records:
        return []
    observations = observations_from_records(policy.contract, records)
    probs = policy.action_probs(observations, masks)
    q = policy.q_values(observations)
    names = policy.actions
    return [
        {
            "action": names[int(probs[i].argmax())],
            "probabilities": dict(zip(names, probs[i].round(6).tolist(), strict=True)),
            "q_values": None if q is None else dict(zip(names, q[i].round(6).tolist(), strict=True)),
        }
        for i in range(len(records))
    ]


def _read_observations(path: Path, actions: tuple[str, ...]) -> tuple[list[dict[str, Any]], Any]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ObservationError(f"{path} cannot be read as text: {error}.") from error
    records: list[dict[str, Any]] = []
    masks: list[list[bool]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is not valid JSON: {error}")
            continue
        if not isinstance(row, dict):
            problems.append(f"line {number} is no JSON object")
            continue
        allowed = row.get("available_actions") or list(actions)
        unknown = [name for name in allowed if name not in actions]
        problems += [f"line {number}: '{name}' is no action of this release" for name in unknown]
        nested = row.get("observation", {k: v for k, v in row.items() if k != "available_actions"})
        records.append(nested)
        masks.append([name in allowed for name in actions])
    if problems:
        listed = "\n".join(f"  {text}" for text in problems[:10])
        raise ObservationError(f"{path} has {len(problems)} lines that cannot be acted on:\n{listed}")
    return records, np.array(masks, dtype=bool).reshape(len(records), len(actions))
