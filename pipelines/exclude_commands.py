"""The commands `exclude`, `exclude list` and `exclude lift`: rows that may neither teach nor judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, expected, open_workspace_of, user_name

if TYPE_CHECKING:
    from pipelines.canary_state import Canary
    from pipelines.excluding import Tainted
    from pipelines.workspace import Workspace

exclude_app = typer.Typer(
    help="Keep rows of the lake from training, evaluation and drift; they stay, and are counted.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

ByOption = Annotated[str | None, typer.Option("--reviewer", help="Who answers for it; default: the user.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why; stands in every report from now on.")]


@exclude_app.callback()
@expected
def exclude(
    context: typer.Context,
    source: Annotated[str, typer.Option(help="A log file as `source` has it, or a pattern such as 'logs/b-*'.")] = "",
    batch: Annotated[str, typer.Option(help="Id of a batch, or the beginning of it.")] = "",
    where: Annotated[str, typer.Option(help="SQL condition over the columns of `steps`.")] = "",
    note: NoteOption = "",
    reviewer: ByOption = None,
    coming: Annotated[bool, typer.Option("--coming", help="Also where no row of it is in the lake yet.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would mean.")] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Exclude a source, a batch, or what a condition means. Episodes that hold such a row are left out whole."""
    if context.invoked_subcommand is not None:
        if source or batch or where or note or workspace != Path() or as_json:
            raise typer.BadParameter(
                f"options go behind the command: offline-dqn exclude {context.invoked_subcommand} --workspace ..."
            )
        return
    from datasets.batches import find_batch
    from datasets.exclusions import Meant, count_meant
    from datasets.exclusions import exclude as add
    from pipelines.excluding import aged_releases, tainted_releases

    opened = open_workspace_of(workspace)
    lake = opened.open_lake()
    meant = Meant(source, find_batch(lake, batch).batch_id if batch else "", where)
    by = user_name() if reviewer is None else reviewer
    rule, is_new = add(lake, meant, by=by, note=note, at=datetime.now(UTC), coming=coming, dry_run=dry_run)
    if not dry_run:
        opened.refresh_catalog(lake)
    tainted, n_rows = tainted_releases(opened, [rule]), count_meant(lake, rule.meant)
    canary = _running_canary(opened, tainted)
    aged = aged_releases(opened) if is_new else []
    if as_json:
        found = {"new": is_new, "dry_run": dry_run, "rows": n_rows, "releases": [t.to_json() for t in tainted]}
        found["canary"] = None if canary is None else canary.id
        found["aged"] = [asdict(each) for each in aged]
        console.print_json({**rule.to_json(), **found})
        return
    title = "Would be excluded" if dry_run else "Excluded" if is_new else "Excluded already; nothing was changed"
    facts = {
        "name": None if dry_run else rule.name,
        "means": rule.meant.in_words,
        "rows": ", ".join(f"{n:,} of {table}" for table, n in n_rows.items() if n) or "none yet",
        "note": f"{rule.note} ({rule.by})",
        "releases": ", ".join(f"{t.release}{' (champion)' if t.is_champion else ''}" for t in tainted if not t.unknown)
        or "none",
        "undo": None if dry_run else f"offline-dqn exclude lift {rule.name} --note TEXT",
    }
    console.print_account(title, facts)
    for t in tainted:
        console.warn(f"release {t.release}{', the champion' if t.is_champion else ''}: {t.in_words}")
    for each in aged:
        console.warn(
            f"release {each.release}: {each.in_words}, so whether they are meant cannot be told; promotion does not ask"
        )
    if any(t.is_champion for t in tainted):
        console.warn(
            "`offline-dqn rollback` goes back to one before; `nightly --force-train` trains without these rows"
        )
    if canary is not None:
        console.warn(
            f"canary {canary.id} tries release {canary.release} on a share of {canary.share:g} of the traffic: the "
            f"server's next look {'would end' if dry_run else 'ends'} it, and `offline-dqn canary abort` does at once"
        )


def _running_canary(workspace: Workspace, tainted: Sequence[Tainted]) -> Canary | None:
    """The canary that runs with one of these releases and was not started in spite of the same rules."""
    from pipelines.canary_exclusions import new_rules
    from pipelines.canary_state import CanaryError, read_canary

    try:
        canary = read_canary(workspace)
    except CanaryError as error:  # the rule stands all the same
        console.warn(f"whether a canary runs cannot be told: {error}")
        return None
    hit = canary is not None and any(t.release == canary.release and new_rules(canary, t) for t in tainted)
    return canary if hit else None


@command(exclude_app, "list")
def exclude_list(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """What is excluded now, and which releases rest on it."""
    from datasets.exclusions import count_meant, read_exclusions
    from pipelines.excluding import tainted_releases

    opened = open_workspace_of(workspace)
    lake = opened.open_lake()
    rules = read_exclusions(lake)
    rows = {rule.name: sum(count_meant(lake, rule.meant).values()) for rule in rules}
    tainted = tainted_releases(opened, rules)
    resting = {rule.name: [t.release for t in tainted if rule.name in t.rules and not t.unknown] for rule in rules}
    for t in tainted:
        if t.unknown:
            console.warn(f"release {t.release}: {t.in_words}")
    if as_json:
        listed = [{**r.to_json(), "n_rows_now": rows[r.name], "releases": resting[r.name]} for r in rules]
        console.print_json({"exclusions": listed})
        return
    if not rules:
        console.print_account("Nothing is excluded", {})
        return
    shown = [
        [r.name, r.meant.in_words, rows[r.name], f"{r.at:%Y-%m-%d %H:%M}", r.by, r.note, _listed(resting[r.name])]
        for r in rules
    ]
    heads = ["name", "means", "rows", "since (UTC)", "by", "note", "releases"]
    console.print_table("Excluded", heads, shown, right=["rows"])


def _listed(releases: list[int]) -> str:
    return ", ".join(map(str, releases)) or "-"


@command(exclude_app, "lift")
def exclude_lift(
    name: Annotated[str, typer.Argument(help="Of the exclusion, as `exclude list` shows it.")],
    note: NoteOption = "",
    reviewer: ByOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """End an exclusion: from the next snapshot on its rows take part again."""
    from datasets.exclusions import lift

    opened = open_workspace_of(workspace)
    lake = opened.open_lake()
    by = user_name() if reviewer is None else reviewer
    rule = lift(lake, name, by=by, note=note, at=datetime.now(UTC))
    opened.refresh_catalog(lake)
    if as_json:
        console.print_json({"lifted": rule.to_json(), "by": by, "note": note})
        return
    console.print_account(
        f"Exclusion {rule.name} is lifted", {"meant": rule.meant.in_words, "it was": f"{rule.note} ({rule.by})"}
    )
