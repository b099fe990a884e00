"""The commands under `canary`: a release on trial on part of the traffic."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasets.durations import seconds_of
from pipelines import console
from pipelines.command import (
    REFUSED,
    AsOfOption,
    JsonOption,
    WorkspaceOption,
    command,
    open_workspace_of,
    user_name,
)

if TYPE_CHECKING:
    from pipelines.canary import Look
    from pipelines.canary_state import Canary
    from pipelines.workspace import Workspace

canary_app = typer.Typer(
    help="Try a release on part of the traffic, against the champion.", no_args_is_help=True, rich_markup_mode=None
)

ReviewerOption = Annotated[str, typer.Option("--reviewer", help="Who answers for it; default: the user.")]


class KindChoice(StrEnum):
    """What is assigned."""

    SLICES = "slices"
    SWITCHBACK = "switchback"


@command(canary_app, "start")
def start(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    share: Annotated[float | None, typer.Option(help="First share of the traffic, such as 0.05.")] = None,
    plan: Annotated[str, typer.Option(help="Shares, ascending, such as .05,.2,.5,1; 1 promotes.")] = "",
    kind: Annotated[KindChoice, typer.Option(help="Episodes, or blocks of time.")] = KindChoice.SLICES,
    block: Annotated[str, typer.Option(help="Length of a switchback's blocks.")] = "1h",
    burn_in: Annotated[str, typer.Option(help="First part of each block that is no evidence.")] = "10m",
    reviewer: ReviewerOption = "",
    override: Annotated[str | None, typer.Option(help="Why it gets more than the certified share.")] = None,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a canary of a release whose gate passed."""
    from pipelines.canary import CanaryRefusedError, start_canary
    from reports.registry import PromotionRefusedError

    opened = open_workspace_of(workspace, as_of)
    if override is not None and not reviewer.strip():
        raise typer.BadParameter("an override takes --reviewer NAME")
    block_s, burn_in_s = _seconds("--block", block), _seconds("--burn-in", burn_in)
    if kind is KindChoice.SWITCHBACK and burn_in_s >= block_s:
        raise typer.BadParameter(f"--burn-in {burn_in} leaves nothing of --block {block}")
    try:
        canary = start_canary(
            opened,
            version,
            plan=_shares(plan),
            share=share,
            kind=kind.value,
            block_s=block_s,
            burn_in_s=burn_in_s,
            reviewer=reviewer or user_name(),
            override=override,
            as_of=_now(opened),
        )
    except (CanaryRefusedError, PromotionRefusedError) as error:
        console.fail(str(error))
        raise typer.Exit(REFUSED) from error
    if as_json:
        console.print_json({"canary": canary.model_dump(mode="json"), "share": canary.share})
    else:
        _print_canary(canary)


@command(canary_app, "status")
def status(workspace: WorkspaceOption = Path(), as_of: AsOfOption = None, as_json: JsonOption = False) -> None:
    """What the canary's evidence says now; changes nothing."""
    from pipelines.canary import CanaryWatch
    from pipelines.canary_state import canary_lock, last_canary, read_events

    opened = open_workspace_of(workspace, as_of)
    look = CanaryWatch(opened).evaluate(_now(opened), act=False)
    with canary_lock(opened):
        last = last_canary(opened)
    if as_json:
        events = [{k: v for k, v in event.items() if k != "canary"} for event in read_events(opened)]
        shown = None if last is None else last.model_dump(mode="json")
        found = {"canary": shown, "share": 0.0, "verdict": None} if look is None else look.to_json()
        console.print_json({**found, "running": look is not None, "events": events})
        return
    if last is None:
        console.print_account("No canary has run", {"start one": "offline-dqn canary start VERSION --share 0.05"})
        return
    _print_canary(last)
    if look is not None:
        _print_look(look)


