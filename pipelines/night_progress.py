"""How far the night in progress has come: our own record, so that one that died is taken up where it stopped.

`night.json` in the workspace is written before and after every stage, through to the disk, and removed once the night's
line stands in `nights.jsonl`. A finished stage is not repeated while everything that decided it is as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from datasets.exclusions import read_exclusions
from pipelines.made_by import made_by
from pipelines.readings import digest_of
from pipelines.workspace import Workspace

_NO_MATTER = {"notify", "nightly", "serve", "metrics", "cost", "canary", "slo", "tracing", "sentry"}
"""Settings that decide nothing of what a stage finds."""


@dataclass(frozen=True)
class NightProgress:
    """A night that has begun.

    Attributes:
        key: what decides it beside the lake: settings, contract, code, champion, exclusions, and what was asked for.
        started_at: when it began, by the clock.
        as_of: the instant that all of its stages take for now; None until an ingest has shown it, where that is the
            newest timestamp of the log.
        n_starts: how often it was started, this time included.
        under_way: the stage that was begun last.
        finished: what each finished stage found, with the lake's commit number then ("lake") and its seconds.
        why_afresh: why an earlier night in progress was not taken up; "" where there was none.
    """

    key: Mapping[str, Any]
    started_at: str
    as_of: str | None
    n_starts: int = 1
    under_way: str = ""
    finished: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    why_afresh: str = ""

    def begin(self, stage: str) -> NightProgress:
        """With a stage under way."""
        return replace(self, under_way=stage)

    def finish(self, stage: str, lake: int, seconds: float, found: Mapping[str, Any]) -> NightProgress:
        """With what a stage found."""
        done = {"lake": lake, "seconds": seconds, "found": dict(found)}
        return replace(self, finished={**self.finished, stage: done})

    def found(self, stage: str, lake: int | None = None) -> Mapping[str, Any] | None:
        """What a finished stage found; None where it must run: it did not finish, or read another version of the lake.

        Args:
            lake: commit number of the lake now, for a stage that rests on it; None for one that does not.
        """
        done = self.finished.get(stage)
        if done is None or (lake is not None and done["lake"] != lake):
            return None
        return dict(done["found"])

    def seconds(self) -> dict[str, float]:
        """Of the finished stages."""
        return {stage: float(done["seconds"]) for stage, done in self.finished.items()}


def begin_or_resume(
    workspace: Workspace, *, force_train: bool, afresh: bool = False, now: datetime | None = None
) -> NightProgress:
    """The night in progress if it can be taken up, else a new one.

    Args:
        afresh: begin a new one in any case.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    key = _key(workspace, force_train)
    given = workspace.given_as_of
    as_of = given or (now if workspace.config.ingest.as_of != "newest" else None)
    fresh = NightProgress(key, now.isoformat(), as_of.isoformat() if as_of else None)
    known = read_progress(workspace)
    if known is None:
        return fresh
    began = datetime.fromisoformat(known.started_at)
    hours = workspace.config.nightly.resume_within_hours
    changed = sorted(name for name in key if known.key.get(name) != key[name])
    if afresh:
        why = "it was asked to"
    elif now - began > timedelta(hours=hours) or now < began:
        why = f"the one of {began:%Y-%m-%d %H:%M} UTC is older than nightly.resume_within_hours ({hours:g})"
    elif changed:
        why = f"of the one of {began:%Y-%m-%d %H:%M} UTC {', '.join(changed)} differ"
    elif given is not None and known.as_of != given.isoformat():
        why = f"the one of {began:%Y-%m-%d %H:%M} UTC took another instant for now"
    else:
        return replace(known, n_starts=known.n_starts + 1)
    return replace(fresh, why_afresh=why)


def _key(workspace: Workspace, force_train: bool) -> dict[str, Any]:
    settings = workspace.config.model_dump(mode="json", by_alias=True, exclude=_NO_MATTER)
    return {
        "settings": digest_of(json.dumps(settings, sort_keys=True).encode()),
        "contract": workspace.contract.digest,
        "code": made_by()["source"],
        "champion": workspace.registry.champion(),
        "exclusions": [rule.name for rule in read_exclusions(workspace.open_lake())],
        "force_train": force_train,
    }


def read_progress(workspace: Workspace) -> NightProgress | None:
    """The night in progress, or the one that died; None where there is none, or where the record cannot be read."""
    try:
        return NightProgress(**json.loads(_path(workspace).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # it is written whole or not at all; another version's is begun afresh


def write_progress(workspace: Workspace, progress: NightProgress) -> None:
    """Keeps how far the night has come; the caller holds the workspace's lock."""
    write_durably(_path(workspace), json.dumps(asdict(progress)))


def end_progress(workspace: Workspace) -> None:
    """The night's line is written: nothing is left to take up."""
    _path(workspace).unlink(missing_ok=True)


def _path(workspace: Workspace) -> Path:
    return workspace.root / "night.json"
