"""An incident's folder: what it holds, that its bytes are what was captured, and where incidents of a workspace lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets.bucket_folder import file_digest
from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from pipelines.workspace import Workspace

DESCRIPTION = "incident.json"
POSTMORTEM = "postmortem.md"
REPRODUCED = "reproduced.jsonl"
_ADDED_LATER = frozenset({DESCRIPTION, POSTMORTEM, REPRODUCED})

FORMAT = 1


class IncidentError(OfflineDqnError):
    """An incident that cannot be captured, or a capture that is not what it was."""


@dataclass(frozen=True)
class Incident:
    """What a capture says of itself.

    Attributes:
        name: of its folder; by default the moment.
        at: the moment, by the log's clock.
        captured_at: by the machine's clock.
        minutes: on each side of the moment, for which every step was captured.
        n_steps, n_episodes: captured in all; `n_window_steps` of them lie in those minutes.
        decided: captured decisions by the policy that is logged with them, the most frequent in those minutes first.
        champion: when it was captured; `disabled` whether the kill switch was thrown then.
        releases: copied with it.
        lake_commit, lake_versions: what was read.
        exclusions: that stood, in words.
        unread_logs: log files with rows that the lake had not taken in.
        made_by: versions of the code, and of the libraries that compute.
        files: SHA-256 by name.
        redacted_at: when an erasure last took rows out of it.
    """

    name: str
    at: str
    captured_at: str
    by: str
    note: str
    minutes: int
    n_steps: int
    n_episodes: int
    n_window_steps: int
    decided: Mapping[str, int]
    champion: int | None
    disabled: bool
    releases: tuple[int, ...]
    lake_commit: int
    lake_versions: Mapping[str, int]
    exclusions: tuple[str, ...]
    unread_logs: tuple[str, ...]
    made_by: Mapping[str, str]
    files: Mapping[str, str]
    redacted_at: str | None = None

    @property
    def moment(self) -> datetime:
        """`at` as an instant."""
        return datetime.fromisoformat(self.at)

    @property
    def suspect(self) -> int | None:
        """The release that decided most around the moment; None where no release of a number did."""
        return next((int(version) for version in self.decided if version.isdecimal()), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {"releases": list(self.releases), "exclusions": list(self.exclusions)}
        return {"format": FORMAT, **asdict(self), **lists, "unread_logs": list(self.unread_logs)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Incident:
        """What `to_json` gave."""
        known = {name: value for name, value in values.items() if name != "format"}
        tuples = {name: tuple(known[name]) for name in ("releases", "exclusions", "unread_logs")}
        return cls(**{**known, **tuples})


def incidents_path(workspace: Workspace) -> Path:
    """Where a workspace's incidents lie."""
    return workspace.root / "incidents"


def list_incidents(workspace: Workspace) -> list[Incident]:
    """Every incident, by when it was captured."""
    found = [read_incident(path.parent) for path in incidents_path(workspace).glob(f"[!.]*/{DESCRIPTION}")]
    return sorted(found, key=lambda incident: incident.captured_at)


def find_incident(workspace: Workspace, name: str) -> Path:
    """The folder of the incident whose name begins so; the one that was captured last for "".

    Raises:
        IncidentError: there is none, or more than one.
    """
    known = [incident.name for incident in list_incidents(workspace)]
    if not known:
        raise IncidentError(
            f"{incidents_path(workspace)} holds no incident. `offline-dqn incident capture --at INSTANT` captures one."
        )
    found = [each for each in known if each == name] or [each for each in known if each.startswith(name)]
    if name and len(found) != 1:
        how = "Several incidents begin" if found else "No incident begins"
        raise IncidentError(f"{how} with '{name}'. There are: {', '.join(known)}.")
    return incidents_path(workspace) / found[-1]


def read_incident(folder: Path) -> Incident:
    """What a capture says of itself; its other files are not read.

    Raises:
        IncidentError: it is none, or of another version.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise IncidentError(f"{path} has format {values.get('format')}; this version reads {FORMAT}.")
        return Incident.from_json(values)
    except FileNotFoundError as error:
        raise IncidentError(
            f"{folder} is no captured incident: it has no {DESCRIPTION}. Name a folder that `offline-dqn incident "
            "capture` wrote."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IncidentError(f"{path} cannot be read: {error}. Restore the folder from a backup.") from error


def check_bytes(folder: Path, incident: Incident) -> None:
    """Raises an IncidentError that names every file that is missing or not what was captured."""
    changed = [
        name
        for name, digest in incident.files.items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
    if changed:
        raise IncidentError(
            f"{folder} is not what was captured: {', '.join(sorted(changed))} changed or went missing since. What it "
            "says is no evidence; use the copy of a backup, or capture the moment again."
        )


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a capture that is evidence, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_digest(path) for name, path in names.items() if name not in _ADDED_LATER}


def write_description(folder: Path, incident: Incident) -> None:
    """The last file of a capture, through to the disk."""
    write_durably(folder / DESCRIPTION, json.dumps(incident.to_json(), indent=1))
