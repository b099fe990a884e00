"""The ten metrics of a workspace: kept by night, in a view, on the command line, and told to Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.metrics.command import _reasons
from pipelines.metrics.exposition import ExportError, export, exposition, push_exposition, write_exposition
from pipelines.metrics.history import MetricHistory, NightMetrics
from pipelines.metrics.measuring import measure
from pipelines.metrics.server import Counters, described, read_counters, server_metrics
from pipelines.metrics.values import Value, Values
from pipelines.nights import NightRecord, append_night
from pipelines.workspace import Workspace, open_workspace
from reports.operating_metrics import METRICS, all_series
from tests.pipelines.conftest import Run

NIGHT = date(2026, 1, 5)

PAGE = """# HELP offline_dqn_act_seconds Seconds.
# TYPE offline_dqn_act_seconds histogram
offline_dqn_act_seconds_bucket{le="0.001",release="1"} 50.0
offline_dqn_act_seconds_bucket{le="0.002",release="1"} 90.0
offline_dqn_act_seconds_bucket{le="0.004",release="1"} 100.0
offline_dqn_act_seconds_bucket{le="+Inf",release="1"} 100.0
offline_dqn_act_seconds_bucket{le="0.001",release="0"} 0.0
offline_dqn_act_seconds_bucket{le="0.002",release="0"} 0.0
offline_dqn_act_seconds_bucket{le="0.004",release="0"} 100.0
offline_dqn_act_seconds_bucket{le="+Inf",release="0"} 100.0
# HELP offline_dqn_refused_total Requests.
# TYPE offline_dqn_refused_total counter
offline_dqn_refused_total{cause="log_full"} 5.0
offline_dqn_refused_total{cause="unknown_action"} 400.0
"""
"""200 answers: 50 within 1 ms, 90 within 2 ms, all within 4 ms. 5 refusals that are the server's own fault."""


