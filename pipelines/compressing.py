"""A release made smaller: a new candidate that acts nearly like an old release, and has to pass the gate itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datasets.replay import SELECT, TRAIN, Replay
from datasets.snapshot import current_snapshot, open_snapshot
from offline_dqn.compression import DistillConfig, distill, quantize
from offline_dqn.compression_loss import CompressionLoss, measure_loss
from offline_dqn.guard_fit import GuardFitter
from offline_dqn.guarded import GuardedPolicy, learned_part, with_learned_part
from offline_dqn.policy import WEIGHTS_FILE, AnyPolicy, QPolicy, save_policy
from pipelines.acting import ReleaseError, load_release
from pipelines.known_releases import intact_trainings
from pipelines.workspace import Workspace

_OF_ORIGINAL = ("chosen", "selection", "history", "diverged", "q_exceeds_feasible", "began_with", "compressed_from")
"""What a release's `training.json` says of that release and of none that is made from it."""


@dataclass(frozen=True)
class CompressOutcome:
    """A compressed candidate release.

    Attributes:
        release: its number.
        compressed_from: the release that it was made from.
        bytes_before, bytes_after: of the stored weights.
        loss: what it costs, on the `select` episodes.
        repeated: whether it stood there already, from the same release and settings.
    """

    release: int
    compressed_from: int
    bytes_before: int
    bytes_after: int
    loss: CompressionLoss
    repeated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "loss": self.loss.to_json()}


def compress(
    workspace: Workspace,
    release: int,
    *,
    distillation: DistillConfig | None = None,
    int8: bool = False,
    on_update: Callable[[int], None] = lambda _: None,
) -> CompressOutcome:
    """Makes a smaller candidate of a release: distilled on the `train` episodes of its snapshot, or in int8, or both.

    Of a mixture the learned policy becomes smaller; its partner stays as it is. A guard stays, its thresholds set anew
    on `select` by `[guard]`: smaller networks disagree otherwise. The same release with the same settings
    gives the candidate that stands there already, since a twin would meet the gate a second time.

    Raises:
        ReleaseError: nothing was asked for, the release acts by rules, or its snapshot has no `select` episode.
        SnapshotError: its snapshot is gone.
    """
    if distillation is None and not int8:
        raise ReleaseError("There is nothing to compress by: give --hidden for a smaller network, --int8, or both.")
    before = load_release(workspace, release)
    if not isinstance(learned_part(before), QPolicy):
        raise ReleaseError(f"Release {release} acts by rules, which have no weights to compress.")
    folder = workspace.release_path(release)
    training = json.loads((folder / "training.json").read_text())
    settings = {
        "from": before.digest,
        "distillation": distillation.model_dump(mode="json") if distillation else None,
        "int8": int8,
    }
    known = _compressed_before(workspace, release, settings)
    if known is not None:
        return known
    replay, _ = open_snapshot(current_snapshot(workspace.snapshots_path / training["snapshot"]))
    replay = replay.under(workspace.contract.rules)
    select = replay.of_split(SELECT)
    if not select.n_episodes:
        raise ReleaseError(
            f"Snapshot {training['snapshot']} has no `select` episode to measure the loss on. Raise "
            "snapshot.select_share, or wait for more nights."
        )
    before = load_release(workspace, release, replay.contract)
    own = learned_part(before)
    assert isinstance(own, QPolicy)
    smaller = _smaller(own, replay.of_split(TRAIN), distillation, int8, on_update)
    smaller = replace(smaller, config={**own.config, "compression": settings})
    after: AnyPolicy = with_learned_part(before, smaller)
    if isinstance(after, GuardedPolicy):
        after = GuardFitter(replay.of_split(TRAIN), select, after.fallback, workspace.config.guard).guarded(after)
    config = workspace.config
    loss = measure_loss(before, after, select, encoder=own.encoder, config=config.evaluate.fqe, seed=config.train.seed)
    with workspace.registry.staging() as staged:
        save_policy(staged, after)
        sizes = [(path / WEIGHTS_FILE).stat().st_size for path in (folder, staged)]
        made = {"settings": settings, "release": release, "bytes": sizes, "loss": loss.to_json()}
        (staged / "training.json").write_text(json.dumps(_record(training, made), indent=1))
        tags = {"snapshot": training["snapshot"], "compressed_from": release}
        number = workspace.registry.register(staged, gate="not evaluated", tags=tags)
    return CompressOutcome(number, release, sizes[0], sizes[1], loss)


def _record(training: Mapping[str, Any], compression: Mapping[str, Any]) -> dict[str, Any]:
    """`training.json` of what was compressed: the original's, with its choice and its curves set apart as such."""
    of_original = {name: training[name] for name in _OF_ORIGINAL if name in training}
    kept = {name: value for name, value in training.items() if name not in of_original}
    # Training again with the settings of the original must not find this release in its place.
    config = {**training["config"], "compression": compression["settings"]}
    apart = {"config": config, "history": [], "compressed_from": of_original, "compression": dict(compression)}
    return kept | apart


def _smaller(
    own: QPolicy, train: Replay, distillation: DistillConfig | None, int8: bool, on_update: Callable[[int], None]
) -> QPolicy:
    if distillation is not None:
        available = train.permitted[: train.n_steps]
        own = distill(own, train.observations, available, distillation, on_update=on_update)
    return quantize(own) if int8 else own


def _compressed_before(workspace: Workspace, release: int, settings: Mapping[str, Any]) -> CompressOutcome | None:
    """The intact candidate that this release and these settings gave."""
    for number, training in intact_trainings(workspace):
        record = training.get("compression")
        if record is not None and record["settings"] == settings:
            loss = CompressionLoss(**record["loss"])
            return CompressOutcome(number, release, record["bytes"][0], record["bytes"][1], loss, repeated=True)
    return None
