"""People are told, against a real receiver on loopback: once, of what is due, with no secret anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from datasets.locking import LockedError
from pipelines.nights import NightRecord, append_night
from pipelines.notify.night import check_now, of_failed_night, of_night
from pipelines.notify.notices import Notice
from pipelines.notify.telling import read_open, tell
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECRET = "s3cr3t-t0ken-of-the-pager"
FAILED = Notice("night", "page", "the night failed in train", "The disk is full.", "train: OSError")
DRIFTED = Notice("drift", "ticket", "the world has drifted", "Traffic grew.", "request_rate")


@dataclass
class Receiver:
    """What arrived, and with which status it is answered."""

    address: str = ""
    status: int = 200
    got: list[dict[str, Any]] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.got]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """An HTTP server on loopback; its address, with a token in it, stands in both environment variables."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if state.status == 200:
                state.got.append(body)
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"json://robot:{SECRET}@127.0.0.1:{server.server_port}/{SECRET}"
    for name in ("OFFLINE_DQN_PAGE_URL", "OFFLINE_DQN_TICKET_URL"):
        monkeypatch.setenv(name, state.address)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(fresh: Workspace) -> Workspace:
    return configured(fresh)


def configured(workspace: Workspace, more: str = "") -> Workspace:
    settings = workspace.root / "offline_dqn.toml"
    table = f'[notify]\npage = ["OFFLINE_DQN_PAGE_URL"]\nticket = ["OFFLINE_DQN_TICKET_URL"]\ntimeout_s = 2\n{more}\n'
    settings.write_text(table + settings.read_text())
    return open_workspace(workspace.root)


def sent(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace.root / "notify" / "sent.jsonl").read_text().splitlines()]


def test_pages_and_tickets_arrive_as_one_message_each(told: Workspace, receiver: Receiver) -> None:
    held = Notice("batches", "page", "batch b-1 is held", "Look.", "b-1")
    assert tell(told, [FAILED, held, DRIFTED], set(), at=NOON) == ()

    assert receiver.titles == [
        "[page] autoscaler (fresh): the night failed in train (and 1 more)",
        "[ticket] autoscaler (fresh): the world has drifted",
    ]
    assert "The disk is full." in receiver.got[0]["message"]
    assert "batch b-1 is held" in receiver.got[0]["message"]
    assert [m["type"] for m in receiver.got] == ["failure", "warning"]


def test_it_is_told_once_then_after_a_day_then_that_it_is_over(told: Workspace, receiver: Receiver) -> None:
    for hours in (0, 1, 2, 25, 26):
        tell(told, [FAILED], {"night"}, at=NOON + timedelta(hours=hours))
    tell(told, [], {"night"}, at=NOON + timedelta(hours=27))
    tell(told, [], {"night"}, at=NOON + timedelta(hours=28))

    assert [record["at"][11:16] for record in sent(told)] == ["12:00", "13:00", "15:00"]
    assert "Found 4 times since 2026-01-05 12:00 UTC." in receiver.got[1]["message"]
    assert receiver.titles[2] == "[page] autoscaler (fresh): over: the night failed in train"
    assert receiver.got[2]["type"] == "success"
    assert read_open(told) == ()


