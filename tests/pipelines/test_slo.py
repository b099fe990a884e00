"""Error budgets of a workspace: counted from records, shown, exported, told to people; spent, nothing is promoted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from datasets.settings import SettingsError
from pipelines import promoting
from pipelines.canary import CanaryRefusedError, evaluate_canary, override_advance
from pipelines.canary_state import read_events
from pipelines.metrics.exposition import export
from pipelines.metrics.history import MetricHistory
from pipelines.metrics.server import read_server
from pipelines.metrics.values import Values
from pipelines.nights import NightRecord, append_night
from pipelines.notify.budgets import BUDGET, BURN, budget_notices
from pipelines.serving.switch import disable, enable
from pipelines.slo import standing
from pipelines.slo.config import SloConfig
from pipelines.slo.events import counted_events
from pipelines.slo.standing import standings, why_stopped
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.canary_world import START, Server, shifted, started, tiny_workspace
from tests.pipelines.conftest import Run

NIGHT = date(2026, 1, 5)
"""Of the simulated log, whose newest timestamp is now."""

ALL = """
[slo]
window_nights = 28

[slo.availability]
objective = 0.99

[slo.latency]
objective = 0.9
within_ms = 2

[slo.safety]
objective = 0.99

[slo.success]
objective = 0.5

[slo.in_charge]
objective = 0.9
"""


def configured(workspace: Workspace, text: str) -> Workspace:
    with (workspace.root / "offline_dqn.toml").open("a") as settings:
        settings.write(text)
    return open_workspace(workspace.root)


def measured(
    workspace: Workspace,
    night: date,
    *,
    answers: tuple[int, int, int] | None = None,
    broken: tuple[int, int] | None = None,
    **decided: int,
) -> None:
    """Keeps what a night found, as the nightly run does.

    Args:
        answers: of the policy server since its start: within 2 ms, all, refused for its own fault.
        broken: decisions that broke a constraint, and all that were judged.
        decided: decisions by who decided.
    """
    values, server = Values(), None
    if answers is not None:
        quick, n, faults = answers
        server = {"buckets": {"0.001": 0.0, "0.002": float(quick), "+Inf": float(n)}, "faults": float(faults)}
    if broken is not None:
        values.add("offline_dqn_safety_violation_ratio", broken[0] / broken[1])
        values.add("offline_dqn_safety_violation_judged_decisions", broken[1])
    for who, n in decided.items():
        values.add("offline_dqn_night_decisions", n, policy_version="1", decided_by=who)
    MetricHistory(workspace.metrics_path).record(night, values, server)


def night(ended_at: datetime, decision: str = "kept") -> NightRecord:
    return NightRecord(
        as_of=ended_at.isoformat(), batch="b-1", status="lake", n_in=1, n_quarantined=0, drift="stable",
        decision=decision, release=None, value=None, low=None, high=None, baseline=None, gate=None, reason="",
        report=None, seconds={"total": 1.0}, ended_at=ended_at.isoformat(),
    )  # fmt: skip


@pytest.fixture
def served(workspace: Workspace) -> Workspace:
    """Release 1 may be promoted again; objectives are watched, and two nights were measured."""
    workspace.registry.rollback(reviewer="Ada")
    workspace = configured(workspace, ALL)
    measured(workspace, NIGHT - timedelta(days=1), answers=(900, 1000, 0), broken=(1, 1000), policy=95, late=5)
    measured(workspace, NIGHT, answers=(1800, 2000, 40), broken=(2, 1000), policy=90, guard=4, late=6, unknown=7)
    return open_workspace(workspace.root)


def test_every_objective_is_counted_from_the_records(served: Workspace, run: Run) -> None:
    found = run(served, "slo", "--json").json

    # The server's counters grow from night to night: 1,000 answers, then 1,000 more and 40 refusals of its own.
    availability = found["slo"]["availability"]
    assert (availability["n_events"], availability["n_bad"]) == (2040, 40)
    assert availability["left"] == pytest.approx(1 - 40 / 20.4)
    assert availability["burn_rate"] == pytest.approx(40 / 1040 / 0.01)
    assert availability["state"] == "spent, burning"
    latency = found["slo"]["latency"]
    assert (latency["n_events"], latency["n_bad"], latency["left"], latency["spent"]) == (2000, 200, 0.0, True)
    safety = found["slo"]["safety"]
    assert (safety["n_events"], safety["n_bad"], safety["left"], safety["state"]) == (2000, 3, 0.85, "ok")
    in_charge = found["slo"]["in_charge"]
    assert (in_charge["n_events"], in_charge["n_bad"], in_charge["left"]) == (200, 15, 0.25)
    assert found["slo"]["success"]["state"] == "unknown"
    assert "no night of the window was measured" in found["slo"]["success"]["absent"]
    assert found["promotions_stopped_by"] == ["availability", "latency"]


def test_a_spent_budget_refuses_promotion_and_never_a_rollback(served: Workspace, run: Run) -> None:
    refused = run(served, "promote", 1, "--reviewer", "Ada")

    assert refused.code == 3
    said = " ".join(refused.err.split())
    assert "The error budgets are spent: availability (40 bad of 2,040 in 28 nights, 20.4 allowed by 99 %)" in said
    assert "`offline-dqn rollback` is never refused" in said
    assert served.registry.champion() == 0
    assert run(served, "slo", "--check").code == 3

    done = run(served, "promote", 1, "--reviewer", "Ada", "--override", "--note", "it is the remedy")
    assert done.code == 0
    assert "it is the remedy (although: The error budgets are spent: availability" in served.registry.history()[-1].note
    assert run(served, "rollback", "--reviewer", "Ada").code == 0
    assert served.registry.champion() == 0


def test_what_does_not_stop_promotions_is_shown_and_stops_none(workspace: Workspace, run: Run) -> None:
    workspace.registry.rollback(reviewer="Ada")
    loose = configured(workspace, "[slo.safety]\nobjective = 0.99\nstops_promotions = false\n")
    measured(loose, NIGHT, broken=(50, 1000))

    shown = run(loose, "slo")
    assert "spent, burning" in shown.out
    assert "not stopped by any budget" in shown.out
    assert run(loose, "slo", "--check").code == 0
    assert run(loose, "promote", 1, "--reviewer", "Ada").code == 0


def test_a_bad_night_that_leaves_the_window_stops_nothing_any_more(workspace: Workspace) -> None:
    aged = configured(workspace, ALL)
    measured(aged, NIGHT - timedelta(days=28), broken=(50, 1000))
    assert why_stopped(aged) == ""
    measured(aged, NIGHT - timedelta(days=27), broken=(50, 1000))
    assert "safety" in why_stopped(aged)


def test_another_now_brings_no_spent_budget_back(fresh: Workspace) -> None:
    today = datetime.now(UTC)
    spent = configured(fresh, "[slo.safety]\nobjective = 0.99\n")
    measured(spent, today.date(), broken=(50, 1000))
    for days in (-400, 400):
        moved = open_workspace(spent.root, today + timedelta(days=days))
        assert standings(moved, live=False)[0][0].state == "unknown"
        assert "safety (50 bad of 1,000" in why_stopped(moved)


def test_a_bad_night_ahead_of_the_clock_and_a_good_one_far_ahead_both_count(fresh: Workspace) -> None:
    today = datetime.now(UTC).date()
    spent = configured(fresh, "[slo.safety]\nobjective = 0.99\n")
    measured(spent, today + timedelta(days=3), broken=(50, 1000))
    assert "safety" in why_stopped(spent)
    measured(spent, today + timedelta(days=3), broken=(0, 1000))
    measured(spent, today, broken=(50, 1000))
    measured(spent, today + timedelta(days=400), broken=(0, 1000))
    assert "safety" in why_stopped(spent)


def test_the_view_tells_each_night(served: Workspace) -> None:
    sql = "SELECT night, n_events, n_bad, budget_left, spent FROM error_budgets WHERE slo = 'availability' ORDER BY 1"
    assert list(served.query(sql).rows) == [
        (date(2026, 1, 4), 1000.0, 0.0, 1.0, False),
        (date(2026, 1, 5), 1040.0, 40.0, pytest.approx(1 - 40 / 20.4), True),
    ]


def test_prometheus_is_told(served: Workspace) -> None:
    assert export(served) == []

    text = (served.metrics_path / "offline_dqn.prom").read_text()
    told = {
        (family.name, sample.labels["slo"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "slo" in sample.labels
    }
    assert told["offline_dqn_slo_spent", "availability"] == 1
    assert told["offline_dqn_slo_burning", "safety"] == 0
    assert told["offline_dqn_slo_budget_left_ratio", "safety"] == 0.85
    assert told["offline_dqn_slo_objective_ratio", "success"] == 0.5
    assert told["offline_dqn_slo_absent", "success"] == 1


def test_a_burn_rate_above_three_pages_and_a_spent_budget_is_a_ticket(served: Workspace) -> None:
    notices, looked_for = budget_notices(served)

    assert {notice.cause: notice.level for notice in notices} == {BURN: "page", BUDGET: "ticket"}
    burn = next(notice for notice in notices if notice.cause == BURN)
    assert burn.title == "the error budget of availability burns"
    assert "burns 3.85 times too fast, and is spent" in burn.text
    assert looked_for == {BURN, BUDGET}


def test_without_objectives_nothing_is_watched(fresh: Workspace, run: Run) -> None:
    assert standings(fresh, live=True) == ([], [])
    assert budget_notices(fresh) == ((), frozenset())
    assert "No objective is watched" in run(fresh, "slo").out
    assert run(fresh, "slo", "--check").code == 0


@pytest.fixture
def page() -> Iterator[tuple[str, list[str]]]:
    """A policy server's page of metrics on loopback."""
    text = [""]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text[0].encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics", text
    server.shutdown()
    server.server_close()