@command(canary_app, "advance")
def advance(
    override: Annotated[str | None, typer.Option(help="Why the next step is taken without the evidence.")] = None,
    reviewer: ReviewerOption = "",
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the canary now, and do what is due: stop, take the next step, or promote. Exit 3 where it must wait."""
    from pipelines.canary import CanaryRefusedError, CanaryWatch, override_advance

    opened = open_workspace_of(workspace, as_of)
    try:
        if override is not None:
            canary = override_advance(opened, reviewer=reviewer or user_name(), reason=override, as_of=_now(opened))
            look = None
        else:
            look = CanaryWatch(opened).evaluate(_now(opened))
            if look is None:
                raise CanaryRefusedError("No canary runs, so nothing advances.")
            canary = look.canary
    except CanaryRefusedError as error:
        console.fail(str(error))
        raise typer.Exit(REFUSED) from error
    if as_json:
        shown = {"canary": canary.model_dump(mode="json"), "share": canary.share}
        console.print_json(shown if look is None else look.to_json())
    else:
        _print_canary(canary)
        if look is not None:
            _print_look(look)
    if look is not None and (not look.did or canary.ending not in (None, "promoted", "succeeded")):
        raise typer.Exit(REFUSED)


@command(canary_app, "abort")
def abort(
    reviewer: ReviewerOption = "",
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the canary: the champion has all the traffic at once."""
    from pipelines.canary import CanaryRefusedError, abort_canary

    opened = open_workspace_of(workspace, as_of)
    try:
        canary = abort_canary(opened, reviewer=reviewer or user_name(), reason=note, as_of=_now(opened))
    except CanaryRefusedError as error:
        console.fail(str(error))
        raise typer.Exit(REFUSED) from error
    if as_json:
        console.print_json({"canary": canary.model_dump(mode="json"), "share": canary.share})
    else:
        _print_canary(canary)


def _now(workspace: Workspace) -> datetime:
    return workspace.given_as_of or datetime.now(UTC)


def _seconds(option: str, text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _shares(text: str) -> tuple[float, ...] | None:
    if not text.strip():
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--plan wants numbers such as .05,.2,.5,1, found '{text}'") from error


def _print_canary(canary: Canary) -> None:
    against = "the rules of version 0" if canary.champion is None else f"release {canary.champion}"
    state = f"share {canary.share:g}" if canary.running else f"{canary.ending}"
    steps = ", ".join(f"{step.share:g} since {step.at:%Y-%m-%d %H:%M}" for step in canary.shares)
    blocks = f", blocks of {canary.block_s:g} s" if canary.block_s is not None else ""
    override = canary.override
    console.print_account(
        f"Canary {canary.id}: release {canary.release} against {against}, {state}",
        {
            "kind": f"{canary.kind}{blocks}",
            "plan": ", ".join(f"{s:g}" for s in canary.plan),
            "steps": steps,
            "certified share": f"{canary.certified_share:.3g}",
            "override": None if override is None else f"{override.reviewer}: {override.reason}",
            "started by": canary.started_by,
            "ended": None if canary.ended_at is None else f"{canary.ended_at:%Y-%m-%d %H:%M} UTC",
            "because": canary.reason,
        },
    )


def _print_look(look: Look) -> None:
    verdict = look.verdict
    if verdict is None:
        console.print_account("", {"found": look.did})
        return
    rows: list[list[Any]] = [
        [j.name, *map(console.number, (j.candidate, j.champion, j.gain, j.at_least, j.at_most, j.margin)),
         "stop" if j.stops else "yes" if j.advances else "not yet"]
        for j in verdict.judgements
    ]  # fmt: skip
    heads = ["", "candidate", "champion", "gain", "at least", "at most", "margin", "may advance"]
    if rows:
        console.print_table("Candidate minus champion, by assignment", heads, rows, right=heads[1:7])
    exposure = verdict.exposure
    console.print_account(
        "",
        {
            "verdict": f"{verdict.action}: {verdict.reason}",
            "done": look.did,
            "complete": f"{verdict.n_candidate:,} of the candidate, {verdict.n_champion:,} of the champion",
            "open": f"{look.n_open:,}, and {look.n_behind:,} that wait for an earlier one" if look.n_open else None,
            "made by the candidate": None if exposure is None else f"{exposure:.1%} of its decisions",
            "beyond their block": f"{look.n_crossing:,}" if look.n_crossing else None,
            "mostly not its own": f"{look.n_other:,} episodes of the candidate's side" if look.n_other else None,
            "unreadable lines": f"{look.n_unreadable:,}" if look.n_unreadable else None,
        },
    )
