"""Reproducing: the captured decisions made again from the captured releases alone, compared with what was logged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.contract import Contract, read_contract
from datasets.durable import append_record
from datasets.errors import OfflineDqnError
from datasets.observations import record_of
from offline_dqn.compiled_shield import CompiledShield
from offline_dqn.decisions import decide, merged, permit
from offline_dqn.policy import AnyPolicy, check_compatible, load_policy
from offline_dqn.scorers import NumpyScorer
from pipelines.incident.captured import REPRODUCED, Incident, check_bytes, read_incident
from reports.manifest import read_manifest

VERSION_ZERO = 0

_ROUNDING = 1e-4
"""Difference up to which a logged probability is the release's own: logs round. The same as for believing a log."""

_OF_VERSION_ZERO = ("baseline", "late")
"""`decided_by` of decisions that version 0 made in a release's place."""

_SHOWN = 5


@dataclass(frozen=True)
class Again:
    """The decisions of one policy, made again.

    Attributes:
        release: that made them; version 0's include those it made while another one was in charge.
        n: decisions.
        n_same: whose logged probability is, to the last bit, what the release says now.
        n_rounded: whose differs by no more than rounding in a log explains.
        n_differ: whose is another; `differ` names the first of them.
        n_unlogged: whose probability was not logged.
        actions: logged actions, by action.
        n_unlike_zero: whose logged action is not the one that version 0 would most probably take.
        problem: why none could be made again; "" where they could.
    """

    release: int
    n: int
    n_same: int = 0
    n_rounded: int = 0
    n_differ: int = 0
    n_unlogged: int = 0
    actions: Mapping[str, int] | None = None
    n_unlike_zero: int | None = None
    differ: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Reproduction:
    """All captured decisions, made again.

    Attributes:
        n_foreign: decisions under a name that is no release of the capture.
    """

    name: str
    again: tuple[Again, ...]
    n_foreign: int

    @property
    def holds(self) -> bool:
        """Whether every decision of a captured release is what that release decides."""
        return not any(each.n_differ or each.problem for each in self.again)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        again = [{**asdict(each), "differ": list(each.differ)} for each in self.again]
        return {"incident": self.name, "holds": self.holds, "releases": again, "n_foreign": self.n_foreign}


def reproduce(folder: Path) -> Reproduction:
    """Makes every captured decision again. Needs the folder alone: no workspace, no server, no lake.

    Raises:
        IncidentError: a byte of the capture has changed.
    """
    incident = read_incident(folder)
    check_bytes(folder, incident)
    contract = read_contract(folder / "records" / "contract.toml")
    columns = ["episode_id", "step", "observation", "action", "available_actions", "behavior_prob"]
    columns += ["policy_version", "decided_by", "decision_id"]
    rows = pq.read_table(folder / "steps.parquet", columns=columns).to_pylist()
    by_release: dict[int, list[dict[str, Any]]] = {}
    n_foreign = 0
    for row in rows:
        release = _decider(row, incident)
        if release is None:
            n_foreign += 1
        else:
            by_release.setdefault(release, []).append(row)
    zero = _loaded(folder, VERSION_ZERO, contract)
    again = tuple(
        _made_again(release, _loaded(folder, release, contract), zero, contract, decisions)
        for release, decisions in sorted(by_release.items())
    )
    return Reproduction(incident.name, again, n_foreign)


def note_reproduction(folder: Path, found: Reproduction) -> None:
    """Keeps what a reproduction found beside the capture, for the postmortem."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_record(folder / REPRODUCED, {"at": at, **found.to_json()})


def read_reproductions(folder: Path) -> list[dict[str, Any]]:
    """What reproductions found so far, oldest first."""
    path = folder / REPRODUCED
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _decider(row: Mapping[str, Any], incident: Incident) -> int | None:
    if row["decided_by"] in _OF_VERSION_ZERO:
        return VERSION_ZERO
    version = row["policy_version"] or ""
    return int(version) if version.isdecimal() and int(version) in incident.releases else None


def _loaded(folder: Path, release: int, contract: Contract) -> AnyPolicy | str:
    """A captured release, or why it cannot act."""
    path = folder / "releases" / str(release)
    manifest = read_manifest(path)
    if manifest is None:
        return f"release {release} was not captured: the workspace had none"
    damage = manifest.damage(path, without_evaluation=True)
    if damage:
        return f"release {release} was damaged when it was captured: {damage}"
    try:
        policy = load_policy(path, actions=contract.actions.names)
        check_compatible(policy.contract, contract)
    except OfflineDqnError as error:
        return f"release {release} cannot act under the captured contract: {error}"
    return policy


def _made_again(
    release: int,
    policy: AnyPolicy | str,
    zero: AnyPolicy | str,
    contract: Contract,
    rows: Sequence[Mapping[str, Any]],
) -> Again:
    if isinstance(policy, str):
        return Again(release, len(rows), problem=policy)
    probs = _probabilities(policy, contract, rows)
    taken = np.array([contract.actions.names.index(row["action"]) for row in rows])
    logged = np.array([np.nan if row["behavior_prob"] is None else row["behavior_prob"] for row in rows])
    found = probs[np.arange(len(rows)), taken]
    unlogged = np.isnan(logged)
    same = logged == found
    rounded = ~same & (np.abs(logged - found) <= _ROUNDING)
    differ = ~same & ~rounded & ~unlogged
    unlike = None
    if not isinstance(zero, str):
        unlike = int((_probabilities(zero, contract, rows).argmax(axis=1) != taken).sum())
    return Again(
        release,
        n=len(rows),
        n_same=int(same.sum()),
        n_rounded=int(rounded.sum()),
        n_differ=int(differ.sum()),
        n_unlogged=int(unlogged.sum()),
        actions=dict(Counter(row["action"] for row in rows).most_common()),
        n_unlike_zero=unlike,
        differ=tuple(
            f"episode {rows[i]['episode_id']} step {rows[i]['step']}: {rows[i]['action']} was logged with probability "
            f"{logged[i]:.6g}, the release gives it {found[i]:.6g}"
            for i in np.flatnonzero(differ)[:_SHOWN]
        ),
    )


def _probabilities(policy: AnyPolicy, contract: Contract, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(n, A) what a policy draws from, behind the contract's shield, where the world left what was logged."""
    names = contract.actions.names
    records = [record_of(contract, row["observation"]) for row in rows]
    available = np.array(
        [[row["available_actions"] is None or name in row["available_actions"] for name in names] for row in rows]
    )
    scorer = NumpyScorer(policy)
    permission = permit(contract.actions, scorer.known, available, merged(CompiledShield(contract).forbidden(records)))
    return decide(scorer, contract.actions, records, permission).probs
