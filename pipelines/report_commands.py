"""The commands under `report`: open a release's report, hold two side by side, print the schema of evaluation.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datasets.durable import write_durably
from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_in_browser, open_workspace_of

if TYPE_CHECKING:  # the stages load torch and more; a command loads what it needs when it runs
    from pipelines.workspace import Workspace
    from reports.comparison import Judged, ReleaseComparison
    from reports.records import Estimate

report_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Reports: open one, compare two, the schema."
)


@command(report_app, "open")
def open_report(
    version: Annotated[int | None, typer.Argument(help="Number of the release; default: the newest judged.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Open a release's report in a browser; without a display, print its path."""
    opened = open_workspace_of(workspace)
    path = _report_of(opened, version)
    shown = not as_json and open_in_browser(path)
    if as_json:
        console.print_json({"report": str(path)})
    else:
        print(path)
    if not as_json and not shown:
        console.err.print("(no display: open the file above in a browser)", style="dim")


@command(report_app, "compare")
def compare(
    first: Annotated[int, typer.Argument(help="Number of a release.")],
    second: Annotated[int, typer.Argument(help="Number of another one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file; default: comparison-A-B.html in the workspace.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """What differs between two judged releases, in the terminal and as one HTML file."""
    from pipelines.training import StageError
    from reports.comparison import compare_releases
    from reports.render import render_comparison

    if first == second:
        raise StageError(f"Release {first} would be compared with itself. Name two; `offline-dqn releases` lists all.")
    opened = open_workspace_of(workspace)
    found = compare_releases(judged(opened, first), judged(opened, second))
    path = (output or opened.root / f"comparison-{first}-{second}.html").absolute()
    write_durably(path, render_comparison(found, opened.contract.name))
    if as_json:
        console.print_json({**found.to_json(), "page": str(path)})
        return
    _print_comparison(found)
    console.print_account("", {"page": path})


@command(report_app, "schema")
def schema() -> None:
    """Print the JSON schema of evaluation.json."""
    from reports.schema import evaluation_schema

    sys.stdout.write(json.dumps(evaluation_schema(), indent=1) + "\n")


def judged(workspace: Workspace, release: int) -> Judged:
    """A release with its evaluation and lineage, once its bytes are those that were registered.

    Raises:
        StageError: it was not judged.
    """
    from pipelines.readings import reading_behind
    from pipelines.stages import recorded_evaluation
    from pipelines.training import StageError
    from reports.comparison import Judged

    folder = workspace.registry.path(release)
    evaluation = recorded_evaluation(workspace, release)
    if evaluation is None:
        raise StageError(f"Release {release} was not judged. `offline-dqn evaluate {release}` does that.")
    policy = json.loads((folder / "policy.json").read_text())
    lineage = {"policy": str(policy["digest"]), "code version": str(policy["code_version"])}
    reading = reading_behind(workspace, release)
    if reading is not None:
        terms = reading.terms
        made_by = {f"made by {name}": version for name, version in terms.made_by.items()}
        lineage |= {"snapshot": terms.snapshot, "contract": str(terms.inputs["contract"]), **made_by}
    return Judged(release, evaluation, lineage)


def _report_of(workspace: Workspace, version: int | None) -> Path:
    from pipelines.training import StageError
    from reports.manifest import read_manifest

    if version is not None:
        path = workspace.registry.path(version) / "report.html"
        if not path.is_file():
            raise StageError(f"Release {version} has no report. `offline-dqn evaluate {version}` writes one.")
        return path
    for release in reversed(workspace.releases_on_disk()):
        manifest = read_manifest(workspace.release_path(release))
        if manifest is not None and "report.html" in manifest.evaluation_files:
            return workspace.registry.path(release) / "report.html"
    raise StageError("No release was judged yet, so there is no report. `offline-dqn nightly` makes the first.")


def _print_comparison(found: ReleaseComparison) -> None:
    first, second = (f"release {release}" for release in found.releases)
    facts = {
        name: f"{verdict} against {baseline}: {reason}"
        for name, (verdict, reason), baseline in zip((first, second), found.verdicts, found.baselines, strict=True)
    }
    episodes = "the same for both" if found.same_episodes else "of different snapshots: numbers differ by chance, too"
    console.print_account(f"{first} and {second}", {**facts, "gate episodes": episodes})
    rows = [
        [row.estimator, row.policy, _estimate(row.first), _estimate(row.second), console.number(row.difference)]
        for row in found.estimates
    ]
    console.print_table("Estimates", ["", "of", first, second, "difference"], rows, right=["difference"])
    turned = [
        [row.name, *("not asked" if c is None else "ok" if c.passed else "FAILED" for c in (row.first, row.second))]
        for row in found.checks
        if row.turned
    ]
    console.print_table("Checks that came out differently" if turned else "Every check came out alike",
                        ["check", first, second], turned)  # fmt: skip
    shares = [[row.action, console.number(row.first), console.number(row.second)] for row in found.shares]
    console.print_table("Actions of the candidates", ["action", first, second], shares, right=[first, second])
    different = [[d.path, str(d.before), str(d.after)] for d in (*found.settings, *found.lineage)]
    if different:
        console.print_table("Settings and origin that differ", ["", first, second], different)


def _estimate(side: Estimate | None) -> str:
    if side is None:
        return "-"
    if side.value is None:
        return "refused"
    interval = f" [{side.interval.low:.4g}, {side.interval.high:.4g}]" if side.interval else ""
    return f"{side.value:.4g}{interval}"
