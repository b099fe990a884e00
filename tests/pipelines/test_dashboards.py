"""Dashboards and alerts: made from the definitions, and every series they ask for is exported by something."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jsonschema import Draft7Validator
from prometheus_client.parser import text_string_to_metric_families

from pipelines.metrics.alerts import alerts
from pipelines.metrics.dashboards import debug, executive, on_call
from pipelines.metrics.derived import derived_files
from pipelines.metrics.exposition import exposition
from pipelines.metrics.server import read_counters
from pipelines.metrics.values import Values
from pipelines.serving.metrics import Metrics
from reports.operating_metrics import IN_TIME_S, METRICS, SERVER_FAULTS, all_series

ROOT = Path(__file__).parents[2]
BOARDS = {"executive": executive(), "on call": on_call(), "debug": debug()}
OF_PROMETHEUS = {"up"}
RECORDED = set(re.findall(r"record: (\S+)", alerts()))


def policy_server() -> Callable[[], str]:
    """The page of a policy server that counts one of everything before each look at it."""
    now = SimpleNamespace(
        champion=SimpleNamespace(number=1),
        canary=SimpleNamespace(release=3, share=0.1),
        candidate=SimpleNamespace(number=3),
        disabled=None,
        refused=[2],
    )
    acting = SimpleNamespace(current=now)
    lag = {"n_lines": 1, "unsynced_bytes": 0, "unsynced_s": 0.0, "n_refused": 0, "n_sync_failures": 0, "n_disturbed": 0}
    metrics = Metrics(cast(Any, acting), [("steps", cast(Any, SimpleNamespace(lag=SimpleNamespace(**lag))))])

    def look() -> str:
        metrics.decided("1", "policy", "hold")
        metrics.answered("1", 0.003)
        metrics.forbidden(["keep_one"])
        metrics.guarded("1", "strange")
        metrics.refused("log_full")
        metrics.failed("1")
        return metrics.text().decode()

    return look


def served() -> str:
    """The page of a policy server that has counted one of everything."""
    return policy_server()()


def exported() -> dict[str, set[str]]:
    """Label names by series: of the policy server's page, of a night's file, and of the recorded ones."""
    found: dict[str, set[str]] = {series.name: {"problem", *series.labels} for series in all_series()}
    for family in text_string_to_metric_families(served()):
        for sample in family.samples:
            found.setdefault(sample.name, {"problem"}).update(sample.labels)  # the scrape adds the problem
    return {
        **found,
        **{name: set() for name in RECORDED},
        **{name: {"problem", "job", "instance"} for name in OF_PROMETHEUS},
    }


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Series and the labels that are matched on each."""
    for name, labels in re.findall(r"(offline_dqn[a-z0-9_:]*|\bup\b)(\{[^}]*\})?", expression):
        yield name, set(re.findall(r"(\w+)=", labels))


def expressions(board: dict[str, Any]) -> list[str]:
    of_panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [*of_panels, *(annotation["target"]["expr"] for annotation in board["annotations"]["list"])]


EVERY = [(name, text) for name, board in BOARDS.items() for text in expressions(board)] + [
    ("alerts", text) for text in re.findall(r"expr: (.*)", alerts())
]


def test_what_lies_in_the_folder_follows_from_the_definitions() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, content in derived_files(page).items():
        assert (ROOT / name).read_text(encoding="utf-8") == content, f"{name}: run `make derived`"


@pytest.mark.parametrize(("where", "expression"), EVERY)
def test_every_series_that_is_asked_for_is_exported_with_these_labels(where: str, expression: str) -> None:
    known = exported()
    series = list(asked(expression))
    assert series, f"{where} asks for nothing in {expression}"
    for name, labels in series:
        assert name in known, f"{where}: nothing exports {name}"
        assert labels <= known[name] | {"le"}, f"{where}: {name} has the labels {known[name]}"


