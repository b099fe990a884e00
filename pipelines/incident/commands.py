"""The commands `incident capture`, `reproduce`, `postmortem` and `list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.command import REFUSED, JsonOption, WorkspaceOption, command, open_workspace_of, user_name

incident_app = typer.Typer(
    help="What was decided around a moment: captured, made again offline, written up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(help="Of the incident, or how it begins; default: the newest.")]


@incident_app.callback()
def _incident() -> None:
    """What was decided around a moment: captured, made again offline, written up."""


@command(incident_app, "capture")
def incident_capture(
    at: Annotated[str, typer.Option(help="The moment, by the log's clock, UTC; default: its newest step.")] = "",
    episodes: Annotated[int, typer.Option(min=1, help="Last episodes before it.")] = 1000,
    minutes: Annotated[int, typer.Option(min=1, help="Before and after it, of which every step is kept.")] = 30,
    name: Annotated[str, typer.Option(help="Of the folder; default: the moment.")] = "",
    note: Annotated[str, typer.Option(help="What it is about.")] = "",
    reviewer: Annotated[str | None, typer.Option("--reviewer", help="Who captures it; default: the user.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Keep the last episodes and every step around a moment, with the releases and records of then."""
    from pipelines.incident.capture import capture
    from pipelines.incident.moments import moment_of

    opened = open_workspace_of(workspace)
    folder, incident = capture(
        opened,
        at=moment_of(at) if at else None,
        by=user_name() if reviewer is None else reviewer,
        note=note,
        n_episodes=episodes,
        minutes=minutes,
        name=name,
    )
    if as_json:
        console.print_json({"folder": str(folder), **incident.to_json()})
        return
    console.print_account(
        f"Incident {incident.name} captured",
        {
            "folder": folder,
            "moment": f"{incident.moment:%Y-%m-%d %H:%M:%S} UTC",
            "episodes": f"{incident.n_episodes:,}, with {incident.n_steps:,} steps",
            "around it": f"{incident.n_window_steps:,} steps within {minutes} minutes on each side",
            "decided": ", ".join(f"{version} ({n:,})" for version, n in incident.decided.items()),
            "releases": ", ".join(map(str, incident.releases)),
            "next": "offline-dqn incident reproduce",
        },
    )
    if incident.unread_logs:
        console.warn(
            f"{', '.join(incident.unread_logs)} hold rows that the lake has not taken in: `offline-dqn ingest`, then "
            "capture again under another --name"
        )


@command(incident_app, "list")
def incident_list(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Every captured incident."""
    from pipelines.incident.captured import POSTMORTEM, incidents_path, list_incidents

    opened = open_workspace_of(workspace)
    found = list_incidents(opened)
    if as_json:
        console.print_json({"incidents": [incident.to_json() for incident in found]})
        return
    if not found:
        console.print_account("No incident was captured", {"to capture one": "offline-dqn incident capture"})
        return
    rows = []
    for incident in found:
        written = (incidents_path(opened) / incident.name / POSTMORTEM).exists()
        about = "-" if incident.suspect is None else incident.suspect
        moment = f"{incident.moment:%Y-%m-%d %H:%M}"
        rows.append([incident.name, moment, about, incident.n_episodes, "yes" if written else "no", incident.note])
    heads = ["incident", "moment (UTC)", "release", "episodes", "postmortem", "note"]
    console.print_table("Incidents", heads, rows, right=["release", "episodes"])


@command(incident_app, "reproduce")
def incident_reproduce(
    name: NameArgument = "",
    folder: Annotated[
        Path | None, typer.Option("--folder", help="A capture anywhere, such as a copy; needs no workspace.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make every captured decision again, offline, and say which are not what was logged (exit 3)."""
    from pipelines.incident.captured import find_incident
    from pipelines.incident.reproduce import note_reproduction, reproduce

    path = find_incident(open_workspace_of(workspace), name) if folder is None else folder
    found = reproduce(path)
    note_reproduction(path, found)
    if as_json:
        console.print_json(found.to_json())
    else:
        rows = [
            [
                "version 0" if each.release == 0 else f"release {each.release}",
                f"{each.n:,}",
                f"{each.n_same:,}",
                f"{each.n_rounded:,}",
                f"{each.n_differ:,}",
                "-" if each.n_unlike_zero is None else f"{each.n_unlike_zero / each.n:.1%}",
                ", ".join(f"{action} {n / each.n:.0%}" for action, n in (each.actions or {}).items()),
            ]
            for each in found.again
        ]
        heads = ["decided by", "decisions", "to the bit", "rounded", "otherwise", "unlike version 0", "actions"]
        console.print_table(f"Incident {found.name}, made again", heads, rows, right=heads[1:6])
        if found.n_foreign:
            console.warn(f"{found.n_foreign:,} decisions are logged under a name that is no captured release")
        for each in found.again:
            if each.problem:
                console.warn(f"{each.n:,} decisions could not be made again: {each.problem}")
            for text in each.differ:
                console.warn(text)
        says = "Every decision is what its release decides" if found.holds else "Not every decision is its release's"
        console.out.print(f"{says}: the {'policy itself' if found.holds else 'server, log or files'} did it.")
    if not found.holds:
        raise typer.Exit(REFUSED)


@command(incident_app, "postmortem")
def incident_postmortem(
    name: NameArgument = "",
    release: Annotated[
        int | None, typer.Option(min=0, help="That it is about; default: which decided most around the moment.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Another file than beside the capture.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write the postmortem: its facts from the records; what people wrote in it stays."""
    from pipelines.incident.captured import find_incident
    from pipelines.incident.postmortem import examine, write_postmortem

    opened = open_workspace_of(workspace)
    folder = find_incident(opened, name)
    found = examine(opened, folder, release=release)
    path = write_postmortem(opened, folder, found, output)
    steps = [{"step": step.what, "after": step.since, "seconds": step.s} for step in found.steps]
    if as_json:
        console.print_json({"page": str(path), "release": found.suspect, "steps": steps})
        return
    console.print_account(
        f"Postmortem of {found.incident.name}",
        {"page": path, "about": "no release could be named" if found.suspect is None else f"release {found.suspect}"},
    )
    rows = [
        [s["step"], s["after"], "did not happen" if s["seconds"] is None else f"{s['seconds']:.1f} s"] for s in steps
    ]
    console.print_table("", ["step", "after", "took"], rows, right=["took"])
