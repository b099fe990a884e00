"""Tells people what was found, once: reads what is open, sends what is due, writes down who has heard what.

`notify/open.json` in the workspace holds the open causes, `notify/sent.jsonl` every message that was tried. No failure
in here is a failure of the night: it is returned in words, for the night's record.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from datasets.durable import append_record, write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from pipelines.notify.config import NotifyConfig
from pipelines.notify.notices import Level, Notice, Open, after_telling, due, found_now, message_of, still_open
from pipelines.notify.receivers import deliver
from pipelines.workspace import Workspace

LEVELS: tuple[Level, ...] = ("page", "ticket")

_LOCK_WAIT_S = 60.0
"""A telling takes seconds; whoever comes meanwhile waits."""


def tell(
    workspace: Workspace, found: Sequence[Notice], looked_for: Collection[str], *, at: datetime | None = None
) -> tuple[str, ...]:
    """Sends what is due to whoever has not heard it; what a planned window holds back waits for the next time.

    Args:
        found: what is so now.
        looked_for: causes that would be in `found` if they were there; those open ones that are not are over.
        at: now, by the clock.

    Returns:
        What could not be told or written down, in words, for the record of the night; empty if nothing went wrong.
    """
    at = (at or datetime.now(UTC)).astimezone(UTC)
    try:
        config = workspace.config.notify
        about = f"{workspace.contract.name} ({workspace.root.name})"
    except OfflineDqnError as error:
        return (f"nobody was told: {str(error).splitlines()[0]}",)
    try:
        with exclusive_lock(_folder(workspace) / ".lock", "The list of notices", wait_s=_LOCK_WAIT_S):
            causes, problems = found_now(read_open(workspace), found, looked_for, at), []
            for level in LEVELS:
                if not config.is_quiet(level, at):
                    causes, trouble = _send(workspace, config, level, about, causes, at)
                    problems += trouble
            receivers = {*config.page, *config.ticket}
            kept = [cause.to_json() for cause in still_open(causes, receivers)]
            write_durably(_open_path(workspace), json.dumps(kept))
            return tuple(problems)
    except (OSError, OfflineDqnError) as error:
        return (f"what was told could not be written down, so it may be told twice: {error}",)


def _send(
    workspace: Workspace, config: NotifyConfig, level: Level, about: str, causes: tuple[Open, ...], at: datetime
) -> tuple[tuple[Open, ...], list[str]]:
    problems = []
    for receiver in dict.fromkeys(getattr(config, level)):
        wanted = [c for c in causes if c.notice.level == level and due(c, receiver, at, config.repeat_hours)]
        if not wanted:
            continue
        message = message_of(wanted, level, about)
        wrong = deliver(receiver, message, timeout_s=config.timeout_s)
        told = [cause.notice.cause for cause in wanted]
        append_record(
            _folder(workspace) / "sent.jsonl",
            {"at": at.isoformat(), "level": level, "receiver": receiver, "causes": told, "title": message.title,
             "taken": not wrong, "problem": wrong},
        )  # fmt: skip
        causes = tuple(after_telling(c, receiver, at, taken=not wrong) if c in wanted else c for c in causes)
        if wrong:
            problems.append(f"{level} of {', '.join(told)} was not delivered and is tried again next time: {wrong}")
    return causes, problems


def read_open(workspace: Workspace) -> tuple[Open, ...]:
    """Every open cause, the longest known first; none where nothing was ever found, or where the list is damaged."""
    try:
        return tuple(Open.from_json(values) for values in json.loads(_open_path(workspace).read_text("utf-8")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()  # then what lasts is found and told again


def _folder(workspace: Workspace) -> Path:
    return workspace.root / "notify"


def _open_path(workspace: Workspace) -> Path:
    return _folder(workspace) / "open.json"
