"""The command line: each command calls one stage, prints a short account, and ends with a documented exit code."""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.backup_commands import backup_app
from pipelines.batch_commands import batches_app, print_validation
from pipelines.canary_commands import canary_app
from pipelines.command import (
    FAILED,
    REFUSED,
    AsOfOption,
    JsonOption,
    PathsArgument,
    WorkspaceOption,
    command,
    open_workspace_of,
    run_to_exit,
    user_name,
)
from pipelines.drift_commands import drift_app
from pipelines.drill.command import drill_app
from pipelines.erase_command import add_erase_command
from pipelines.exclude_commands import exclude_app
from pipelines.incident.commands import incident_app
from pipelines.lake_commands import lake_app
from pipelines.metrics.command import metrics_app
from pipelines.notify.commands import notify_app
from pipelines.policy_commands import policy_app
from pipelines.proof_commands import proof_app
from pipelines.quarantine_commands import quarantine_app
from pipelines.release_commands import print_budget, print_replay, release_app
from pipelines.report_commands import report_app
from pipelines.scheduler_command import add_scheduler_command
from pipelines.sentry.command import sentry_app
from pipelines.serve_commands import serve_app
from pipelines.sign_command import add_sign_command
from pipelines.slo.command import slo_app
from pipelines.snapshot_commands import import_command, snapshot_app
from pipelines.store_commands import store_app
from pipelines.tracing.command import tracing_app
from pipelines.upkeep_commands import upkeep_app
from reports.candidate_table import candidate_rows, compared_on
from reports.formatting import counted

if TYPE_CHECKING:  # the stages load torch and more; a command loads what it needs when it runs
    from datasets.ingest import IngestReport
    from pipelines.stages import EvaluateOutcome
    from pipelines.training import TrainOutcome
    from pipelines.workspace import Workspace