def test_an_outage_of_this_morning_stops_promotions_of_today(fresh: Workspace, page: tuple[str, list[str]]) -> None:
    address, text = page
    workspace = configured(fresh, f'[metrics]\nserver = "{address}"\n[slo.availability]\n')
    measured(workspace, datetime.now(UTC).date() - timedelta(days=1), answers=(1000, 1000, 0))
    assert "cannot be asked what is left of availability" in why_stopped(workspace)  # the page is none

    head = "# TYPE offline_dqn_act_seconds histogram\n"
    answered = 'offline_dqn_act_seconds_bucket{le="0.001",release="1"} 0\n'
    answered += 'offline_dqn_act_seconds_bucket{le="0.002",release="1"} 1000\n'
    answered += 'offline_dqn_act_seconds_bucket{le="+Inf",release="1"} 1500\n'
    text[0] = f'{head}{answered}# TYPE offline_dqn_refused counter\noffline_dqn_refused_total{{cause="log_full"}} 9\n'

    assert "availability (9 bad of 1,509 in 30 nights" in why_stopped(workspace)


def test_the_server_is_asked_once_and_what_a_restart_has_lost_is_said(
    fresh: Workspace, page: tuple[str, list[str]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, text = page
    text[0] = '# TYPE offline_dqn_act_seconds histogram\noffline_dqn_act_seconds_bucket{le="+Inf",release="1"} 1500\n'
    workspace = configured(fresh, f'[metrics]\nserver = "{address}"\n[slo.availability]\n')
    today = datetime.now(UTC).date()
    for days, n in ((40, 900), (39, 10), (3, 2000), (2, 50), (1, 60)):
        measured(workspace, today - timedelta(days=days), answers=(n, n, 0))
    asked = []
    monkeypatch.setattr(standing, "read_server", lambda address: asked.append(address) or read_server(address))

    found = run(workspace, "slo", "--json").json

    assert asked == [address]
    assert found["promotions_stopped_by"] == []
    pairs = [(3, 2), (1, 0)]  # the one of 39 days ago has left the window; today's page has other buckets
    assert [warning.partition(":")[0] for warning in found["warnings"]] == [
        f"the policy server was started again between its readings of {today - timedelta(days=before)} and "
        f"{today - timedelta(days=after)}"
        for before, after in pairs
    ]


def test_a_server_that_cannot_be_read_is_said_and_the_records_stand(fresh: Workspace, run: Run) -> None:
    workspace = configured(fresh, '[metrics]\nserver = "http://127.0.0.1:9/metrics"\n[slo.availability]\n')
    measured(workspace, NIGHT, answers=(1000, 1000, 0))

    found = run(open_workspace(workspace.root), "slo", "--as-of", "2026-01-05", "--json").json

    assert found["slo"]["availability"]["left"] == 1
    assert "127.0.0.1:9" in found["warnings"][0]
    assert "missing from availability" in found["warnings"][0]
    assert found["promotions_stopped_by"] == ["availability"]
    assert run(workspace, "slo", "--check").code == 3


def test_promotions_wait_for_a_server_that_cannot_be_read_unless_overridden(fresh: Workspace) -> None:
    unread = '[metrics]\nserver = "http://127.0.0.1:9/metrics"\n'
    watched = "[slo.availability]\nstops_promotions = false\n"
    assert why_stopped(configured(fresh, unread + watched)) == ""

    workspace = configured(fresh, "[slo.latency]\n")
    with pytest.raises(promoting.BudgetStopsError) as refused:
        promoting.refuse_spent_budget(workspace, 1, override=False)
    said = str(refused.value)
    assert "cannot be asked what is left of latency: http://127.0.0.1:9/metrics could not be read" in said
    assert "Start the policy server, or mend `server` under [metrics]" in said
    assert "--override and a --note" in said
    assert "although: The policy server cannot be asked" in promoting.refuse_spent_budget(workspace, 1, override=True)


def test_nights_are_in_time_by_the_clock_once_the_first_has_ended(fresh: Workspace) -> None:
    workspace = configured(fresh, '[slo.nights]\nby = 06:00:00\ntimezone = "Europe/Berlin"\n')
    for ended_at, decision in (
        (datetime(2026, 1, 1, 14, tzinfo=UTC), "no champion"),  # the first deadline is the next day's
        (datetime(2026, 1, 2, 4, 59, tzinfo=UTC), "kept"),  # 05:59 in Berlin
        (datetime(2026, 1, 3, 5, 1, tzinfo=UTC), "kept"),  # 06:01: late
        (datetime(2026, 1, 4, 3, tzinfo=UTC), "batch held"),  # nothing came of it
        # None on the 5th.
        (datetime(2026, 1, 6, 3, tzinfo=UTC), "kept"),
    ):
        append_night(workspace.nights_path, night(ended_at, decision))

    (before,), _ = standings(workspace, live=False, now=datetime(2026, 1, 5, 4, 59, tzinfo=UTC))
    (after,), _ = standings(workspace, live=False, now=datetime(2026, 1, 6, 12, tzinfo=UTC))

    assert before.budget is not None
    assert (before.budget.n_events, before.budget.n_bad, before.state) == (3, 2, "ok")
    assert after.budget is not None
    # Three late nights of the three that 30 nights at 90 % allow; 3 of the last 7 burn 3/7 / 0.1 = 4.3 times too fast.
    assert (after.budget.n_events, after.budget.n_bad, after.state) == (5, 3, "spent, burning")


@pytest.mark.parametrize("changes_on", [date(2026, 3, 29), date(2026, 10, 25)])
def test_each_night_counts_once_over_a_change_of_the_clocks(changes_on: date) -> None:
    # In UTC, 01:30 in Berlin lies on the day before in summer only: two deadlines on 29 March, none on 25 October.
    config = SloConfig.model_validate({"nights": {"by": "01:30:00", "timezone": "Europe/Berlin"}})
    assert config.nights is not None
    first = datetime.combine(changes_on - timedelta(days=3), time(0, 30), config.nights.zone)
    now = datetime.combine(changes_on + timedelta(days=3), time(1, 45), config.nights.zone)

    counted = counted_events(config, {}, [night(first)], now=now)["nights"].nights

    assert [events.night for events in counted] == [changes_on + timedelta(days=k) for k in range(-3, 4)]
    assert sum(events.n_bad for events in counted) == 6


def test_a_deadline_counts_as_soon_as_it_has_passed_though_in_utc_it_is_yesterday(fresh: Workspace) -> None:
    workspace = configured(fresh, '[slo.nights]\nby = 01:30:00\ntimezone = "Europe/Berlin"\n')
    append_night(workspace.nights_path, night(datetime(2026, 7, 1, 23, tzinfo=UTC)))  # 01:00 on the 2nd
    (found,), _ = standings(workspace, live=False, now=datetime(2026, 7, 1, 23, 45, tzinfo=UTC))
    assert found.budget is not None
    assert (found.budget.n_events, found.budget.n_bad) == (1, 0)


def test_a_step_by_hand_records_the_spent_budget_and_the_kill_switch_refuses_it(tmp_path: Path) -> None:
    workspace = tiny_workspace(tmp_path / "tiny", "[slo.safety]\nobjective = 0.99")
    started(workspace)
    measured(workspace, datetime.now(UTC).date(), broken=(50, 1000))
    at = START + timedelta(hours=1)

    disable(workspace.serving_path, by="Ada", note="odd decisions")
    with pytest.raises(CanaryRefusedError, match=r"thrown by Ada on .* \(odd decisions\).*`offline-dqn enable"):
        override_advance(workspace, reviewer="Grace", reason="it is the remedy", as_of=at)
    assert read_events(workspace)[-1]["canary"]["shares"][-1]["share"] == 0.2

    enable(workspace.serving_path, by="Ada", note="")
    assert override_advance(workspace, reviewer="Grace", reason="it is the remedy", as_of=at).share == 0.5
    said = read_events(workspace)[-1]["override"]["reason"]
    assert said.startswith("it is the remedy (although: The error budget is spent: safety (50 bad of 1,000")


def test_a_canary_is_not_promoted_while_a_budget_is_spent_and_is_afterwards(tmp_path: Path) -> None:
    settings = "min_episodes = 20\nmargin_sd = 0.5\nlate_margin = 0.05\nbreach_margin = 1.0"
    workspace = tiny_workspace(tmp_path / "tiny", f"{settings}\n[slo.safety]\nobjective = 0.99")
    server = Server(workspace)
    server.episodes(started(workspace, plan=(0.5, 1.0), share=0.5), 600, shifted(0.5))
    tonight = datetime.now(UTC).date()  # in which the canary's clock plays no part
    measured(workspace, tonight, broken=(50, 1000))

    held = evaluate_canary(workspace, server.later)

    assert held is not None
    assert held.verdict is not None
    assert (held.verdict.action, held.canary.running) == ("wait", True)
    assert "The error budget is spent: safety" in held.verdict.reason
    assert workspace.registry.champion() == 1

    measured(workspace, tonight, broken=(0, 1000))
    after = evaluate_canary(workspace, server.later)
    assert after is not None
    assert after.canary.ending == "promoted"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[slo.availability]\nobjective = 1.0", "slo.availability.objective: Input should be less than 1"),
        ("[slo.latency]\nwithin_ms = 50", "the server counts answers within 0.5, 1, 2, 4, 8"),
        ("[slo.safety]", "slo.safety.objective: missing"),
        ("[slo.availabilty]", "did you mean 'availability'?"),
        ('[slo.nights]\ntimezone = "Mars"', "no such time zone"),
    ],
)
def test_wrong_settings_are_told(fresh: Workspace, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")):
        _ = configured(fresh, text).config


def test_records_that_cannot_be_read_are_a_clear_refusal(served: Workspace, run: Run) -> None:
    (lines,) = served.metrics_path.glob("nights-*.jsonl")
    shutil.copy(lines, lines.with_suffix(".kept"))
    lines.write_text("{broken}\n" + json.dumps({}) + "\n")

    refused = run(served, "promote", 1, "--reviewer", "Ada")

    assert refused.code == 1
    assert "cannot be read" in refused.err
    assert served.registry.champion() == 0


def test_promoting_from_python_says_the_same(served: Workspace) -> None:
    with pytest.raises(promoting.BudgetStopsError, match="where this release is the remedy, give --override"):
        promoting.promote(served, 1, reviewer="Ada")
