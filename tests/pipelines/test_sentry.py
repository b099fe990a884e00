"""Failures told to Sentry, at a receiver on loopback: where and what kind, nothing of the data or the environment."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datasets.errors import OfflineDqnError
from datasets.logfiles import LogFileError
from datasets.observations import observations_from_records
from datasets.settings import SettingsError
from offline_dqn.rule_policy import Rule, RulePolicy
from pipelines.running import run_night
from pipelines.sentry.config import SentryConfig
from pipelines.sentry.events import failure_event, without_values
from pipelines.sentry.telling import ServerFailures, tell_sentry
from pipelines.serving.acting_releases import ActingReleases
from pipelines.serving.caps import ActionCaps
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.messages import ActMessages
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcomes import Outcomes
from pipelines.serving.recent_decisions import RecentDecisions
from pipelines.serving.refusals import RefusedRequestError
from pipelines.serving.service import DecisionService
from pipelines.tracing.config import TracingConfig
from pipelines.tracing.decisions import DecisionTraces
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run
from tests.pipelines.serving.running import OBSERVATION, served_workspace

KEY = "5e7d0c1a9b8f4e6d8c3b2a1f0e9d8c7b"
PASSWORD = "hunter2-of-the-database"


@dataclass
class Receiver:
    """What arrived, and with which status it is answered."""

    dsn: str = ""
    status: int = 200
    events: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def wait_for(self, n: int = 1, within_s: float = 20) -> list[dict[str, Any]]:
        until = time.monotonic() + within_s
        while len(self.events) < n and time.monotonic() < until:
            time.sleep(0.05)
        assert len(self.events) >= n
        return self.events


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Takes envelopes as Sentry does; its DSN stands in the environment, and so does a password."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            lines = body.split(b"\n")
            state.raw.append(body)
            state.events += [
                json.loads(payload)
                for head, payload in zip(lines[1::2], lines[2::2], strict=False)
                if json.loads(head)["type"] == "event"
            ]
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.dsn = f"http://{KEY}@127.0.0.1:{server.server_port}/1"
    monkeypatch.setenv("OFFLINE_DQN_SENTRY_DSN", state.dsn)
    monkeypatch.setenv("DATABASE_PASSWORD", PASSWORD)
    yield state
    server.shutdown()
    server.server_close()


def watched(workspace: Workspace, more: str = "") -> Workspace:
    with (workspace.root / "offline_dqn.toml").open("a") as settings:
        settings.write(f'\n[sentry]\ndsn = "OFFLINE_DQN_SENTRY_DSN"\nenvironment = "test"\n{more}\n')
    return open_workspace(workspace.root)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """As it would be caught, with a local variable that nobody else must see."""
    observation = {"cpu": 0.987654}
    try:
        assert observation
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_event_holds_kinds_and_places_and_no_values(fresh: Workspace, receiver: Receiver) -> None:
    cause = raised(ValueError(f"row cpu=0.987654 of user ada, {PASSWORD}"))
    error = raised(
        OfflineDqnError(f"reward is null in 12 of 4096 steps, ({PASSWORD}) first in '/srv/ada/e-0417'."), cause
    )

    assert tell_sentry(watched(fresh), error, stage="ingest", prefect_run="7f", empty="") == ""

    (event,) = receiver.events
    inner, outer = event["exception"]["values"]
    assert (inner["type"], inner["value"]) == ("ValueError", "")
    assert (outer["type"], outer["module"]) == ("OfflineDqnError", "datasets.errors")
    assert outer["value"] == "reward is null in # of # steps, ($DATABASE_PASSWORD) first in …"
    last = outer["stacktrace"]["frames"][-1]
    assert (last["function"], last["module"].rpartition(".")[2]) == ("raised", "test_sentry")
    assert set(last) == {"module", "function", "lineno", "in_app"}
    assert event["tags"] == {"problem": "autoscaler", "stage": "ingest", "prefect_run": "7f"}
    assert event["environment"] == "test"
    assert set(event) <= {"event_id", "timestamp", "level", "platform", "exception", "tags", "fingerprint",
                          "environment", "sdk"}  # fmt: skip
    sent = b"".join(receiver.raw).decode()
    for secret in (PASSWORD, KEY, "0.987654", "ada", "e-0417", str(Path.home()), str(fresh.root)):
        assert secret not in sent


@pytest.mark.parametrize(
    ("said", "leaves"),
    [
        ("/srv/w/offline_dqn.toml has 1 problem: gate.alpha is 7", "PATH has # problem: gate.alpha is #"),
        ("postgresql://me:pw@db:5432/x does not answer", "URL does not answer"),
        (
            "Batch b-20260105 is held; `offline-dqn batches show b-7` says why.",
            "Batch b# is held; `offline-dqn batches` …",
        ),
        ("seen at 2026-01-05T10:00:00+00:00, -1.5e-3 below", "seen at #T#, # below"),
        ("\x1b[31mred\x07", " [#mred "),
        ("the log's end at step 3 was 'lost'", "the log's end at step # was …"),
    ],
)
def test_messages_lose_what_they_are_about(said: str, leaves: str) -> None:
    assert leaves in without_values(said)
    for value in ("me:pw", "20260105", "2026-01-05", "1.5e", "\x1b", "is 7"):
        assert value not in without_values(said)


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_night_is_told_with_its_stage_and_run(
    fresh: Workspace, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 403  # it arrives here, and Sentry would not take it
    with pytest.raises(LogFileError):
        run_night(watched(fresh), force_train=False)

    (event,) = receiver.wait_for()
    assert event["exception"]["values"][-1]["type"] == "LogFileError"
    assert (event["tags"]["stage"], event["tags"]["problem"]) == ("ingest", "autoscaler")
    assert len(event["tags"]["prefect_run"]) == 36
    assert "not everybody was told of this failure: Sentry did not take it: status_403" in capfd.readouterr().err
    assert str(fresh.root) not in b"".join(receiver.raw).decode()


@pytest.mark.parametrize("how", ["down", "refuses", "unset", "no dsn", "not installed"])
def test_whatever_is_wrong_with_sentry_is_said_and_raises_nothing(
    fresh: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    workspace = watched(fresh, "timeout_s = 1.0")
    if how == "down":
        monkeypatch.setenv("OFFLINE_DQN_SENTRY_DSN", f"http://{KEY}@127.0.0.1:9/1")
    elif how == "refuses":
        receiver.status = 403
    elif how == "unset":
        monkeypatch.delenv("OFFLINE_DQN_SENTRY_DSN")
    elif how == "no dsn":
        monkeypatch.setenv("OFFLINE_DQN_SENTRY_DSN", f"{KEY} is no address")
    else:
        monkeypatch.setitem(sys.modules, "sentry_sdk", None)

    said = tell_sentry(workspace, raised(OfflineDqnError("It failed.")))

    wanted = {
        "down": "Sentry did not take it: network",
        "refuses": "Sentry did not take it: status_403",
        "unset": "OFFLINE_DQN_SENTRY_DSN, which is not set",
        "no dsn": "holds no DSN (its value is not shown",
        "not installed": 'pip install ".[sentry]"',
    }
    assert wanted[how] in said
    assert KEY not in said
    assert capfd.readouterr().err == ""


def test_without_a_dsn_nobody_is_told_and_nothing_is_loaded(fresh: Workspace, run: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.workspace import open_workspace; "
        "from pipelines.sentry.telling import tell_sentry; "
        f"said = tell_sentry(open_workspace(Path({str(fresh.root)!r})), ValueError()); "
        "print(repr(said), 'sentry_sdk' in sys.modules)"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout == "'' False\n"
    answer = run(fresh, "sentry", "test")
    assert answer.code == 1
    assert "no project is configured" in answer.err


def test_the_same_failure_of_a_server_is_told_once_in_a_while(receiver: Receiver) -> None:
    failures = ServerFailures(SentryConfig(dsn="OFFLINE_DQN_SENTRY_DSN"), "tiny")
    for _ in range(5):
        failures.tell(raised(ValueError("again")), release=1)
    failures.tell(raised(KeyError("another")), release=1)
    failures.close()

    assert [event["exception"]["values"][0]["type"] for event in receiver.events] == ["ValueError", "KeyError"]


@contextmanager
def deciding(workspace: Workspace, failures: ServerFailures) -> Iterator[Callable[[], object]]:
    """Asks the policy server's service for a decision, without a server."""
    config, contract, steps = ServeConfig(seed=1), workspace.contract, workspace.logs_path
    acting = ActingReleases(workspace)
    with DecisionLog(steps, config) as log:
        outcomes = Outcomes(contract, config, log, steps=steps, outcomes=workspace.outcome_logs_path)
        service = DecisionService(
            contract,
            config,
            acting,
            log,
            outcomes,
            ActionCaps(contract),
            RecentDecisions(contract, steps),
            Metrics(acting, []),
            DecisionTraces(TracingConfig(), contract.name),
            failures,
        )
        asked = ActMessages(contract, "server", 10).read(
            json.dumps({"episode_id": "e", "observation": OBSERVATION}).encode()
        )
        yield lambda: asyncio.run(service.act(asked, time.perf_counter()))
        service.close()