app = typer.Typer(
    name="offline-dqn",
    help="Turns decision logs into a better policy, without experimenting on users.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(batches_app, name="batches")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(lake_app, name="lake")
app.add_typer(drift_app, name="drift")
app.add_typer(canary_app, name="canary")
app.add_typer(policy_app)
app.add_typer(release_app)
app.add_typer(serve_app)
app.add_typer(report_app, name="report")
app.add_typer(proof_app)
app.add_typer(upkeep_app)
app.add_typer(backup_app)
app.add_typer(drill_app)
app.add_typer(metrics_app)
app.add_typer(slo_app)
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(exclude_app, name="exclude")
app.add_typer(incident_app, name="incident")
app.add_typer(notify_app, name="notify")
app.add_typer(tracing_app, name="tracing")
app.add_typer(sentry_app, name="sentry")
app.add_typer(store_app, name="store")
app.command("import")(import_command)
add_sign_command(app)
add_erase_command(app)
add_scheduler_command(app)


def main() -> None:
    """Entry point of `offline-dqn`."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, _stop)
    run_to_exit(app)


def _stop(*_: object) -> None:
    """Ends the process with what runs at its exit: the default would leave Prefect's temporary server behind."""
    console.fail("stopped by a signal. Nothing half-done was kept; the same command goes on from there.")
    raise SystemExit(128 + signal.SIGTERM)


def quiet_libraries() -> None:
    """No calls home, and no chatter between a command and its reader; what is set already stays."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # a server that went away is told by us, once
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 are too few on a busy machine
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "ORT_DISABLE_TELEMETRY": "1",
    }.items():
        os.environ.setdefault(name, value)


@command(app, "init")
def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the new workspace.")],
    scenario: Annotated[str, typer.Option(help="autoscaler, or blank for your own logs.")] = "blank",
    as_json: JsonOption = False,
) -> None:
    """Write a workspace."""
    from pipelines.workspace import write_workspace

    workspace = write_workspace(directory, scenario)
    if as_json:
        console.print_json({"workspace": str(workspace.root), "scenario": scenario})
        return
    following = "offline-dqn simulate" if scenario != "blank" else "edit contract.toml, put logs into logs/steps"
    console.print_account(
        f"Workspace for '{workspace.contract.name}'",
        {"folder": workspace.root, "contract": "contract.toml", "settings": "offline_dqn.toml", "next": following},
    )


@command(app, "simulate")
def simulate(
    workspace: WorkspaceOption = Path(),
    episodes: Annotated[int | None, typer.Option(min=1, help="Episodes of the night.")] = None,
    night: Annotated[int | None, typer.Option(min=1, help="Number of the night; default: the next.")] = None,
    traffic: Annotated[float, typer.Option(min=0.01, help="Factor on the request rate.")] = 1.0,
    trace: Annotated[Path | None, typer.Option(help="CSV of timestamp and requests to drive it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one night of simulated logs."""
    from pipelines import stages

    done = stages.simulate(
        open_workspace_of(workspace), night=night, n_episodes=episodes, traffic=traffic, trace_path=trace
    )
    if as_json:
        console.print_json(done.__dict__)
        return
    console.print_account(
        f"Night {done.night} simulated",
        {
            "log": done.path,
            "steps": f"{done.n_steps:,} in {counted(done.n_episodes, 'episode')}",
            "acting": "version 0, the rules" if done.policy_version == "0" else f"release {done.policy_version}",
            "mean return": f"{done.mean_return:.4g} per episode, not discounted",
            "weighting": f"about {done.episodes_per_effective:.1f} episodes per effective episode "
            "(a candidate with the same exploration that decides differently in half of the states)",
        },
    )


@command(app, "ingest")
def ingest(
    paths: PathsArgument = None,
    outcomes: Annotated[
        list[Path] | None, typer.Option("--outcomes", help="Log file or folder of outcomes; may be given often.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take logs into the lake; by default those in logs/steps and logs/outcomes."""
    from pipelines import stages

    opened = open_workspace_of(workspace, as_of)
    with console.progress("reading logs", None) as advance:
        report = stages.ingest(opened, paths or [], outcomes=outcomes or [], on_rows=_summing(advance))
    if as_json:
        console.print_json(report.to_json())
    else:
        if report.outcomes is None or report.batch or report.unchanged or report.empty or report.damaged:
            _print_ingest(report, "")
        if report.outcomes is not None:
            _print_ingest(report.outcomes, " of outcomes")
        if report.not_merged:
            console.warn(f"the new rows are in, but files were not merged: {report.not_merged}")
    if report.damaged or (report.outcomes and report.outcomes.damaged):
        raise typer.Exit(FAILED)


def _summing(advance: Callable[[int], None]) -> Callable[[int], None]:
    total = 0

    def add(n: int) -> None:
        nonlocal total
        total += n
        advance(total)

    return add


def _in_words(fates: Mapping[str, int]) -> str:
    return ", ".join(
        f"{n:,} {fate.removeprefix('n_').removeprefix('end_').replace('_', ' ')}" for fate, n in fates.items()
    )


def _print_ingest(report: IngestReport, what: str) -> None:
    batch = report.batch
    if batch is None:
        console.print_account(
            f"Nothing new{what}",
            {
                "unchanged": f"{len(report.unchanged)} files that earlier batches took (offline-dqn batches list); "
                "those of a rejected batch are read again once the contract has changed"
            },
        )
    else:
        counts = batch.counts
        title = f"Batch{what} {'held' if batch.status == 'held' else 'ingested'}"
        fates = report.account.to_json() if report.account else {}
        console.print_account(
            title,
            {
                "batch": batch.batch_id,
                "files": f"{batch.n_files} read, {len(report.unchanged)} unchanged",
                "rows in": f"{counts.n_in:,}",
                "in the lake": f"{counts.n_lake:,}",
                "quarantined": f"{counts.n_quarantined:,}",
                "duplicates": f"{counts.n_duplicates:,}",
                "held": f"{counts.n_held:,}",
                "pending": f"{counts.n_pending:,}",
                "of the erased": f"{counts.n_erased:,}" if counts.n_erased else None,
                "of those in the lake": _in_words({k: n for k, n in fates.items() if not k.startswith("n_end_")}),
                "ends of episodes": _in_words({k: n for k, n in fates.items() if k.startswith("n_end_") and n}),
                "dropped columns": ", ".join(batch.dropped_columns),
            },
        )
    is_held = batch is not None and batch.status == "held"
    for reason, n in report.reasons:
        console.warn(f"{n:,} rows {'break the contract' if is_held else 'quarantined'}: {reason}")
    if report.account is not None and report.account.warning:
        console.warn(report.account.warning)
    for file in report.passed_over:
        console.warn(f"{file} was not read: its name ends in no kind of log (.jsonl, .csv, .parquet, .arrow)")
    for file in report.empty:
        console.warn(f"{file} is empty")
    for _, cause in report.damaged:
        console.fail(cause)
    if batch is not None and batch.validation is not None:
        for record in batch.validation["records"]:
            if record["severity"] == "warn" and not record["success"]:
                console.warn(record["sentence"])
    if batch is not None and batch.status == "held":
        console.warn(f"the batch is held and the lake is as it was: {batch.note}")
        console.warn(
            f"mend the logs or the contract and `offline-dqn batches reject {batch.batch_id}`, or let it in with "
            f"`offline-dqn batches release {batch.batch_id}`"
        )


@command(app, "validate")
def validate(
    workspace: WorkspaceOption = Path(),
    docs: Annotated[bool, typer.Option("--docs", help="Write the result as a page of Data Docs too.")] = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the contract's suite on the whole lake, and compare its nights."""
    from pipelines import stages

    opened = open_workspace_of(workspace, as_of)
    with console.progress("validating the lake", None):
        result = stages.validate(opened)
    page = stages.lake_docs(opened, result) if docs else None
    if as_json:
        console.print_json(result.to_json() | {"docs": str(page) if page else None})
    else:
        print_validation(result, page)
    if not result.success:
        raise typer.Exit(REFUSED)


class Form(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def _is_formula(value: object) -> bool:
    """Source: OWASP, CSV Injection."""
    return isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))


@command(app, "query")
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT.")],
    workspace: WorkspaceOption = Path(),
    form: Annotated[Form, typer.Option("--format", help="How to print the rows.")] = Form.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Ask the lake: steps, transitions, episodes, quarantine, batches, releases, evaluations, metrics, ..."""
    answer = open_workspace_of(workspace).query(sql)
    if as_json or form is Form.JSON:
        rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        console.print_json({"columns": list(answer.columns), "rows": rows})
    elif form is Form.CSV:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows([console.cell(value) for value in row] for row in answer.rows)
        written = text.getvalue()
        sys.stdout.write(console.printable(written) if sys.stdout.isatty() else written)
        formulas = sum(_is_formula(value) for row in answer.rows for value in row)
        if formulas:
            console.warn(
                f"{formulas} texts begin like a formula (=, +, -, @), which a spreadsheet would compute: import such "
                "columns as text. The file holds what the lake holds, unchanged."
            )
    elif not answer.rows:  # a table of heads alone would fold them letter by letter
        print(f"no rows; columns: {console.printable(', '.join(answer.columns))}")
    else:
        console.print_table("", list(answer.columns), [[console.shown(v) for v in row] for row in answer.rows])


@command(app, "train")
def train(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Train on the newest snapshot and choose: a candidate release."""
    from pipelines.training import train as train_release

    opened = open_workspace_of(workspace)
    with (
        exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0),
        console.progress("training", opened.config.train.n_updates, "updates") as advance,
    ):
        outcome = train_release(opened, on_metrics=lambda step, m: advance(step, m["updates_per_s"]))
    if as_json:
        console.print_json(outcome.to_json())
    else:
        print_training(outcome)


def print_training(outcome: TrainOutcome) -> None:
    selection, chosen = outcome.selection, outcome.chosen
    console.print_account(
        f"Release {outcome.release} {'was trained from this before' if outcome.repeated else 'trained'}",
        {
            "snapshot": outcome.snapshot,
            "steps": f"{outcome.n_steps:,} learned from, {outcome.n_unusable_steps:,} without a known next observation",
            "seconds": f"{outcome.seconds:.1f}",
            "training": _beginning(outcome),
            "chosen": f"{chosen}, of {len(selection['candidates'])} candidates",
            "next": f"offline-dqn evaluate {outcome.release}",
        },
    )
    print_candidates(selection)
    for name, why in outcome.diverged.items():
        console.warn(f"{name} {why}; it is no candidate")
    if outcome.q_exceeds_feasible:
        console.warn("the network promises more than can be earned at all; the gate checks it on its own episodes")


def _beginning(outcome: TrainOutcome) -> str | None:
    return None if outcome.began_with is None else f"began with release {outcome.began_with}, the champion"


def print_candidates(selection: Mapping[str, Any]) -> None:
    """Every candidate of a training, the best lower bound first."""
    rows = [
        (
            ("* " if row.chosen else "  ") + row.name,
            console.number(row.value),
            console.number(row.difference),
            console.number(row.low),
            console.number(row.high),
            row.by,
            row.why,
        )
        for row in candidate_rows(selection)
    ]
    heads = ["candidate", "value", "difference", "low", "high", "by", "why"]
    above = f"above the baseline's {console.number(selection['baseline_value'])}"
    title = f"Compared on {compared_on(selection)}; {above}, bounds at {selection['level']:.0%} each"
    console.print_table(title, heads, rows, right=heads[1:5])


@command(app, "evaluate")
def evaluate(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    replay: Annotated[
        bool, typer.Option("--replay", help="Make the recorded decision again, and say whether every bit is the same.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Once more, where it was compared with a former champion, or has lapsed."),
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Estimate a release, decide at the gate, write the report."""
    from pipelines import stages

    opened = open_workspace_of(workspace)
    if replay:
        print_replay(opened, version, as_json)
        return
    with (
        exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0),
        console.progress("evaluating", None),
    ):
        outcome = stages.evaluate(opened, version, again=again)
    opened.refresh_catalog(opened.open_lake())
    if as_json:
        console.print_json(outcome.to_json())
    else:
        _print_evaluation(outcome)
    if not outcome.passed:
        raise typer.Exit(REFUSED)


def _print_evaluation(outcome: EvaluateOutcome) -> None:
    evaluation, decision = outcome.evaluation, outcome.evaluation.decision
    assert decision is not None  # evaluate_candidate always decides
    title = f"Release {outcome.release}: gate {'passed' if outcome.passed else 'refused'}"
    console.print_account(title + (" (as recorded before)" if outcome.repeated else ""), {"reason": decision.reason})
    if outcome.not_replayable:
        console.warn(f"the snapshot it rests on is {outcome.not_replayable}")
    if outcome.stale:
        console.warn(f"the decision no longer stands: {outcome.stale}")
    rows: list[list[str]] = []
    named: str | None = None
    for e in evaluation.estimates:
        interval = f"[{e.interval.low:.4g}, {e.interval.high:.4g}]" if e.interval else ""
        cause = "refused for the same cause" if e.refused and e.refused == named else e.refused
        named = e.refused or named
        note = cause or ("decides" if e.binding else e.note)
        rows.append([e.estimator, e.policy, console.number(e.value), interval, note])
    console.print_table(
        "Estimates per episode, with 95 % intervals", ["", "of", "value", "interval", ""], rows, right=["value"]
    )
    checks = [
        ["ok" if c.passed else "FAILED", c.name, console.number(c.value), console.number(c.bound), c.meaning]
        for c in sorted(decision.checks, key=lambda c: c.passed)
    ]
    console.print_table("Checks", ["", "check", "value", "bound", "meaning"], checks, right=["value", "bound"])
    following = f"offline-dqn promote {outcome.release} --reviewer NAME" if outcome.passed and not outcome.stale else ""
    console.print_account(
        "Then",
        {
            "certified share": f"{decision.certified_share:.0%}: {decision.certified_reason}",
            "report": outcome.report_path,
            "to promote": following,
        },
    )


@command(app, "plan")
def plan(
    paths: PathsArgument = None,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say it in sentences too, with what lies behind.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a log can decide, before any training."""
    from pipelines import stages
    from reports.plan_words import plan_columns, plan_facts, plan_rows, plan_sentences, plan_title

    found = stages.plan(open_workspace_of(workspace, as_of), paths or [])
    if as_json:
        console.print_json(found.to_json())
        return
    console.print_account("What this log can decide", plan_facts(found))
    if found.decidable:
        console.out.print()
        console.print_table(plan_title(found), plan_columns(), plan_rows(found), right=plan_columns()[1:3])
    if verbose:
        console.out.print()
        for sentence in plan_sentences(found):
            console.out.print(f"- {sentence}", markup=False)
    else:
        console.out.print("\nThe sentences behind it: offline-dqn plan --verbose", style="dim")


@command(app, "nightly")
def nightly(
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    force_train: Annotated[bool, typer.Option("--force-train", help="Train whatever drift says.")] = False,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Begin anew, even where a night that died could be taken up.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The whole night, in order."""
    from pipelines.running import run_night

    opened = open_workspace_of(workspace, as_of)
    record = run_night(opened, force_train=force_train, afresh=afresh)
    if as_json:
        console.print_json(record.to_json())
        return
    print_nights(workspace, [record])
    if record.release is not None:
        from pipelines.training import read_outcome

        trained = read_outcome(opened, record.release)
        if trained.began_with is not None:
            console.out.print(f"Training {_beginning(trained)}.")
        print_candidates(trained.selection)


@command(app, "nights")
def nights(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Every night so far."""
    from pipelines.nights import read_nights

    found = read_nights(open_workspace_of(workspace).nights_path)
    if as_json:
        console.print_json({"nights": [record.to_json() for record in found]})
    else:
        print_nights(workspace, found)


def print_nights(workspace: Path, records: list[Any]) -> None:
    """The table of nights, and where the newest report lies."""
    from pipelines.nights import COLUMNS, RIGHT

    console.print_table("Nights", COLUMNS, [record.row() for record in records], right=RIGHT)
    for record in records[-1:]:
        console.print_account("", {"verdict": record.reason, "review": record.review})
        for warning in record.warnings:
            console.warn(warning)
    newest = {
        "report": [record.report for record in records if record.report],
        "drift page": [record.drift_page for record in records if record.drift_page],
    }
    console.print_account("", {name: workspace.absolute() / paths[-1] for name, paths in newest.items() if paths})


@command(app, "releases")
def releases(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Versions, gate results, aliases."""
    from pipelines.readings import budget

    opened = open_workspace_of(workspace)
    found, now = opened.registry.releases(), budget(opened)
    rejected = {r.release: [f"rejected by {r.reviewer}"] for r in opened.registry.rejections()}
    if as_json:
        console.print_json(
            {
                "releases": [record.to_json() for record in found],
                "budget": now.to_json(),
                "rejections": [rejection.to_json() for rejection in opened.registry.rejections()],
            }
        )
        return
    rows = [
        [
            r.number,
            f"{r.created_at:%Y-%m-%d %H:%M}",
            r.gate,
            ", ".join([*r.aliases, *rejected.get(r.number, ())]),
            _tag(r.tags, "value"),
            _tag(r.tags, "difference"),
            r.damage or "intact",
        ]
        for r in found
    ]
    heads = ["release", "made", "gate", "is", "value", "difference", "bytes"]
    console.print_table("Releases", heads, rows, right=["release", "value", "difference"])
    print_budget(now)


def _tag(tags: Any, name: str) -> str:
    return console.number(float(tags[name])) if name in tags else "-"


ReviewerOption = Annotated[str, typer.Option("--reviewer", help="Who answers for it.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why.")]


@command(app, "promote")
def promote(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    reviewer: ReviewerOption,
    note: NoteOption = "",
    override: Annotated[
        bool,
        typer.Option("--override", help="Although nights differ, a budget is spent, or rejected; takes a note."),
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make a release whose gate passed the champion."""
    from pipelines import promoting
    from reports.registry import PromotionRefusedError

    opened = open_workspace_of(workspace)
    try:
        promotion, fresh = promoting.promote(opened, version, reviewer=reviewer, note=note, override=override)
    except PromotionRefusedError as error:
        console.fail(str(error))
        raise typer.Exit(REFUSED) from error
    _print_promotion(opened, promotion, as_json, fresh)


@command(app, "rollback")
def rollback(
    to: Annotated[int | None, typer.Option("--to", help="A champion before this one; default: the last.")] = None,
    reviewer: ReviewerOption = "",
    note: NoteOption = "",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Go back to a champion before this one, or to the rules."""
    from pipelines.excluding import taint_of

    opened = open_workspace_of(workspace)
    promotion = opened.registry.rollback(to, reviewer=reviewer or user_name(), note=note)
    try:
        tainted = taint_of(opened, promotion.to_release)  # a warning only: going back must always be possible
    except Exception as error:  # it has happened, whatever the lake or a bucket says now
        console.warn(f"release {promotion.to_release} acts; whether it rests on exclusions cannot be told: {error}")
    else:
        if tainted is not None:
            console.warn(f"release {promotion.to_release} acts, and {tainted.in_words}; `rollback` goes back further")
    _print_promotion(opened, promotion, as_json)


def _print_promotion(workspace: Workspace, promotion: Any, as_json: bool, fresh: str = "") -> None:
    from pipelines.metrics.exposition import export

    try:
        workspace.refresh_catalog(workspace.open_lake())
        for warning in export(workspace):
            console.warn(warning)
    except Exception as error:  # the release acts all the same
        console.warn(f"release {promotion.to_release} acts; views and metrics follow with the next command: {error}")
    if as_json:
        console.print_json({**promotion.to_json(), "freshness": fresh} if fresh else promotion.to_json())
        return
    before = "the logging policy" if promotion.from_release is None else f"release {promotion.from_release}"
    console.print_account(
        f"Release {promotion.to_release} is champion",
        {
            "instead of": before,
            "reviewer": promotion.reviewer,
            "note": promotion.note,
            "newest nights": fresh,
            "undo": promotion.undo,
        },
    )


if __name__ == "__main__":
    main()