def test_a_receiver_that_is_down_is_tried_again_and_the_others_are_not_told_twice(
    told: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.status = 503
    problems = tell(told, [FAILED], {"night"}, at=NOON)
    assert problems == (
        "page of night was not delivered and is tried again next time: the receiver in OFFLINE_DQN_PAGE_URL answered "
        "with status 503",
    )
    monkeypatch.setenv("OFFLINE_DQN_PAGE_URL", "json://127.0.0.1:9/")  # nothing listens there
    (problem,) = tell(told, [FAILED], {"night"}, at=NOON)
    assert "could not be reached" in problem
    monkeypatch.delenv("OFFLINE_DQN_PAGE_URL")
    (problem,) = tell(told, [FAILED], {"night"}, at=NOON)
    assert "OFFLINE_DQN_PAGE_URL is not set" in problem

    monkeypatch.setenv("OFFLINE_DQN_PAGE_URL", receiver.address)
    receiver.status = 200
    assert tell(told, [FAILED], {"night"}, at=NOON) == ()
    assert tell(told, [FAILED], {"night"}, at=NOON) == ()
    assert len(receiver.got) == 1


def test_a_planned_window_holds_tickets_back_until_it_ends(fresh: Workspace, receiver: Receiver) -> None:
    told = configured(fresh, 'quiet = [{ begins = "11:00", ends = "13:00" }]')
    tell(told, [FAILED, DRIFTED], set(), at=NOON)
    assert receiver.titles == ["[page] autoscaler (fresh): the night failed in train"]

    tell(told, [], set(), at=NOON + timedelta(hours=1))
    assert receiver.titles[1:] == ["[ticket] autoscaler (fresh): the world has drifted"]


def test_no_secret_is_written_logged_or_returned(
    told: Workspace, receiver: Receiver, run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    problems = []
    for address in (
        receiver.address,
        f"json://{SECRET}@127.0.0.1:9/{SECRET}",
        f"nosuch://{SECRET}",
        f"slack://{SECRET}",
    ):
        monkeypatch.setenv("OFFLINE_DQN_PAGE_URL", address)
        problems += tell(told, [FAILED], {"night"}, at=NOON)
        answer = run(told, "notify", "test")
        problems += [answer.out, answer.err]
    problems.append(run(told, "notify", "status").out)

    written = "".join(path.read_text() for path in told.root.rglob("*") if path.is_file())
    assert "holds no URL that Apprise understands" in "".join(problems)
    for kept in ("".join(problems), written, caplog.text):
        assert SECRET not in kept


def test_a_library_that_fails_fails_no_night(
    told: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ImportError(f"cannot import {receiver.address}")

    monkeypatch.setattr("apprise.Apprise", broken)

    (problem,) = tell(told, [FAILED], {"night"}, at=NOON)
    assert problem.endswith("the receiver in OFFLINE_DQN_PAGE_URL failed with ImportError")


def test_the_test_message_reaches_every_receiver(told: Workspace, receiver: Receiver, run: Run) -> None:
    good = run(told, "notify", "test")
    receiver.status = 500
    bad = run(told, "notify", "test", "--json")

    assert good.code == 0
    assert receiver.titles == ["[page] autoscaler (fresh): a test", "[ticket] autoscaler (fresh): a test"]
    assert bad.code == 1
    assert [s["problem"] for s in bad.json["sent"]] == [
        "the receiver in OFFLINE_DQN_PAGE_URL answered with status 500",
        "the receiver in OFFLINE_DQN_TICKET_URL answered with status 500",
    ]


def test_without_a_receiver_the_test_says_how_to_name_one(fresh: Workspace, run: Run) -> None:
    answer = run(fresh, "notify", "test")

    assert answer.code == 1
    assert 'page = ["OFFLINE_DQN_PAGE_URL"]' in answer.err


@pytest.mark.usefixtures("receiver")
def test_what_cannot_be_written_down_fails_nothing(told: Workspace) -> None:
    (told.root / "notify").write_text("a file where the folder should be")

    (problem,) = tell(told, [FAILED], {"night"}, at=NOON)

    assert problem.startswith("what was told could not be written down, so it may be told twice: ")


def record(**values: Any) -> NightRecord:
    found = {
        "as_of": "2026-01-05T23:50:00+00:00", "batch": "b-1", "status": "lake", "n_in": 12, "n_quarantined": 0,
        "drift": "stable", "decision": "none", "release": None, "value": None, "low": None, "high": None,
        "baseline": None, "gate": None, "reason": "Keep the champion.", "report": None, "seconds": {},
    }  # fmt: skip
    return NightRecord(**{**found, **values})


def test_a_calm_night_tells_nothing_and_ends_what_was_open() -> None:
    found = of_night(record(), [])

    assert found.notices == ()
    assert found.looked_for == {"night", "overdue", "batches", "review", "ingest", "drift", "promise"}
    assert "drift" not in of_night(record(drift="not measured"), []).looked_for  # nobody knows


def test_a_night_tells_of_drift_gate_promise_and_review_each_at_its_level() -> None:
    drifted = of_night(
        record(drift="drifted", decision="drift", release=2, gate="refused", reason="Refused: worse."),
        [],
        promise="release 1 broke its promise: over 9 episodes",
        moved=["request_rate"],
    )
    assert [(n.cause, n.level, n.state) for n in drifted.notices] == [
        ("promise", "page", ""),
        ("drift", "ticket", "request_rate"),
        ("gate", "ticket", "2"),
    ]
    assert drifted.notices[0].text.startswith("Release 1 broke its promise: over 9 episodes. `offline-dqn rollback`")

    passed = of_night(record(release=2, gate="passed", review="offline-dqn promote 2"), [])
    assert [(n.cause, n.level) for n in passed.notices] == [("review", "ticket")]


def test_a_failed_night_is_a_page_and_one_that_met_another_is_a_ticket() -> None:
    (page,) = of_failed_night("train", OSError(28, "No space left"), n_starts=2).notices
    (ticket,) = of_failed_night("", LockedError("in use by process 7"), n_starts=1).notices

    assert (page.level, page.state, page.title) == ("page", "train: OSError", "the night failed in train")
    assert "It was start 2 of this night." in page.text
    assert (ticket.level, ticket.text) == ("ticket", "in use by process 7")


def test_a_night_that_does_not_come_is_a_page_until_it_does(told: Workspace, receiver: Receiver, run: Run) -> None:
    first = run(told, "notify", "check")  # never had a night: nothing is missing
    assert first.code == 0
    assert "No night has ended here yet" in first.out
    append_night(told.nights_path, record(ended_at="2026-01-05T03:00:00+00:00"))

    assert run(told, "notify", "check").code == 0
    assert receiver.titles == ["[page] autoscaler (fresh): no night has ended since 2026-01-05 03:00 UTC"]
    append_night(told.nights_path, record(ended_at="2099-01-05T03:00:00+00:00"))  # by a clock that was ahead
    later = check_now(told, NOON + timedelta(days=2))
    assert later.notices[0].title == "no night has ended since 2026-01-05 03:00 UTC"
    append_night(told.nights_path, record(ended_at=datetime.now(UTC).isoformat()))
    assert "The last night ended on" in run(told, "notify", "check").out
    append_night(told.nights_path, record(ended_at=NOON.isoformat()))
    at_noon = check_now(told, NOON)
    assert (at_noon.notices, at_noon.looked_for) == ((), {"overdue", "batches", "ingest"})
