"""A recorded decision, made again from what its reading was entered with: every bit must be the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pipelines.engines import spreading
from pipelines.readings import EVALUATION, Bench, digest_of, evaluation_bytes, reading_behind, set_up_again
from pipelines.training import StageError
from pipelines.workspace import Workspace
from reports.json_differences import JsonDifference, json_differences
from reports.ledger import Reading, Terms
from reports.records import Evaluation, evaluation_from_json, evaluation_to_json


@dataclass(frozen=True)
class Replayed:
    """What came of judging a release again.

    Attributes:
        release: its number.
        same: whether the replayed `evaluation.json` has the same bytes as the one in the release's folder.
        first_byte: offset of the first byte that differs; None where none does.
        differences: places of `evaluation.json` that differ, as it is stored -> as it was replayed.
        altered: why the stored file is not what the reading recorded; "" where it is.
        changed: what decides and is not as it was entered, as entered -> as found. The replay used what was found.
        changed_since: settings and champion of today that a new reading would use, as entered -> today. The replay did
            not use them.
    """

    release: int
    same: bool
    first_byte: int | None
    differences: tuple[JsonDifference, ...]
    altered: str
    changed: tuple[JsonDifference, ...]
    changed_since: tuple[JsonDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = ("differences", "changed", "changed_since")
        return {**self.__dict__, **{name: [d.__dict__ for d in getattr(self, name)] for name in lists}}


def replay_decision(workspace: Workspace, release: int) -> Replayed:
    """Judges a release again on the same snapshot, under the settings and against the champion of then.

    What the newest nights said, and the proof on the user's own log, which decides nothing, are taken as they were
    recorded: the lake has moved on since.

    Nothing is written and no error is spent: the outcome is known already.

    Raises:
        StageError: the release has no recorded decision, or what it was compared with is gone.
        SnapshotError: its snapshot was erased or a byte of it has changed; names the file.
        ReleaseError: a byte of a policy has changed; names the file.
    """
    reading = recorded_reading(workspace, release)
    stored = (workspace.release_path(release) / EVALUATION).read_bytes()
    try:
        bench = set_up_again(workspace, reading.terms, release)
    except KeyError as error:
        raise StageError(
            f"The reading of release {release} was entered by another version of offline-dqn, which did not record "
            f"{error}: replay it with that version ({', '.join(f'{k} {v}' for k, v in reading.terms.made_by.items())})."
        ) from error
    recorded = _recorded(stored)
    freshness, late_share = (recorded.freshness, recorded.late_share) if recorded else (None, 0.0)
    with spreading(workspace.config.engine, workspace.root) as spread:
        judged, _ = bench.judge(freshness, late_share, spread=spread)
    replayed = evaluation_bytes(evaluation_to_json(replace(judged, proof=recorded.proof if recorded else None)))
    return Replayed(
        release=release,
        same=stored == replayed,
        first_byte=_first_difference(stored, replayed),
        differences=tuple(_places(stored, replayed)),
        altered=""
        if digest_of(stored) == reading.evaluations[release]
        else f"{EVALUATION} is not what was recorded: its SHA-256 is {digest_of(stored)[:12]}.., the ledger has "
        f"{reading.evaluations[release][:12]}..",
        changed=tuple(json_differences(_deciding(reading.terms), _deciding(bench.terms))),
        changed_since=tuple(json_differences(_settings(reading.terms.inputs), _settings(_today(workspace, bench)))),
    )


def _recorded(stored: bytes) -> Evaluation | None:
    try:
        return evaluation_from_json(json.loads(stored))
    except (ValueError, TypeError):  # altered beyond reading: that shows as a difference anyway
        return None


def recorded_reading(workspace: Workspace, release: int) -> Reading:
    """The reading behind a release's recorded decision.

    Raises:
        StageError: there is none.
    """
    reading = reading_behind(workspace, release)
    if reading is None or not (workspace.release_path(release) / EVALUATION).is_file():
        raise StageError(
            f"Release {release} has no recorded decision that the error ledger knows of: there is nothing to replay. "
            f"`offline-dqn evaluate {release}` judges it, or finishes a reading that was cut off."
        )
    return reading


def _deciding(terms: Terms) -> dict[str, Any]:
    """What the bits depend on."""
    return {
        "candidate": terms.candidate,
        "snapshot": terms.snapshot,
        "nights": list(terms.nights),
        **terms.inputs,
        "made by": dict(terms.made_by),
    }


def _today(workspace: Workspace, bench: Bench) -> dict[str, Any]:
    config = workspace.config
    return {
        **bench.terms.inputs,
        "champion": workspace.registry.champion(),
        "evaluate": config.evaluate.model_dump(mode="json"),
        "gate": config.gate.model_dump(mode="json", exclude={"yearly_error"}),
        "seed": config.train.seed,
    }


def _settings(inputs: Any) -> dict[str, Any]:
    return {name: inputs[name] for name in ("champion", "evaluate", "gate", "seed")}


def _first_difference(one: bytes, other: bytes) -> int | None:
    if one == other:
        return None
    shared = min(len(one), len(other))
    return next((i for i in range(shared) if one[i] != other[i]), shared)


def _places(stored: bytes, replayed: bytes) -> Any:
    try:
        before = json.loads(stored)
    except ValueError as error:
        return [JsonDifference("", f"no JSON: {error}", "a whole evaluation")]
    return json_differences(before, json.loads(replayed))
