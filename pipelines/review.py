"""The review of a candidate that passed: a Prefect deployment of its own, suspended until a person fills in a form.

Prefect runs a suspended flow from the top again when it is resumed, in a new process: everything here can be repeated.
Without a server `offline-dqn promote` and `offline-dqn reject` do the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from datasets.errors import OfflineDqnError
from pipelines import promoting
from pipelines.lapsing import EVALUATED_AT, deadline_of, why_lapsed
from pipelines.markdown import as_markdown
from pipelines.night_artifacts import page_link
from pipelines.readings import digest_of, reading_behind
from pipelines.stages import recorded_evaluation
from pipelines.workspace import Workspace, open_workspace
from reports.manifest import read_manifest

DEPLOYMENT = "review/review"
_MOST_ANSWERS = 20
"""Answers that a review asks for before it gives up: each one that could not be carried out is asked again."""


class ReviewForm(RunInput):
    """What the reviewer fills in."""

    decision: Literal["approve", "reject"] = Field(
        description="approve makes the release champion; reject records a no"
    )
    reviewer: str = Field(description="Your name: who answers for it", min_length=1)
    note: str = Field("", description="Why; a rejection and an override need one")
    override: bool = Field(False, description="Approve although nights differ, a budget is spent, or it was rejected")


class ReviewError(OfflineDqnError):
    """A review that ends without a decision."""


@flow(name="review", flow_run_name="review-release-{release}", persist_result=True, validate_parameters=False)
def review(workspace: str, release: int) -> dict[str, Any]:
    """Waits for a reviewer's form, and does what it says: promote or reject.

    Args:
        workspace: folder of the workspace.
        release: the candidate that passed.

    Returns:
        What was decided, by whom, when and why; also where somebody was faster in a shell.

    Raises:
        ReviewError: no answer could be carried out.
    """
    opened = open_workspace(Path(workspace))
    refused = ""
    for n in range(_MOST_ANSWERS):
        done = settled(opened, release)
        if done is not None:
            return done
        form = ReviewForm.with_initial_data(description=question(opened, release, refused))
        answer = suspend_flow_run(wait_for_input=form, key=f"answer-{n}", timeout=_seconds_left(opened, release))
        try:
            return carry_out(opened, release, answer)
        except OfflineDqnError as error:
            refused = str(error)
    raise ReviewError(
        f"None of {_MOST_ANSWERS} answers could be carried out, the last because: {refused} `offline-dqn promote "
        f"{release}` or `reject` decides from a shell."
    )


def _seconds_left(workspace: Workspace, release: int) -> int | None:
    """Until the deadline, for Prefect, which then ends the run; None where there is none. Never so few that the form is
    gone before it is shown: an answer that comes too late is refused all the same."""
    deadline = deadline_of(workspace, release)
    return max(60, int((deadline - datetime.now(UTC)).total_seconds())) if deadline is not None else None


def question(workspace: Workspace, release: int, refused: str = "") -> str:
    """The form's text, in Markdown: the verdict, where the report lies, and why an earlier answer was refused."""
    evaluation = recorded_evaluation(workspace, release)
    decision = evaluation.decision if evaluation else None
    again = f"**Your last answer could not be carried out:** {as_markdown(refused)}\n\n" if refused else ""
    verdict = (
        f"{as_markdown(decision.reason)} Certified share: {decision.certified_share:.0%}."
        if decision
        else "It was not judged."
    )
    deadline = deadline_of(workspace, release)
    until = f" Decide by {deadline.astimezone(UTC):%Y-%m-%d %H:%M} UTC; then it lapses." if deadline else ""
    return (
        f"{again}**Release {release} of {as_markdown(workspace.contract.name)}.** {verdict}{until}\n\n"
        f"Report: {page_link(workspace, workspace.release_path(release) / 'report.html')}\n\n"
        f"The same from a shell: `offline-dqn promote {release} --reviewer NAME`, or `offline-dqn reject {release} "
        "--reviewer NAME --note TEXT`."
    )


def settled(workspace: Workspace, release: int) -> dict[str, Any] | None:
    """What was decided on a release already; None while it waits for a decision.

    What was decided before its newest reading of `gate` was about another verdict.
    """
    registry, reading = workspace.registry, reading_behind(workspace, release)
    since = reading.entered_at if reading is not None else datetime.fromtimestamp(0, UTC)
    promoted = [p for p in registry.history() if p.to_release == release and p.at > since]
    if promoted:
        return promoted[-1].to_json()
    rejected = [r for r in registry.rejections() if r.release == release and r.at > since]
    if rejected:
        return rejected[-1].to_json()
    lapsed = why_lapsed(workspace, release)
    if lapsed:
        return {"action": "lapse", "release": release, "note": lapsed}
    stale = registry.stale(release)
    return {"action": "none", "release": release, "note": f"no longer to be decided: {stale}"} if stale else None


def carry_out(workspace: Workspace, release: int, form: ReviewForm) -> dict[str, Any]:
    """Promotes or rejects as the form says.

    Raises:
        RegistryError: it cannot be done; says why and what to do.
    """
    if form.decision == "reject":
        return promoting.reject(workspace, release, reviewer=form.reviewer, note=form.note).to_json()
    promotion, fresh = promoting.promote(
        workspace, release, reviewer=form.reviewer, note=form.note, override=form.override
    )
    return {**promotion.to_json(), "freshness": fresh}


def review_by_shell(release: int) -> str:
    """The two commands that decide on a candidate from a shell."""
    return f"offline-dqn promote {release} --reviewer NAME, or offline-dqn reject {release} --reviewer NAME --note TEXT"


def ask_for_review(workspace: Workspace, release: int) -> str:
    """Starts the review of a release that passed, once for each evaluation; returns how it can be decided, in words.

    Where there is no such deployment, the shell remains.

    Raises:
        PrefectHTTPStatusError, httpx.HTTPError: the server does not answer; the same call may be made again.
    """
    by_shell = review_by_shell(release)
    done = settled(workspace, release)
    if done is not None:
        return f"decided already: {done['action']}, {done.get('note', '')}".rstrip(", ")
    manifest = read_manifest(workspace.release_path(release))
    evaluated = repr((dict(manifest.evaluation_files), manifest.tags.get(EVALUATED_AT))) if manifest else ""
    try:
        run = run_deployment(
            DEPLOYMENT,
            parameters={"workspace": str(workspace.root), "release": release},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"review-{digest_of(f'{workspace.root} {release} {evaluated}'.encode())}",
        )
    except ObjectNotFound:
        return by_shell
    assert isinstance(run, FlowRun)  # only inside a coroutine it is something to wait for
    return f"{by_shell}; or by the form of {run.name} (flow run {run.id}) in Prefect's UI, while its server runs"
