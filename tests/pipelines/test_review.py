"""The review of a candidate that passed: its form, what it does, and that a night starts it once."""

from __future__ import annotations

import importlib
import uuid
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from pipelines import readings, review
from pipelines.markdown import as_markdown
from pipelines.review import ReviewError, ReviewForm, ask_for_review, carry_out, question, settled
from pipelines.workspace import Workspace
from reports.registry import JUDGED_AGAINST, RegistryError
from tests.test_imports import ROOT


@pytest.fixture
def waiting(workspace: Workspace) -> Workspace:
    """Release 1 passed and nobody has decided on it."""
    (workspace.releases_path / "history.jsonl").unlink()
    return workspace


def form(decision: str = "approve", reviewer: str = "Ada", note: str = "", override: bool = False) -> ReviewForm:
    return ReviewForm.model_validate({"decision": decision, "reviewer": reviewer, "note": note, "override": override})


def answering(monkeypatch: pytest.MonkeyPatch, *forms: ReviewForm) -> list[str]:
    """Lets `suspend_flow_run` return these answers one after another; returns the texts that were shown."""
    shown: list[str] = []
    left = list(forms)

    def suspended(wait_for_input: Any, key: str, timeout: int) -> ReviewForm:
        assert 13 * 86400 < timeout <= 14 * 86400  # until the deadline; by default Prefect waits an hour
        assert key == f"answer-{len(shown)}"
        shown.append(wait_for_input._description)
        return left.pop(0)

    monkeypatch.setattr(review, "suspend_flow_run", suspended)
    return shown


def test_the_form_is_typed() -> None:
    schema = ReviewForm.model_json_schema()["properties"]

    assert schema["decision"]["enum"] == ["approve", "reject"]
    assert set(schema) == {"decision", "reviewer", "note", "override"}
    for wrong in ({"decision": "maybe", "reviewer": "Ada"}, {"decision": "approve", "reviewer": ""}):
        with pytest.raises(ValidationError):
            ReviewForm.model_validate(wrong)


