"""The postmortem: a page of Markdown whose facts come from the records, with room for what only people know.

What is generated stands between two marks and is made anew each time; what people write outside them stays.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from datasets.durable import write_durably
from pipelines.incident.captured import POSTMORTEM, Incident, IncidentError, list_incidents, read_incident
from pipelines.incident.reproduce import read_reproductions
from pipelines.incident.timeline import (
    ALERT,
    CAPTURED,
    DISABLED,
    EVALUATED,
    EXCLUDED,
    PROMOTED,
    REPRODUCED,
    ROLLED_BACK,
    TRAINED,
    Event,
    captures_of,
    suspected_release,
    timeline,
)
from pipelines.workspace import Workspace

BEGIN = "<!-- from the records: begin (this part is written anew by `offline-dqn incident postmortem`) -->"
END = "<!-- from the records: end -->"

_TO_WRITE = """
## Root cause

Why did the gate let it through, and why did it misbehave? Facts above; the chain of causes here.

## What went well, what went badly

-

## Where we were lucky

-

## What we change

| what | who | until |
| --- | --- | --- |
| | | |
"""


@dataclass(frozen=True)
class Step:
    """How long one step of the response took.

    Attributes:
        since: what it is counted from.
        s: seconds; None where it did not happen (yet).
    """

    what: str
    since: str
    s: float | None


@dataclass(frozen=True)
class Postmortem:
    """What the records say of an incident.

    Attributes:
        suspect: the release that it is about; None where nobody can tell.
        events: from the suspect's promotion on.
        steps: of the response, in order.
    """

    incident: Incident
    suspect: int | None
    events: tuple[Event, ...]
    steps: tuple[Step, ...]


def examine(
    workspace: Workspace, folder: Path, *, release: int | None = None, until: datetime | None = None
) -> Postmortem:
    """Puts together what the records say.

    Args:
        release: that it is about; by default the one that decided most around the moment.
        until: leave out what came later.

    Raises:
        IncidentError: the folder holds no incident.
    """
    incident = read_incident(folder)
    suspect = suspected_release(incident) if release is None else release
    every = timeline(workspace, captures_of(workspace, list_incidents(workspace)))
    promoted = [e for e in every if e.kind == PROMOTED and e.release == suspect]
    captured_at = datetime.fromisoformat(incident.captured_at)
    began = max((e.at for e in promoted if e.at <= captured_at), default=every[0].at if every else captured_at)
    events = tuple(e for e in every if e.at >= began and (until is None or e.at <= until))
    return Postmortem(incident, suspect, events, tuple(_steps(events, suspect)))


def _steps(events: Sequence[Event], suspect: int | None) -> Iterator[Step]:
    promoted = _first(events, PROMOTED, release=suspect)
    alert = _first(events, ALERT, after=promoted)
    told, since_told = alert or promoted, "the alert" if alert else "its promotion; nobody was told"
    excluded = _first(events, EXCLUDED, after=promoted)
    trained = _first(events, TRAINED, after=excluded or told)
    wanted = [
        ("told of it", "its promotion", promoted, alert),
        ("disabled", since_told, told, _first(events, DISABLED, after=told)),
        ("rolled back", since_told, told, _first(events, ROLLED_BACK, after=told)),
        ("captured", since_told, told, _first(events, CAPTURED, after=told)),
        ("reproduced offline", since_told, told, _first(events, REPRODUCED, after=told)),
        ("source taken out", since_told, told, excluded),
        ("retrained without it", since_told, told, trained),
        ("re-evaluated", since_told, told, _first(events, EVALUATED, after=trained) if trained else None),
    ]
    for what, since, start, end in wanted:
        yield Step(what, since, None if start is None or end is None else (end.at - start.at).total_seconds())


def _first(
    events: Sequence[Event], kind: str, *, release: int | None = None, after: Event | None = None
) -> Event | None:
    return next(
        (
            event
            for event in events
            if event.kind == kind
            and (release is None or event.release == release)
            and (after is None or event.at >= after.at)
        ),
        None,
    )


def write_postmortem(workspace: Workspace, folder: Path, found: Postmortem, target: Path | None = None) -> Path:
    """Writes the page, or writes the part of it anew that comes from the records, and returns its path.

    Args:
        target: another place than beside the capture.

    Raises:
        IncidentError: the page is there without its marks, so that nobody can tell what people wrote.
    """
    path = target or folder / POSTMORTEM
    generated = f"{BEGIN}\n{page(workspace, folder, found)}\n{END}"
    if not path.exists():
        write_durably(path, f"# Postmortem: {_cell(found.incident.name)}\n\n{generated}\n{_TO_WRITE}")
        return path
    before = path.read_text(encoding="utf-8")
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise IncidentError(
            f"{path} is there, and the marks of the part that comes from the records are not, so nothing was written. "
            "Move it away, or name another file with --output."
        )
    write_durably(path, before[: before.index(BEGIN)] + generated + before[before.index(END) + len(END) :])
    return path


def page(workspace: Workspace, folder: Path, found: Postmortem) -> str:
    """The part that comes from the records, as Markdown."""
    return "\n\n".join(
        "\n".join(part)
        for part in (
            list(_summary(found)),
            ["## How long it took", "", *_steps_table(found.steps)],
            ["## Impact", "", *_impact(workspace, found)],
            ["## What is known of the cause", "", *_causes(folder, found)],
            ["## Timeline", "", "By the machine's clock, UTC.", "", *_events_table(found.events)],
        )
    )


def _summary(found: Postmortem) -> Iterator[str]:
    incident = found.incident
    about = "no release could be named" if found.suspect is None else f"release {found.suspect}"
    last = _last_in_charge(found.events)
    yield from ("| | |", "| --- | --- |")
    yield f"| about | {about} |"
    yield f"| moment (the log's clock) | {incident.moment:%Y-%m-%d %H:%M:%S} UTC |"
    yield f"| captured | {incident.captured_at[:19]} UTC by {_cell(incident.by)} |"
    yield f"| in charge at the end | {last} |"
    amount = f"{incident.n_episodes:,} episodes, {incident.n_steps:,} steps"
    yield f"| evidence | incidents/{_cell(incident.name)} ({amount}) |"
    if incident.note:
        yield f"| note | {_cell(incident.note)} |"


def _last_in_charge(events: Sequence[Event]) -> str:
    moves = [e for e in events if e.kind in (PROMOTED, ROLLED_BACK)]
    switch = [e.kind for e in events if e.kind in (DISABLED, "enabled")]
    champion = f"release {moves[-1].release}" if moves else "unchanged"
    return f"version 0, by the kill switch (champion: {champion})" if switch[-1:] == [DISABLED] else champion


def _steps_table(steps: Sequence[Step]) -> Iterator[str]:
    yield from ("| step | after | took |", "| --- | --- | --- |")
    for step in steps:
        yield f"| {step.what} | {step.since} | {_duration(step.s)} |"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "did not happen"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _impact(workspace: Workspace, found: Postmortem) -> Iterator[str]:
    """What each policy did and earned in the nights that the log has of the suspect."""
    if found.suspect is None:
        yield "No release could be named, so there is nothing to compare."
        return
    version = str(found.suspect)
    rows = workspace.query(
        f"""SELECT coalesce(policy_version, 'unknown'), count(*), sum(n_steps)::BIGINT,
            avg("return") FILTER (complete AND damage IS NULL), min(start), max(start), count(excluded)
        FROM episodes WHERE log_date >= (SELECT min(log_date) FROM episodes WHERE policy_version = '{version}')
        GROUP BY 1 ORDER BY 2 DESC LIMIT 20"""
    ).rows
    if not rows:
        yield f"The lake has no episode that release {version} began."
        return
    yield "Episodes that began since the first one of that release, by the policy that began them."
    yield from ("", "| policy | episodes | decisions | mean return | first | last | excluded now |")
    yield "| --- | ---: | ---: | ---: | --- | --- | ---: |"
    for name, n, n_steps, mean, first, last, n_excluded in rows:
        mark = " (about this one)" if name == version else ""
        shown = "-" if mean is None else f"{mean:.4g}"
        yield (
            f"| {_cell(name)}{mark} | {n:,} | {n_steps:,} | {shown} | {_instant(first)} | {_instant(last)} "
            f"| {n_excluded:,} |"
        )
    yield from _night_metrics(workspace)


def _night_metrics(workspace: Workspace) -> Iterator[str]:
    wanted = ("mean_episode_return", "action_success_rate", "safety_violation_rate", "regret", "drift")
    rows = workspace.query(
        f"""SELECT night, metric, value FROM metrics WHERE NOT is_detail AND metric IN {wanted}
        AND night > (SELECT max(night) FROM metrics) - 7 ORDER BY night, metric"""
    ).rows
    if not rows:
        return
    names = sorted({metric for _, metric, _ in rows})
    by_night: dict[str, dict[str, float | None]] = {}
    for night, metric, value in rows:
        by_night.setdefault(str(night), {})[metric] = value
    yield from ("", "| night | " + " | ".join(name.replace("_", " ") for name in names) + " |")
    yield "| --- |" + " ---: |" * len(names)
    for night, values in by_night.items():
        shown = [values.get(name) for name in names]
        yield f"| {night} | " + " | ".join("-" if v is None else f"{v:.4g}" for v in shown) + " |"


def _causes(folder: Path, found: Postmortem) -> Iterator[str]:
    incident = found.incident
    yield f"- Decided around the moment: {', '.join(f'{_cell(v)} ({n:,})' for v, n in incident.decided.items())}."
    reproduced = read_reproductions(folder)
    if reproduced:
        for each in reproduced[-1]["releases"]:
            same = each["n_same"] + each["n_rounded"]
            yield (
                f"- Release {each['release']} decides {same:,} of {each['n']:,} captured decisions as it was logged; "
                f"{each['n_differ']:,} otherwise." + (f" {_cell(each['problem'])}" if each["problem"] else "")
            )
    else:
        yield "- Not reproduced yet: `offline-dqn incident reproduce`."
    excluded = [event for event in found.events if event.kind == EXCLUDED]
    yield from (f"- Taken out: {_cell(event.what)}." for event in excluded)
    if not excluded:
        yield "- No source was taken out."
    if incident.unread_logs:
        listed = ", ".join(map(_cell, incident.unread_logs))
        yield f"- When it was captured these logs held rows that the lake had not: {listed}."


def _events_table(events: Sequence[Event]) -> Iterator[str]:
    yield from ("| at | what | | by |", "| --- | --- | --- | --- |")
    for event in events:
        yield f"| {event.at:%Y-%m-%d %H:%M:%S} | {event.kind} | {_cell(event.what)} | {_cell(event.by)} |"


def _instant(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _cell(text: str) -> str:
    """Text of logs and people inside a table of Markdown: one line, no markup, no HTML."""
    plain = html.escape("".join(c if c.isprintable() else " " for c in text), quote=False)
    return "".join(f"\\{c}" if c in "\\|[]*_`" else c for c in plain)