@pytest.fixture(scope="module")
def measured(first_night: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace after its first night, measured. Not to be changed."""
    root = tmp_path_factory.mktemp("measured") / "workspace"
    shutil.copytree(first_night, root)
    workspace = open_workspace(root)
    append_night(workspace.nights_path, night_record())
    assert measure(workspace).warnings == []
    return workspace


def night_record() -> NightRecord:
    """Of the night in which release 1 was trained."""
    return NightRecord(
        as_of="2026-01-05T23:50:00+00:00", batch="b-1", status="lake", n_in=12000, n_quarantined=0,
        drift="not measured", decision="no champion", release=1, value=None, low=None, high=None, baseline=None,
        gate="passed", reason="Passed.", report=None, seconds={"total": 1.0},
    )  # fmt: skip


def families(workspace: Workspace) -> dict[str, Any]:
    text = (workspace.metrics_path / "offline_dqn.prom").read_text()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_metric_has_a_value_or_a_reason(measured: Workspace) -> None:
    rows = measured.query("SELECT metric, value, reason FROM metrics WHERE NOT is_detail").rows

    assert sorted(metric for metric, _, _ in rows) == sorted(metric.key for metric in METRICS)
    for metric, value, reason in rows:
        assert (value is None) == bool(reason), metric
    known = {metric: value for metric, value, _ in rows if value is not None}
    returns = measured.query('SELECT avg("return") FROM episodes WHERE complete AND damage IS NULL').rows
    assert known["mean_episode_return"] == pytest.approx(returns[0][0])
    assert 0 < known["action_success_rate"] < 1


def test_what_cannot_be_known_is_absent_and_never_zero(measured: Workspace) -> None:
    found = families(measured)

    absent = {sample.labels["metric"]: sample.labels["reason"] for sample in found["offline_dqn_metric_absent"].samples}
    assert absent["availability"].startswith("no policy server is configured")
    assert absent["regret"] == "version 0 itself wrote every episode of the night"
    for metric in METRICS:
        assert (metric.name in found) != (metric.key in absent), metric.key


def test_the_file_is_what_promtool_takes(measured: Workspace) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH")
    text = (measured.metrics_path / "offline_dqn.prom").read_bytes()

    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_measuring_again_adds_no_line(measured: Workspace, tmp_path: Path) -> None:
    shutil.copytree(measured.root, tmp_path / "again")
    again = open_workspace(tmp_path / "again")
    (lines,) = again.metrics_path.glob("nights-*.jsonl")
    before = lines.read_text()

    done = measure(again, everything=True)

    assert (done.changed, done.warnings) == ([], [])
    assert lines.read_text() == before


def test_a_line_that_a_crash_cut_off_did_not_happen(measured: Workspace, tmp_path: Path) -> None:
    shutil.copytree(measured.metrics_path, tmp_path / "metrics")
    (lines,) = (tmp_path / "metrics").glob("nights-*.jsonl")
    whole = MetricHistory(tmp_path / "metrics").nights()
    with lines.open("a") as file:
        file.write('{"night": "2026-01-06", "val')

    assert list(MetricHistory(tmp_path / "metrics").nights()) == list(whole)


def test_the_command_prints_nights_and_reasons(measured: Workspace, run: Run) -> None:
    table = run(measured, "metrics")
    assert table.code == 0
    assert "mean episode return" in table.out
    assert "no policy server is configured" in table.out

    (night,) = run(measured, "metrics", "--json").json["nights"]
    assert night["night"] == NIGHT.isoformat()
    assert night["metrics"]["availability"]["value"] is None
    assert night["metrics"]["availability"]["reason"]
    assert night["metrics"]["mean_episode_return"]["value"] < 0


def test_reasons_are_given_for_every_night_that_is_shown() -> None:
    def night(day: int, **absent: str) -> NightMetrics:
        return NightMetrics(date(2026, 1, day), datetime(2026, 1, day, tzinfo=UTC), Values([], absent))

    found = [night(5, regret="r", drift="x"), night(6, regret="r"), night(7, regret="r"), night(8, regret="q")]
    reasons = {title: said for title, said in _reasons(found).items() if said}

    assert reasons == {
        "regret against the baseline": "q (2026-01-08); r (2026-01-05 to 2026-01-07)",
        "drift": "x (2026-01-05)",
    }


def test_a_file_that_cannot_be_written_is_a_warning_with_the_remedy(measured: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"folder does not exist.*prometheus_file"):
        write_exposition(tmp_path / "nowhere" / "a.prom", "")

    settings = measured.root / "offline_dqn.toml"
    shutil.copytree(measured.root, tmp_path / "workspace")
    (tmp_path / "workspace" / "offline_dqn.toml").write_text(
        settings.read_text() + '\n[metrics]\nprometheus_file = "/nowhere/a.prom"\npush_gateway = "http://127.0.0.1:9"\n'
    )
    warnings = export(open_workspace(tmp_path / "workspace"))
    assert len(warnings) == 2
    assert "127.0.0.1:9" in warnings[1]


def test_labels_are_escaped_as_the_format_wants() -> None:
    values = Values()
    values.add("offline_dqn_metric_absent", 1, metric="drift", reason='a "quoted" \\ and\nbroken line')

    (family,) = text_string_to_metric_families(exposition(values.values, 'pro"blem'))

    (sample,) = family.samples
    assert sample.labels == {
        "problem": 'pro"blem', "metric": "drift", "reason": 'a "quoted" \\ and\nbroken line',
    }  # fmt: skip


def test_a_series_takes_the_labels_that_are_defined_and_no_number_that_is_none() -> None:
    values = Values()
    with pytest.raises(ValueError, match="has the labels"):
        values.add("offline_dqn_regret", 1.0, stage="train")
    values.add("offline_dqn_regret", float("nan"))
    values.add("offline_dqn_regret", None)
    assert values.values == []


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A push gateway and a page of metrics on loopback, and what they were sent."""
    received: list[tuple[str, str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.command, self.path, body))
            self.send_response(400 if b"refuse me" in body else 200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_a_push_replaces_the_group_of_the_problem(receiver: tuple[str, list[tuple[str, str, bytes]]]) -> None:
    address, received = receiver
    text = exposition([Value("offline_dqn_regret", {}, -0.5)], "a/b")

    push_exposition(address, text, problem="a/b", timeout_s=5)

    assert received == [("PUT", "/metrics/job/offline_dqn/problem/a%2Fb", text.encode())]
    with pytest.raises(ExportError, match="refused with status 400"):
        push_exposition(address, "refuse me", problem="a", timeout_s=5)


def test_latency_and_availability_by_hand() -> None:
    values = described(read_counters(PAGE))

    # p95 is rank 190 of 200, in the bucket from 2 to 4 ms that holds ranks 90 to 200: 2 + 2 * 100 / 110.
    assert values.of("offline_dqn_decision_latency_p95_seconds") == pytest.approx(0.002 + 0.002 * 100 / 110)
    assert values.of("offline_dqn_decision_latency_p99_seconds") == pytest.approx(0.002 + 0.002 * 108 / 110)
    assert values.of("offline_dqn_availability_ratio") == pytest.approx(200 / 205)


def test_a_night_counts_what_came_since_the_last_and_all_after_a_restart() -> None:
    now = read_counters(PAGE)
    earlier = Counters({"0.001": 50, "0.002": 60, "0.004": 60, "+Inf": 60}, 5)

    assert now.since(earlier) == Counters({"0.001": 0, "0.002": 30, "0.004": 140, "+Inf": 140}, 0)
    assert now.since(Counters({**now.buckets, "+Inf": 300}, 5)) == now


def test_a_server_that_is_silent_idle_or_slower_than_its_buckets_is_absent_with_the_reason() -> None:
    silent, state = server_metrics("http://127.0.0.1:9/metrics", None)
    assert state is None
    assert "127.0.0.1:9" in silent.absent["availability"]

    assert "asked for nothing" in described(Counters({"+Inf": 0})).absent["decision_latency"]
    slow = described(Counters({"4.0": 10, "+Inf": 100}))
    assert "longer than the last bucket" in slow.absent["decision_latency"]
    assert slow.of("offline_dqn_availability_ratio") == 1
    with pytest.raises(ValueError, match="no policy server's"):
        read_counters("# TYPE a gauge\na 1\n")


def test_a_policy_server_s_page_becomes_the_night_s_metrics(
    measured: Workspace, tmp_path: Path, receiver: tuple[str, list[tuple[str, str, bytes]]]
) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(measured.root, root)
    text = (root / "offline_dqn.toml").read_text()
    (root / "offline_dqn.toml").write_text(f'{text}\n[metrics]\nserver = "{receiver[0]}/metrics"\n')
    workspace = open_workspace(root)

    assert measure(workspace).changed == [NIGHT]

    night = MetricHistory(workspace.metrics_path).nights()[NIGHT]
    assert night.of("availability") == pytest.approx(200 / 205)
    assert night.server == read_counters(PAGE).to_json()
    assert "availability" not in night.values.absent
    lines = (workspace.metrics_path / "nights-2026-01.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["server"] is None


def test_the_series_of_the_file_are_those_that_are_defined(measured: Workspace) -> None:
    defined = {one.name.removesuffix("_total") for one in all_series()}
    assert set(families(measured)) <= defined


def test_a_rollback_is_told_to_prometheus_at_once(measured: Workspace, tmp_path: Path, run: Run) -> None:
    shutil.copytree(measured.root, tmp_path / "workspace")
    workspace = open_workspace(tmp_path / "workspace")

    assert run(workspace, "rollback", "--reviewer", "Ada").code == 0

    found = families(workspace)
    assert [sample.value for sample in found["offline_dqn_champion_release"].samples] == [0]
    changes = {s.labels["action"]: s.value for s in found["offline_dqn_champion_changes"].samples}
    assert changes == {"promote": 1, "rollback": 1}
