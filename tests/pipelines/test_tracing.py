"""Traces of nights, flows and decisions, at a collector on loopback that answers, refuses, hangs or is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import OfflineDqnError, RowError
from datasets.logfiles import LogFileError
from datasets.settings import SettingsError
from pipelines.metrics.usage import StageUsage
from pipelines.nights import NightRecord, read_nights
from pipelines.notify.telling import read_open
from pipelines.running import run_night
from pipelines.tracing.config import TracingConfig
from pipelines.tracing.decisions import is_traced
from pipelines.tracing.flows import FlowTrace, begin_trace
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.collector import Collector, collector
from tests.pipelines.conftest import Run
from tests.pipelines.serving.running import OBSERVATION, served_workspace, serving

SECRET = "k3y-of-the-collector"


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={SECRET}")
    with collector() as listening:
        yield listening


def traced(workspace: Workspace, endpoint: str, more: str = "") -> Workspace:
    with (workspace.root / "offline_dqn.toml").open("a") as settings:
        settings.write(f'\n[tracing]\nendpoint = "{endpoint}"\n{more}\n')
    return open_workspace(workspace.root)


@pytest.fixture(scope="module")
def night(
    first_night: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server: str
) -> Iterator[tuple[Workspace, NightRecord, Collector]]:
    """A night that is traced, of a workspace that watches an objective. Not to be changed."""
    assert prefect_server
    root = tmp_path_factory.mktemp("traced") / "workspace"
    shutil.copytree(first_night, root)
    with pytest.MonkeyPatch.context() as patched, collector() as listening:
        patched.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={SECRET}")
        watched = traced(open_workspace(root), listening.address, "[slo.success]\nobjective = 0.999")
        yield watched, run_night(watched, force_train=False), listening


def test_a_night_is_one_trace_with_a_span_for_each_stage(night: tuple[Workspace, NightRecord, Collector]) -> None:
    watched, record, collecting = night

    (root,) = collecting.of("nightly")
    stages = [span for span in collecting.spans if span is not root]
    assert [span.name for span in stages] == ["ingest", "drift", "metrics", "retention"]
    assert {span.trace_id for span in collecting.spans} == {record.trace_id}
    assert {span.parent for span in stages} == {root.span_id}
    assert root.parent == ""
    assert all(root.begins_ns <= span.begins_ns <= span.ends_ns <= root.ends_ns for span in stages)
    assert len(root.attributes["prefect.flow_run_id"]) == 36
    assert root.attributes["offline_dqn.decision"] == record.decision
    assert root.resource["offline_dqn.problem"] == "autoscaler"
    assert stages[0].attributes["offline_dqn.status"] == "nothing new"
    assert stages[0].attributes["offline_dqn.cpu_s"] > 0
    assert read_nights(watched.nights_path)[-1].trace_id == record.trace_id
    assert {headers["x-api-key"] for headers in collecting.headers} == {SECRET}
    assert SECRET.encode() not in b"".join(collecting.raw)


def test_a_night_tells_of_the_budgets_that_its_metrics_have_spent(
    night: tuple[Workspace, NightRecord, Collector], run: Run
) -> None:
    watched, record, _ = night

    assert {cause.notice.cause: cause.notice.level for cause in read_open(watched)} == {
        "burn": "page",
        "error budget": "ticket",
    }
    assert not [warning for warning in record.warnings if "budget" in warning]
    told = (watched.metrics_path / "offline_dqn.prom").read_text()
    assert 'offline_dqn_slo_spent{problem="autoscaler",slo="success"} 1.0' in told
    assert run(watched, "slo", "--check").code == 3


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_night_ends_its_trace_with_the_cause(fresh: Workspace, collecting: Collector) -> None:
    watched = traced(fresh, collecting.address)

    with pytest.raises(LogFileError):
        run_night(watched, force_train=False)

    (root,), (stage,) = collecting.of("nightly"), collecting.of("ingest")
    assert root.failed
    assert stage.failed
    assert "logs" in stage.said
    assert stage.attributes["error.type"] == "LogFileError"


@pytest.mark.usefixtures("prefect_server")
def test_without_a_collector_a_night_ends_well_and_says_what_it_lost(workspace: Workspace) -> None:
    record = run_night(traced(workspace, "http://127.0.0.1:9/v1/traces", "timeout_s = 0.5"), force_train=False)

    assert record.decision == "not enough data"
    (lost,) = [warning for warning in record.warnings if "trace" in warning]
    assert "spans of the trace were not delivered to http://127.0.0.1:9/v1/traces" in lost


def test_a_night_that_is_taken_up_goes_on_in_the_same_trace(fresh: Workspace, collecting: Collector) -> None:
    watched = traced(fresh, collecting.address)
    for start in (1, 2):
        trace = begin_trace(watched, "nightly", "2026-01-05T02:30:00+00:00", start=start)
        with trace.stage("ingest"):
            pass
        assert trace.end({}) == ()
    other = begin_trace(watched, "nightly", "2026-01-06T02:30:00+00:00")
    other.end({})

    assert len({span.trace_id for span in collecting.of("ingest")}) == 1
    assert len({span.span_id for span in collecting.spans}) == 5
    assert len({span.trace_id for span in collecting.spans}) == 2


def test_the_parts_of_a_training_are_spans_in_it(fresh: Workspace, collecting: Collector) -> None:
    trace = begin_trace(traced(fresh, collecting.address), "nightly", "now")
    began = datetime.now(UTC) + timedelta(seconds=1)

    def used() -> list[StageUsage]:
        return [line("train", began, 2.0), line("choose", began + timedelta(seconds=2), 0.5), line("train", old, 1.0)]

    def line(stage: str, at: datetime, wall_s: float) -> StageUsage:
        return StageUsage(wall_s=wall_s, cpu_s=1.5, peak_bytes=10**9, read_bytes=None, written_bytes=0, stage=stage,
                          night="2026-01-05", began_at=at.isoformat(timespec="milliseconds"), ended="done")  # fmt: skip

    old = began - timedelta(hours=1)
    with trace.stage("train", used):
        trace.found({"release": 3, "nested": {"is": "left out"}})
    trace.end({})

    (train,), (learn,), (choose,) = (collecting.of(name) for name in ("train", "learn", "choose"))
    assert (learn.parent, choose.parent) == (train.span_id, train.span_id)
    assert learn.ends_ns - learn.begins_ns == 2 * 10**9
    assert choose.begins_ns == learn.ends_ns
    assert learn.attributes["offline_dqn.cpu_s"] == 1.5
    assert "offline_dqn.read_bytes" not in learn.attributes
    assert train.attributes == {"offline_dqn.release": 3}


@pytest.mark.parametrize(("status", "says"), [(401, "401"), (503, "not delivered"), (200, "did not answer in time")])
def test_a_collector_that_refuses_or_hangs_is_said_in_words(
    fresh: Workspace, collecting: Collector, status: int, says: str
) -> None:
    collecting.status, collecting.hangs_s = status, 5.0 if status == 200 else 0.0
    trace = begin_trace(traced(fresh, collecting.address, "timeout_s = 0.3"), "nightly", "now")
    with trace.stage("ingest"):
        pass

    (lost,) = trace.end({})

    assert says in lost or (status == 200 and "not delivered" in lost)
    assert SECRET not in lost


def test_an_error_of_a_library_is_named_and_not_quoted(fresh: Workspace, collecting: Collector) -> None:
    trace = begin_trace(traced(fresh, collecting.address), "nightly", "now")
    error = ValueError("row {'user': 'ada'} of postgresql://ada:pw@db")
    trace.fail(error)

    (root,) = collecting.spans
    assert (root.failed, root.said) == (True, "ValueError")
    assert b"ada" not in b"".join(collecting.raw)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RowError("rule 1 fails in row 3, {'zone': 'Jane Doe'}: 'Jane Doe'.", "rule 1 fails in row 3."), "row 3."),
        (LogFileError("reward is null in 12 steps, first of episode 'Jane Doe'."), "reward is null in # steps"),
    ],
)
def test_a_span_says_what_failed_without_the_row(
    fresh: Workspace, collecting: Collector, error: OfflineDqnError, says: str
) -> None:
    trace = begin_trace(traced(fresh, collecting.address), "nightly", "now")
    with pytest.raises(OfflineDqnError), trace.stage("train"):
        raise error
    trace.fail(error)

    assert [span.name for span in collecting.spans if says in span.said] == ["train", "nightly"]
    assert b"Jane" not in b"".join(collecting.raw)


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded(fresh: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.workspace import open_workspace; "
        "from pipelines.tracing.flows import begin_trace; from pipelines.tracing.decisions import DecisionTraces; "
        f"w = open_workspace(Path({str(fresh.root)!r})); t = begin_trace(w, 'nightly', 'now'); "
        "print(t.trace_id, t.end({}), [m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert out.stdout == "None () []\n"


def test_where_the_extra_is_missing_the_night_goes_on_and_says_what_to_install(
    fresh: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    trace = begin_trace(traced(fresh, "http://127.0.0.1:9/v1/traces"), "nightly", "now")
    with trace.stage("ingest"):
        pass

    (said,) = trace.end({})
    assert 'pip install ".[tracing]"' in said
    assert isinstance(trace, FlowTrace)


def test_decisions_and_their_outcomes_share_the_trace_of_their_id(
    tmp_path: Path, collecting: Collector, run: Run
) -> None:
    workspace = traced(served_workspace(tmp_path / "w"), collecting.address, "decisions_share = 1.0")
    with serving(workspace) as server:
        answer = server.act(decision_id="d-1")
        status, told = server.ask("/v1/outcomes", {"decision_id": "d-1", "reward": -1.0})
        assert status == 200, told
        ids = [{"decision_id": f"b-{k}", "episode_id": f"e-{k}"} for k in range(3)]
        status, told = server.ask("/v1/act", {"decisions": [{**one, "observation": OBSERVATION} for one in ids]})
        assert status == 200, told
        assert server.stop()[0] == 0  # which sends what waits

    named = run(workspace, "tracing", "of", "d-1", "--json").json
    assert named["traced"]
    spans = [span for span in collecting.spans if span.trace_id == named["trace_id"]]
    assert sorted(span.name for span in spans) == ["act", "choose", "log", "outcome"]
    act = next(span for span in spans if span.name == "act")
    assert {span.parent for span in spans if span.name in ("choose", "log")} == {act.span_id}
    assert act.attributes == {
        "offline_dqn.decision_id": "d-1",
        "offline_dqn.release": str(answer["release"]),
        "offline_dqn.decided_by": answer["decided_by"],
        "offline_dqn.action": answer["action"],
        "offline_dqn.n_decisions": 1,
    }
    assert len(collecting.of("act")) == 4
    told = b"".join(collecting.raw)
    for name in ("request_rate", "p95_ms", "observation", "episode"):
        assert name.encode() not in told


def test_decisions_do_not_wait_for_a_collector_that_hangs(tmp_path: Path, collecting: Collector) -> None:
    collecting.hangs_s = 30.0
    more = "decisions_share = 1.0\ntimeout_s = 0.5"
    with serving(traced(served_workspace(tmp_path / "w"), collecting.address, more)) as server:
        for k in range(20):
            server.act(decision_id=f"d-{k}")
        assert collecting.spans == []  # which has answered nothing by now
        code, said = server.stop()
    assert code == 0
    assert "not delivered" in said or "did not answer in time" in said


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_traces_whatever_a_smaller_one_does(decision_id: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert is_traced(more, decision_id) >= is_traced(less, decision_id)
    assert is_traced(1.0, decision_id)
    assert not is_traced(0.0, decision_id)


def test_about_the_share_of_all_decisions_is_traced() -> None:
    # Of 20,000 ids at 5 % 1,000 on average, with a standard deviation of 31.
    assert 850 < sum(is_traced(0.05, f"decision {k}") for k in range(20_000)) < 1150


def test_the_commands_say_whether_the_collector_takes_spans(fresh: Workspace, collecting: Collector, run: Run) -> None:
    assert "no collector is configured" in run(fresh, "tracing", "test").err
    watched = traced(fresh, collecting.address)
    assert run(watched, "tracing", "test").code == 0
    assert len(collecting.of("test")) == 1
    assert run(watched, "tracing", "of", "d-1", "--json").json["traced"] is False
    collecting.status = 401
    refused = run(watched, "tracing", "test", "--json")
    assert refused.code == 1
    assert "401" in json.loads(refused.out)["problems"][0]


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", f"http://me:{SECRET}@h/v1/traces", f"http://h/v1/traces?key={SECRET}"]
)
def test_an_endpoint_with_a_secret_or_without_a_scheme_is_refused(fresh: Workspace, endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_HEADERS|must hold no secret") as refused:
        _ = traced(fresh, endpoint).config
    assert SECRET not in str(refused.value)
    assert TracingConfig().endpoint is None
