"""Which releases stand there already: made from the same data by the same settings, or the same policy.

A twin would meet the gate a second time and spend error that its level does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from offline_dqn.policy import load_policy
from pipelines.config import PipelineConfig
from pipelines.workspace import Workspace
from reports.manifest import read_manifest

Training = dict[str, Any]
"""What `training.json` of a release holds."""

_INDIFFERENT = {"checkpoint_every", "log_every", "n_threads", "device"}
"""Settings of training that are not meant to change what is learned; rounding may still differ, which makes no new
candidate. How much fits into memory is none of them: what is streamed is drawn otherwise."""


def deciding_settings(
    workspace: Workspace, *, champion: str | None, version_zero: str | None, parent: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What decides, with the data, which release training makes.

    Args:
        workspace: its settings of training, of choosing, and of what choosing takes over from evaluation and gate.
        champion, version_zero: digests of the policies that candidates are compared and mixed with.
        parent: `Parent.identity`.
    """
    config = workspace.config
    return {
        "config": config.train.model_dump(mode="json"),
        "select_config": config.select.model_dump(mode="json"),
        "guard": deciding_guard(config, version_zero),
        "fqe": config.evaluate.fqe.model_dump(mode="json"),
        "propensity": config.evaluate.propensity.model_dump(mode="json"),
        "gate_config": config.gate.model_dump(mode="json"),
        "rules": workspace.contract.rules.model_dump(mode="json"),
        "champion": champion,
        "version_zero": version_zero,
        "parent": dict(parent) if parent is not None else None,
    }


def deciding_guard(config: PipelineConfig, version_zero: str | None) -> dict[str, Any] | None:
    """What of `[guard]` decides which policy training makes; None where there is no guard."""
    if version_zero is None or not config.guard.enabled:
        return None
    return config.guard.model_dump(mode="json", exclude={"enabled", "alert_share"})


def intact_trainings(workspace: Workspace) -> Iterator[tuple[int, Training]]:
    """The releases that were trained here and are what was registered, the newest first.

    What an evaluation added to them may be damaged: it can be written anew.
    """
    for release in reversed(workspace.releases_on_disk()):
        folder = workspace.release_path(release)
        manifest = read_manifest(folder)
        if (
            manifest is None
            or "training.json" not in manifest.files
            or manifest.damage(folder, without_evaluation=True)
        ):
            continue
        yield release, json.loads((folder / "training.json").read_text())


def trained_before(
    workspace: Workspace, snapshot_digest: str, settings: Mapping[str, Any], champion: int | None
) -> tuple[int, Training] | None:
    """The newest intact release that these data and settings gave.

    That it has become the `champion` since then does not make it another.
    """
    for release, training in intact_trainings(workspace):
        if training.get("snapshot_digest") != snapshot_digest:
            continue
        found = {name: training.get(name) for name in settings}
        if release == champion:
            found["champion"] = settings["champion"]
        if _identity(found) == _identity(settings):
            return release, training
    return None


def same_policy(workspace: Workspace, snapshot_digest: str, digest: str) -> tuple[int, Training] | None:
    """The newest intact release from these data whose policy has this digest."""
    for release, training in intact_trainings(workspace):
        if training.get("snapshot_digest") != snapshot_digest or "selection" not in training:
            continue
        if load_policy(workspace.release_path(release)).digest == digest:
            return release, training
    return None


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = settings["config"]
    ignored = _INDIFFERENT
    if config.get("settled_share"):  # training ends after so many measurements
        ignored = ignored - {"log_every"}
    return {**settings, "config": {name: value for name, value in config.items() if name not in ignored}}
