"""The review of a candidate that passed: a Prefect deployment of its own, suspended until a person fills in a form.

Prefect runs a suspended flow from the top again when it is resumed, in a new process: everything here can be repeated.
Without a server `offline-dqn promote` and `offline-dqn reject` do the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from datasets.errors import OfflineDqnError
from pipelines import promoting
from pipelines.markdown import as_markdown
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
    override: bool = Field(False, description="Approve although the newest nights differ, or although it was rejected")


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
        answer = suspend_flow_run(wait_for_input=form, key=f"answer-{n}")
        try:
            return carry_out(opened, release, answer)
        except OfflineDqnError as error:
            refused = str(error)
    raise ReviewError(
        f"None of {_MOST_ANSWERS} answers could be carried out, the last because: {refused} `offline-dqn promote "
        f"{release}` or `reject` decides from a shell."
    )


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
    return (
        f"{again}**Release {release} of {as_markdown(workspace.contract.name)}.** {verdict}\n\n"
        f"Report: `{workspace.release_path(release) / 'report.html'}`\n\n"
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


def ask_for_review(workspace: Workspace, release: int) -> str:
    """Starts the review of a release that passed, once for each evaluation; returns how it can be decided, in words.

    A night never fails for it: where there is no server, no such deployment, or no answer, the shell remains.
    """
    by_shell = (
        f"offline-dqn promote {release} --reviewer NAME, or offline-dqn reject {release} --reviewer NAME --note TEXT"
    )
    done = settled(workspace, release)
    if done is not None:
        return f"decided already: {done['action']}, {done.get('note', '')}".rstrip(", ")
    manifest = read_manifest(workspace.release_path(release))
    evaluated = repr(dict(manifest.evaluation_files)) if manifest else ""
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
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        return f"{by_shell} (no review was started: {type(error).__name__}: {error})"
    assert isinstance(run, FlowRun)  # only inside a coroutine it is something to wait for
    return f"{run.name} in Prefect waits for a reviewer (flow run {run.id}); or {by_shell}"
