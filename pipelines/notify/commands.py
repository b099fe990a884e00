"""The commands `notify test`, `check` and `status`: whether people are reached, and what they were told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines import console
from pipelines.command import FAILED, JsonOption, WorkspaceOption, command, open_workspace_of

if TYPE_CHECKING:
    from pipelines.workspace import Workspace

notify_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Whom the nights tell of what: test, check, status."
)


@command(notify_app, "test")
def send_test(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Send one message to every receiver, now."""
    from pipelines.notify.notices import Message
    from pipelines.notify.receivers import deliver
    from pipelines.notify.telling import LEVELS

    opened = open_workspace_of(workspace)
    config = opened.config.notify
    sent = []
    for level in LEVELS:
        for receiver in dict.fromkeys(getattr(config, level)):
            title = f"[{level}] {opened.contract.name} ({opened.root.resolve().name}): a test"
            text = "Sent by `offline-dqn notify test`. Nothing is wrong; this is how a night would reach you."
            message = Message(title, text, "failure" if level == "page" else "warning")
            problem = deliver(receiver, message, timeout_s=config.timeout_s)
            sent.append({"level": level, "receiver": receiver, "problem": problem})
    if as_json:
        console.print_json({"sent": sent})
    elif not sent:
        console.warn('no receiver is configured: name one in [notify], such as page = ["OFFLINE_DQN_PAGE_URL"]')
    else:
        rows = [[s["level"], s["receiver"], s["problem"] or "taken"] for s in sent]
        console.print_table("Test messages", ["level", "receiver", "result"], rows)
    if not sent or any(s["problem"] for s in sent):
        raise typer.Exit(FAILED)


@command(notify_app, "check")
def check(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Look whether nights end, no batch is held and no budget burns, and tell whoever has to hear of it."""
    from pipelines.notify.night import check_now
    from pipelines.notify.telling import tell

    opened = open_workspace_of(workspace)
    found = check_now(opened)
    problems = tell(opened, found.notices, found.looked_for)
    if as_json:
        notices = [{"cause": n.cause, "level": n.level, "title": n.title, "text": n.text} for n in found.notices]
        console.print_json({"found": notices, "problems": list(problems)})
    else:
        for notice in found.notices:
            console.out.print(f"{notice.level}: {notice.title}. {notice.text}", markup=False, soft_wrap=True)
        if not found.notices:
            console.out.print(_all_well(opened))
        for problem in problems:
            console.warn(problem)
    if problems:
        raise typer.Exit(FAILED)


def _all_well(workspace: Workspace) -> str:
    from pipelines.nights import read_nights

    ended = [night.ended_at for night in read_nights(workspace.nights_path) if night.ended_at]
    if not ended:
        return "No night has ended here yet, so none is overdue, and no batch is held. `offline-dqn nightly` runs one."
    hours = workspace.config.notify.overdue_hours
    nights = f"The last night ended on {datetime.fromisoformat(max(ended)):%Y-%m-%d %H:%M} UTC"
    watched = ", which notify.overdue_hours does not watch," if hours is None else f", within {hours:g} hours,"
    return f"{nights}{watched} and no batch is held."


@command(notify_app, "status")
def status(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """What is open, since when, and who has heard of it."""
    from pipelines.notify.telling import read_open

    opened = open_workspace_of(workspace)
    config, causes, now = opened.config.notify, read_open(opened), datetime.now(UTC)
    quiet = {level: config.is_quiet(level, now) for level in ("page", "ticket")}
    if as_json:
        console.print_json({"open": [cause.to_json() for cause in causes], "quiet": quiet})
        return
    rows = [
        [
            cause.notice.level,
            cause.notice.title + (" (over)" if cause.over else ""),
            f"{cause.since:%Y-%m-%d %H:%M}",
            cause.n_found,
            ", ".join(f"{r}{'' if h.at else ' (not yet)'}" for r, h in cause.heard.items()) or "nobody",
        ]
        for cause in causes
    ]
    console.print_table("Open", ["level", "what", "since (UTC)", "found", "heard by"], rows, right=["found"])
    for level, held in quiet.items():
        if held:
            console.out.print(f"A planned window is on: no {level} is sent.")