@pytest.mark.parametrize("kind", ["a library's error", "a rule's error"])
def test_a_release_that_cannot_decide_is_told_without_the_observation(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    workspace = served_workspace(tmp_path / "w", releases=1)
    contract = workspace.contract
    failures = ServerFailures(SentryConfig(dsn="OFFLINE_DQN_SENTRY_DSN"), contract.name)

    def broken(*_: Any, **__: Any) -> None:
        if kind == "a library's error":
            raise RuntimeError(f"cannot score {OBSERVATION}")
        rule = Rule("CAST('Jane' || observation.zone AS INT) > 3", "hold")  # DuckDB quotes what it cannot cast
        one = observations_from_records(contract, [OBSERVATION])
        RulePolicy(contract, (rule,), otherwise="hold").action_probs(one, np.ones((1, 3), dtype=bool))

    monkeypatch.setattr("pipelines.serving.service.decide", broken)
    with deciding(workspace, failures) as ask, pytest.raises(RefusedRequestError) as refused:
        ask()
    failures.close()

    (event,) = receiver.events
    (told,) = event["exception"]["values"][-1:]
    said = {"a library's error": "could not decide: RuntimeError",
            "a rule's error": "fails in row 0 of 1 (ConversionException)"}[kind]  # fmt: skip
    assert (told["type"], told["value"]) == {
        "a library's error": ("RuntimeError", ""),
        "a rule's error": ("PolicyRuleError", "rule #, …"),
    }[kind]
    assert event["tags"] == {"problem": "autoscaler", "release": "1", "did": "left it to version 0"}
    assert said in str(refused.value)
    assert said.removeprefix("could not decide: ") in caplog.text
    for text in (b"".join(receiver.raw).decode(), str(refused.value), caplog.text):
        assert "request_rate" not in text
        assert "Janea" not in text


def test_a_constraint_that_fails_refuses_a_decision_without_quoting_the_observation(tmp_path: Path) -> None:
    workspace = served_workspace(tmp_path / "w", releases=1)
    path = workspace.root / "contract.toml"
    rule = "CAST('Jane' || observation.zone AS INT) > 3"
    path.write_text(f'{path.read_text()}\n[constraints.odd]\nforbid = "{rule}"\n')
    failures = ServerFailures(SentryConfig(), "tiny")

    with deciding(open_workspace(workspace.root), failures) as ask, pytest.raises(RefusedRequestError) as refused:
        ask()

    assert "odd, `CAST(" in str(refused.value)
    assert "request_rate" not in str(refused.value)
    assert "Janea" not in str(refused.value)


QUOTING = (
    "zone '{}' is none of a, b",
    'zone "{}" is none of a, b',
    "`{}`, fails in row 3",
    "`offline-dqn exclude add {}` does it",
    "the log's zone is {{'zone': '{}'}}: north",
    "zone «{}» or “{}”",
    "b'{}' is no name",
)


@given(label=st.text(), how=st.sampled_from(QUOTING))
@example(label='O\'Brien "Bob" Smith', how=QUOTING[0])
@example(label="x` Jane Doe", how=QUOTING[3])
@example(label="http://x' Jane Doe/Smith", how=QUOTING[1])
@example(label="s Jane Doe", how=QUOTING[6])
def test_no_part_of_a_label_that_a_message_quotes_is_in_the_event(label: str, how: str) -> None:
    fixed, event = (
        failure_event(OfflineDqnError(how.replace("{{", "{").replace("}}", "}").replace("{}", text)), {})
        for text in ("", label)
    )
    (said,) = event["exception"]["values"]
    (known,) = fixed["exception"]["values"]
    parts = {label[i : i + 3] for i in range(len(label) - 2)}
    assert [part for part in parts if part in said["value"] and part not in known["value"]] == []
    assert event == fixed


def test_the_command_tells_whether_sentry_takes_it(fresh: Workspace, receiver: Receiver, run: Run) -> None:
    workspace = watched(fresh)
    assert run(workspace, "sentry", "test").out == "Sentry took it.\n"
    assert receiver.events[0]["exception"]["values"][0]["type"] == "TestFailureError"
    receiver.status = 401
    refused = run(workspace, "sentry", "test", "--json")
    assert refused.code == 1
    assert refused.json["problem"] == "Sentry did not take it: status_401"


def test_a_dsn_in_the_file_is_refused_without_quoting_it(fresh: Workspace) -> None:
    with (fresh.root / "offline_dqn.toml").open("a") as settings:
        settings.write(f'\n[sentry]\ndsn = "https://{KEY}@sentry.example/1"\n')

    with pytest.raises(SettingsError, match=r"sentry\.dsn: holds a user or a password") as refused:
        _ = open_workspace(fresh.root).config
    assert KEY not in str(refused.value)


def test_a_long_chain_of_causes_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert len(failure_event(first, {})["exception"]["values"]) == 2
