"""The kill switch: a file whose presence puts version 0 in charge. It needs no registry, and no release but version 0.

Whoever can write to the workspace can throw it; the server looks for it several times a second. What happened to it is
kept in a history beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.durable import append_record, read_records, write_durably
from datasets.errors import OfflineDqnError

SWITCH_FILE = "disabled.json"
HISTORY_FILE = "switch_history.jsonl"


class SwitchError(OfflineDqnError):
    """Nobody answers for the switch, or there is no version 0 that it could put in charge."""


@dataclass(frozen=True)
class Disabled:
    """Since when the releases are out of charge, by whom and why."""

    at: datetime
    by: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"at": self.at.isoformat(), "by": self.by, "note": self.note}


def read_switch(folder: Path) -> Disabled | None:
    """What the switch says in a workspace's `serving` folder; None where releases may act.

    A file that cannot be read disables too: whoever wrote it wanted that.
    """
    path = folder / SWITCH_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Disabled(datetime.fromisoformat(values["at"]), str(values["by"]), str(values["note"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Disabled(datetime.fromtimestamp(0, UTC), "unknown", f"{path} is there and cannot be read: {error}")


def disable(folder: Path, *, by: str, note: str, at: datetime | None = None) -> tuple[Disabled, bool]:
    """Puts version 0 in charge; where somebody did that before, it stays as it was.

    Returns:
        What disables now, and whether that is new.

    Raises:
        SwitchError: nobody is named.
    """
    if not by.strip():
        raise SwitchError("Who takes the releases out of charge? Name somebody: --reviewer NAME.")
    found = read_switch(folder)
    if found is not None:
        return found, False
    disabled = Disabled((at or datetime.now(UTC)).astimezone(UTC), by.strip(), note.strip())
    # The switch comes first: a full disk may cost the line of the history, never the switch.
    write_durably(folder / SWITCH_FILE, json.dumps(disabled.to_json()) + "\n")
    append_record(folder / HISTORY_FILE, {"action": "disable", **disabled.to_json()})
    return disabled, True


def enable(folder: Path, *, by: str, note: str, at: datetime | None = None) -> Disabled | None:
    """Lets the releases act again; returns what had disabled them, or None where nothing did.

    Raises:
        SwitchError: nobody is named.
    """
    if not by.strip():
        raise SwitchError("Who puts the releases back in charge? Name somebody: --reviewer NAME.")
    found = read_switch(folder)
    if found is None:
        return None
    when = (at or datetime.now(UTC)).astimezone(UTC)
    append_record(folder / HISTORY_FILE, {"action": "enable", **Disabled(when, by.strip(), note.strip()).to_json()})
    (folder / SWITCH_FILE).unlink(missing_ok=True)
    return found


def switch_history(folder: Path) -> list[dict[str, Any]]:
    """Every disabling and enabling, oldest first."""
    return read_records(folder / HISTORY_FILE)