def test_legends_and_summaries_name_labels_that_the_series_have() -> None:
    every = {label for labels in exported().values() for label in labels}
    for board in BOARDS.values():
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= every
    assert set(re.findall(r"\$labels\.(\w+)", alerts())) <= every


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {name for _, text in EVERY for name, _ in asked(text)}
    live = {"decision_latency", "availability"}  # asked of the policy server itself, which is newer than last night
    assert {metric.key for metric in METRICS if not {s.name for s in metric.series} & shown} <= live


def test_the_night_reads_what_the_policy_server_shows() -> None:
    counters = read_counters(served())
    assert counters.answered == 1
    assert counters.faults == 1
    assert repr(IN_TIME_S) in counters.buckets
    source = "".join(path.read_text() for path in (ROOT / "pipelines" / "serving").glob("*.py"))
    for cause in SERVER_FAULTS:
        assert f'"{cause}"' in source, f"the server refuses nothing for {cause}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_is_what_grafana_s_published_schema_wants(board: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "grafana_dashboard.schema.json").read_text())
    # Of annotations it knows those of Grafana's own data source alone, and says so in its description ("TODO").
    schema["definitions"]["AnnotationTarget"] = {}

    problems = [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(board)]

    assert problems == []


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_fill_the_grid_without_overlap_and_explain_themselves(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"].strip().endswith((".", ").", "`finds them.")), panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on PATH")
    return subprocess.run([found, *map(str, arguments)], input=text, capture_output=True, text=True, check=False)


def test_promtool_takes_every_rule_and_every_query(tmp_path: Path) -> None:
    queries = [text.replace("$problem", ".*") for _, text in EVERY]
    rules = [f"  - record: a:b{i}\n    expr: {json.dumps(text)}\n" for i, text in enumerate(queries)]
    (tmp_path / "queries.yml").write_text("groups:\n- name: queries\n  rules:\n" + "".join(rules))

    checked = promtool("check", "rules", ROOT / "dashboards" / "alerts.yml", tmp_path / "queries.yml")

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire_when_they_should_and_not_before() -> None:
    tested = promtool("test", "rules", ROOT / "dashboards" / "alerts_test.yml")

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus on loopback that scrapes one of every series, and evaluates the rules each second."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not on PATH")
    values = Values()
    for series in all_series():
        labels = {name: "5" if name == "update" else "x" for name in series.labels}
        values.add(series.name, 1, **labels)
    night = exposition(values.values, "tiny")
    pages = {"/night": lambda: night, "/server": policy_server()}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(pages[self.path]().encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yml").write_text(alerts().replace("interval: 1m", "interval: 1s"))
    jobs = [("node", "/night"), ("offline_dqn_serve", "/server")]
    scrapes = [
        {
            "job_name": job,
            "metrics_path": path,
            "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"], "labels": {"problem": "tiny"}}],
        }
        for job, path in jobs
    ]
    config = {"global": {"scrape_interval": "1s"}, "rule_files": ["alerts.yml"], "scrape_configs": scrapes}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            found,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("wb"),
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            time.sleep(0.5)
            assert process.poll() is None, (folder / "stderr").read_text()
            if answers(address, "offline_dqn:slow_requests:ratio_rate3d or offline_dqn:request_errors:ratio_rate3d"):
                break
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
        server.shutdown()
        server.server_close()


def answers(address: str, expression: str) -> list[Any]:
    """Samples of an instant query; none while it is not ready."""
    query = urllib.parse.urlencode({"query": expression.replace("$problem", ".*")})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=5) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return []
    except urllib.error.URLError:
        return []
    return found


def test_a_real_prometheus_answers_every_panel(prometheus: str) -> None:
    time.sleep(2)  # a rate wants two scrapes
    silent = {}
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                if not answers(prometheus, target["expr"]):
                    silent[f"{name}: {panel['title']}"] = target["expr"]
    assert silent == {}