def test_an_approval_promotes_and_the_second_run_finds_it_done(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = answering(monkeypatch, form(note="looks right"))

    done = review.review.fn(str(waiting.root), 1)

    assert (done["action"], done["to"], done["reviewer"], done["note"]) == ("promote", 1, "Ada", "looks right")
    assert waiting.registry.champion() == 1
    assert "Release 1 of autoscaler" in shown[0]
    assert as_markdown("Passed: with 0.95 confidence release 1 earns at least") in shown[0]
    assert str(waiting.release_path(1) / "report.html") in shown[0]
    # Prefect runs the flow from the top again; nothing is asked and nothing done a second time.
    assert review.review.fn(str(waiting.root), 1)["reviewer"] == "Ada"
    assert len(waiting.registry.history()) == 1


def test_a_rejection_needs_a_reason_and_is_asked_again_for_it(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = answering(monkeypatch, form("reject"), form("reject", note="scales down at noon"))

    done = review.review.fn(str(waiting.root), 1)

    assert (done["action"], done["release"], done["note"]) == ("reject", 1, "scales down at noon")
    assert "Your last answer could not be carried out" not in shown[0]
    assert shown[1].startswith("**Your last answer could not be carried out:** Who rejects release 1\\, and why\\?")
    assert waiting.registry.champion() is None


def test_somebody_who_was_faster_in_a_shell_ends_the_review(waiting: Workspace) -> None:
    assert settled(waiting, 1) is None
    waiting.registry.reject(1, reviewer="Grace", note="no")

    assert review.review.fn(str(waiting.root), 1)["reviewer"] == "Grace"


def test_a_release_that_was_judged_again_waits_for_a_decision_again(waiting: Workspace) -> None:
    waiting.registry.promote(1, reviewer="Ada", note="fine")
    waiting.registry.rollback(reviewer="Ada")
    done = settled(waiting, 1)
    assert done is not None
    assert done["note"] == "fine"  # a release that was taken out of service is not offered by itself

    ledger, bench = readings.ledger_of(waiting), readings.set_up(waiting, 1)
    reading = ledger.begin(bench.terms, bench.gate, readings.spent_at(waiting))  # against the rules this time
    content = (waiting.release_path(1) / "evaluation.json").read_bytes() + b"\n"
    files = {"evaluation.json": content, "report.html": b"<p>"}
    waiting.registry.record_evaluation(1, gate="passed", files=files, tags={JUDGED_AGAINST: bench.stands_for})
    ledger.decide(reading, "passed", readings.digest_of(content), 1)

    assert settled(waiting, 1) is None
    waiting.registry.reject(1, reviewer="Grace", note="no")
    done = settled(waiting, 1)
    assert done is not None
    assert done["action"] == "reject"


def test_what_a_log_wrote_is_no_markup_in_the_question(waiting: Workspace) -> None:
    label = "slice <img src=x> [here](https://example.org)"

    text = question(waiting, 1, refused=label)

    assert as_markdown(label) in text
    assert label not in text


def test_a_changed_report_is_not_approved(waiting: Workspace) -> None:
    report = waiting.release_path(1) / "report.html"
    report.write_text(report.read_text() + " ")

    with pytest.raises(RegistryError, match=r"report\.html is altered"):
        carry_out(waiting, 1, form())
    assert waiting.registry.champion() is None


def test_a_review_gives_up_in_the_end(waiting: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *[form("reject")] * 20)

    with pytest.raises(ReviewError, match=r"None of 20 answers could be carried out, the last because: Who rejects"):
        review.review.fn(str(waiting.root), 1)


def test_the_question_names_the_shell_commands(waiting: Workspace) -> None:
    assert "`offline-dqn promote 1 --reviewer NAME`" in question(waiting, 1)


def test_a_night_without_a_deployment_says_how_to_decide(waiting: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_deployment(*_: Any, **__: Any) -> None:
        raise ObjectNotFound(Exception())

    monkeypatch.setattr(review, "run_deployment", no_deployment)

    assert ask_for_review(waiting, 1).startswith("offline-dqn promote 1 --reviewer NAME, or offline-dqn reject 1")


def test_a_server_that_does_not_answer_is_asked_again_and_fails_no_night(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import flow

    def no_answer(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(review, "run_deployment", no_answer)
    with pytest.raises(httpx.ConnectError):  # so that the task tries again
        ask_for_review(waiting, 1)
    assert (flow.start_review.retries, flow.start_review.retry_delay_seconds) == (2, [2, 10])

    monkeypatch.setattr(flow, "start_review", flow.start_review.fn)
    says = flow._review(waiting, 1)
    assert says.startswith("offline-dqn promote 1 --reviewer NAME, or offline-dqn reject 1")
    assert says.endswith("(no review was started: ConnectError)")


def test_a_review_is_started_once_for_each_evaluation(waiting: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    def run_deployment(name: str, **given: Any) -> Any:
        started.append({"name": name, **given})
        return FlowRun(name="calm-otter", flow_id=uuid.UUID(int=2), id=uuid.UUID(int=1))

    monkeypatch.setattr(review, "run_deployment", run_deployment)
    says = ask_for_review(waiting, 1)
    ask_for_review(waiting, 1)
    waiting.registry.record_evaluation(1, gate="passed", files={"evaluation.json": b"{}", "report.html": b"<p>"})
    ask_for_review(waiting, 1)
    waiting.registry.promote(1, reviewer="Ada", note="fine")

    assert says.startswith("offline-dqn promote 1 --reviewer NAME, or")
    assert "by the form of calm-otter (flow run " in says
    assert started[0]["name"] == "review/review"
    assert started[0]["parameters"] == {"workspace": str(waiting.root), "release": 1}
    assert (started[0]["timeout"], started[0]["as_subflow"]) == (0, False)  # the night does not wait
    keys = [given["idempotency_key"] for given in started]
    assert keys[0] == keys[1] != keys[2]
    assert ask_for_review(waiting, 1) == "decided already: promote, fine"


def test_the_deployments_name_flows_that_are_there() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert flow.name == deployment["name"]
        assert set(deployment["parameters"]) <= set(flow.parameters.properties), deployment["name"]
    assert review.DEPLOYMENT == "review/review"
    crons = {d["name"]: d["schedules"][0]["cron"] for d in deployments if "schedules" in d}
    assert crons == {"nightly": "30 2 * * *", "ingest": "5 * * * *", "calibrate": "0 4 * * 0"}
