"""A real server on a free port: it decides as `act` says, and its log is the next night's."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.acting import act
from pipelines.serving.switch import switch_history
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run
from tests.pipelines.serving.running import (
    OBSERVATION,
    Server,
    configure,
    eventually,
    logged,
    make_champion,
    served_workspace,
    serving,
    start_server,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return served_workspace(tmp_path / "workspace")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Server]]:
    """A server that no test changes."""
    workspace = served_workspace(tmp_path_factory.mktemp("shared") / "workspace")
    with serving(workspace) as server:
        yield workspace, server


def test_it_decides_as_act_says_and_logs_what_it_drew_from(shared: tuple[Workspace, Server], tmp_path: Path) -> None:
    workspace, server = shared
    rows = [
        {"observation": {**OBSERVATION, "cpu": cpu, "replicas": replicas}, "available_actions": mask}
        for cpu, replicas, mask in [
            (0.1, 1, None),
            (0.9, 3, ["hold", "scale_up"]),
            (0.5, 1, ["scale_down", "hold"]),
            (0.5, 1, ["scale_down"]),
        ]
    ]
    path = tmp_path / "observations.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    status, answer = server.ask("/v1/act", {"decisions": [{"episode_id": "agrees", **row} for row in rows]})
    told = act(workspace, 1, path, "onnx")

    assert status == 200
    lines = [line for line in logged(workspace) if line["episode_id"] == "agrees"]
    for row, said, decision, line in zip(rows, told, answer["decisions"], lines, strict=True):
        assert decision["probabilities"] == pytest.approx(said["probabilities"], abs=1e-6)
        assert decision["decided_by"] == said["decided_by"] == line["decided_by"]
        assert decision["forbidden"] == said["forbidden"]
        assert line["behavior_probs"] == list(decision["probabilities"].values())
        assert line["behavior_prob"] == decision["probability"] == decision["probabilities"][decision["action"]] > 0
        assert (line["decision_id"], line["action"]) == (decision["decision_id"], decision["action"])
        assert line["observation"] == row["observation"]
        assert line["policy_version"] == "1"
    assert [decision["decided_by"] for decision in answer["decisions"]] == ["policy", "policy", "policy", "shield"]
    assert lines[3]["action"] == "hold"
    # What the shield takes away was not available; the safe action acts where nothing is left.
    assert [line.get("available_actions") for line in lines] == [
        ["hold", "scale_up"], ["hold", "scale_up"], ["hold"], ["hold"],
    ]  # fmt: skip
    assert len({line["timestamp"] for line in lines}) == len(lines)


def test_one_decision_is_answered_as_one(shared: tuple[Workspace, Server]) -> None:
    _, server = shared

    answer = server.act("one", decision_id="mine", step=4)

    assert answer["decision_id"] == "mine"
    assert answer["release"] == 1


BAD = [
    (b"{", 400, "malformed_json", "the body is no JSON"),
    (b'{"episode_id": "e", "observation": {"cpu": NaN}}', 422, "not_finite", "NaN"),
    (b"[1]", 422, "wrong_type", "wants a JSON object, found a list"),
    (b"", 400, "malformed_json", "the body is no JSON"),
    ({"observation": OBSERVATION}, 422, "missing", "episode_id"),
    ({"episode_id": "e"}, 422, "missing", "observation"),
    ({"episode_id": "e", "observation": OBSERVATION, "sense": 1}, 422, "unknown_field", "sense"),
    ({"episode_id": "e", "observation": {**OBSERVATION, "cpu": "0.5"}}, 422, "wrong_type", "observation.cpu"),
    ({"episode_id": "e", "observation": {**OBSERVATION, "cpu": True}}, 422, "wrong_type", "observation.cpu"),
    ({"episode_id": "e", "observation": {**OBSERVATION, "cpu": 1.5}}, 422, "out_of_range", "observation.cpu"),
    ({"episode_id": "e", "observation": {**OBSERVATION, "zone": ["a"]}}, 422, "wrong_type", "observation.zone"),
    (b'{"episode_id": "e", "observation": {"cpu": 1e999}}', 422, "not_finite", "observation.cpu"),
    ({"episode_id": "e", "observation": OBSERVATION, "available_actions": ["fly"]}, 422, "unknown_action", "fly"),
    ({"episode_id": "e", "observation": OBSERVATION, "available_actions": []}, 422, "empty_mask", "available_actions"),
    ({"episode_id": "e", "observation": OBSERVATION, "step": -1}, 422, "out_of_range", "step"),
    ({"episode_id": "e", "observation": OBSERVATION, "timestamp": "2026-01-01T00:00:00Z"}, 422, "unknown_field", ""),
    ({"decisions": []}, 422, "empty_batch", "decisions"),
    ({"decisions": [1]}, 422, "wrong_type", "decisions[0]"),
    ({"decisions": {}}, 422, "wrong_type", "decisions"),
    ({"decisions": [{}] * 1_001}, 413, "batch_too_large", "1,001 entries and serve.max_batch is 1,000"),
    (b'{"decisions": [' + b"{}," * 999_999 + b"{}]}", 413, "body_too_large", "serve.max_body_kb"),
]


@pytest.mark.parametrize(("body", "status", "cause", "words"), BAD)
def test_a_bad_request_is_refused_with_its_cause_and_nothing_is_logged(
    shared: tuple[Workspace, Server], body: object, status: int, cause: str, words: str
) -> None:
    workspace, server = shared
    before = len(logged(workspace))

    found, answer = server.ask("/v1/act", body)

    assert (found, answer["error"]["cause"]) == (status, cause), answer
    assert words in answer["error"]["message"]
    assert len(logged(workspace)) == before


def test_every_problem_of_a_batch_is_told_with_its_place(shared: tuple[Workspace, Server]) -> None:
    _, server = shared
    good = {"episode_id": "e", "observation": OBSERVATION}

    _, answer = server.ask(
        "/v1/act", {"decisions": [good, {**good, "step": "x"}, {**good, "observation": {**OBSERVATION, "zone": {}}}]}
    )

    assert [p["where"] for p in answer["error"]["problems"]] == ["decisions[1].step", "decisions[2].observation.zone"]


@pytest.mark.parametrize(
    ("path", "method", "cause"), [("/nix", "GET", "not_found"), ("/v1/act", "GET", "method_not_allowed")]
)
def test_other_paths_and_methods_are_told_in_json(
    shared: tuple[Workspace, Server], path: str, method: str, cause: str
) -> None:
    assert shared[1].ask(path, method=method)[1]["error"]["cause"] == cause


def test_a_decision_or_step_that_is_taken_is_refused(shared: tuple[Workspace, Server]) -> None:
    _, server = shared
    server.act("taken", decision_id="taken", step=3)
    ask = {"episode_id": "taken", "observation": OBSERVATION}

    id_again = server.ask("/v1/act", {**ask, "decision_id": "taken", "step": 4})
    step_again = server.ask("/v1/act", {**ask, "step": 3})

    assert (id_again[0], id_again[1]["error"]["cause"]) == (409, "decision_exists")
    assert (step_again[0], step_again[1]["error"]["cause"]) == (409, "step_taken")
    assert server.act("taken", step=4)["decided_by"] == "policy"


def test_a_decision_whose_answer_was_lost_is_answered_again_also_after_a_kill(workspace: Workspace) -> None:
    with serving(workspace) as server:
        first = server.act("again", decision_id="again", step=0)
        assert server.act("again", decision_id="again", step=0) == first
        server.process.kill()
    with serving(workspace) as server:
        assert server.act("again", decision_id="again", step=0) == first
        other = server.ask("/v1/act", {"episode_id": "x", "observation": OBSERVATION, "decision_id": "again"})

    assert (other[0], other[1]["error"]["cause"]) == (409, "decision_exists")
    assert len(logged(workspace)) == 1


def test_a_step_that_is_taken_is_refused_also_after_a_kill(workspace: Workspace) -> None:
    with serving(workspace) as server:
        server.act("goes on", step=3)
        server.process.kill()
    with serving(workspace) as server:
        again = server.ask("/v1/act", {"episode_id": "goes on", "observation": OBSERVATION, "step": 3})
        server.act("goes on", step=4)

    assert (again[0], again[1]["error"]["cause"]) == (409, "step_taken")
    assert [line["step"] for line in logged(workspace)] == [3, 4]


def test_openapi_follows_from_the_contract(shared: tuple[Workspace, Server]) -> None:
    status, page = shared[1].ask("/openapi.json")

    assert status == 200
    observation = page["components"]["schemas"]["Observation"]
    assert list(observation["properties"]) == list(OBSERVATION)
    assert observation["properties"]["cpu"] | {"description": ""} == {
        "type": "number",
        "minimum": 0.0,
        "maximum": 1.0,
        "title": "Cpu",
        "description": "",
    }
    assert "scale_down" in json.dumps(page["components"]["schemas"]["Decision"])
    for path, asked, answered in (("act", "Decision", "Answer"), ("outcomes", "Outcome", "OutcomeAnswer")):
        operation = page["paths"][f"/v1/{path}"]["post"]
        one, _ = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
        assert one == {"$ref": f"#/components/schemas/{asked}"}
        one, _ = operation["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
        assert one == {"$ref": f"#/components/schemas/{answered}"}
        assert "4XX" in operation["responses"]
    assert list(page["paths"]["/v1/ready"]) == ["get"]


def test_metrics_tell_who_decided(shared: tuple[Workspace, Server]) -> None:
    server = shared[1]
    server.act("counted")

    status, page = server.ask("/metrics")

    assert status == 200
    assert 'offline_dqn_champion{release="1"} 1.0' in page
    assert 'decided_by="policy",release="1"' in page
    assert 'offline_dqn_act_seconds_count{release="1"}' in page
    assert 'offline_dqn_log_lines{log="steps"}' in page


def test_before_the_first_promotion_version_zero_acts(tmp_path: Path) -> None:
    workspace = served_workspace(tmp_path / "workspace", releases=0, champion=None)
    with serving(workspace) as server:
        answer = server.act()

    assert (answer["decided_by"], answer["release"]) == ("baseline", 0)
    assert logged(workspace)[0]["policy_version"] == "0"
    assert answer["probabilities"] == pytest.approx({"scale_down": 0.7 / 3, "hold": 0.7 / 3, "scale_up": 0.3 + 0.7 / 3})


def test_a_promotion_and_a_rollback_act_within_a_second(workspace: Workspace) -> None:
    with serving(workspace) as server:
        assert server.act()["release"] == 1
        make_champion(workspace, 2)
        promoted_s = eventually(lambda: server.act()["release"] == 2)
        make_champion(workspace, 1, "rollback")
        back_s = eventually(lambda: server.act()["release"] == 1)

    assert max(promoted_s, back_s) < 3, "a busy machine is allowed three seconds here; a quiet one takes half of one"


def test_a_damaged_release_is_refused_and_the_old_one_goes_on(workspace: Workspace) -> None:
    weights = workspace.release_path(2) / "policy.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with serving(workspace) as server:
        make_champion(workspace, 2)
        eventually(lambda: server.ask("/v1/ready")[1]["refused"])
        assert server.act()["release"] == 1
        ready = server.ask("/v1/ready")[1]
        page = server.ask("/metrics")[1]
        weights.write_bytes(whole)
        make_champion(workspace, 2)
        eventually(lambda: server.act()["release"] == 2)
        assert server.ask("/v1/ready")[1]["refused"] == {}
        _, err = server.stop()

    assert ready["ready"] is True
    assert "policy.safetensors is altered" in ready["refused"]["2"]
    assert 'offline_dqn_release_refused{release="2"} 1.0' in page
    assert "release 2 is refused and release 1 goes on" in err


def test_the_kill_switch_works_when_releases_and_registry_are_gone(workspace: Workspace, run: Run) -> None:
    with serving(workspace) as server:
        workspace.releases_path.rename(workspace.root / "gone")
        assert server.act()["release"] == 1
        assert run(workspace, "disable", "--reviewer", "Ada", "--note", "it misbehaves").code == 0
        took_s = eventually(lambda: server.act()["decided_by"] == "baseline")
        ready = server.ask("/v1/ready")[1]
        twice = run(workspace, "disable", "--reviewer", "Grace")
        assert "The champion acts again" in run(workspace, "enable", "--reviewer", "Ada").out
        again = run(workspace, "enable", "--reviewer", "Ada")
        eventually(lambda: server.act()["release"] == 1)

    assert took_s < 3
    assert (ready["release"], ready["disabled"]["note"]) == (0, "it misbehaves")
    assert twice.code == again.code == 0
    assert "acts already" in twice.out
    assert "Ada" in twice.out  # who did it stays
    assert "Nothing is disabled" in again.out
    assert [line["action"] for line in switch_history(workspace.serving_path)] == ["disable", "enable"]


def test_a_disabled_server_starts_from_its_configuration_alone(workspace: Workspace, run: Run) -> None:
    run(workspace, "disable", "--reviewer", "Ada")
    workspace.releases_path.rename(workspace.root / "gone")
    with serving(workspace) as server:
        assert (server.act()["decided_by"], server.act()["release"]) == ("baseline", 0)
    (workspace.root / "gone").rename(workspace.releases_path)
    assert "The champion, release 1, acts again" in run(workspace, "enable", "--reviewer", "Ada").out


def test_the_kill_switch_does_not_promise_a_version_zero_that_there_is_not(workspace: Workspace, run: Run) -> None:
    settings = workspace.root / "offline_dqn.toml"
    before, found, _ = settings.read_text().partition("[baseline]")
    assert found
    settings.write_text(before)

    disabled = run(workspace, "disable", "--reviewer", "Ada")
    with serving(workspace) as server:
        answer = server.act()

    assert disabled.code == 1
    assert "no version 0 that could act in the champion's place" in disabled.err
    assert (answer["decided_by"], answer["release"]) == ("policy", 1)


def test_a_second_server_on_one_workspace_is_refused(workspace: Workspace) -> None:
    with serving(workspace) as server:
        second = start_server(workspace.root)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"is in use by process {server.process.pid}" in err


def test_sigterm_ends_it_with_every_answer_in_the_log(workspace: Workspace) -> None:
    with serving(workspace) as server:
        answers = [server.act(f"e{i}")["decision_id"] for i in range(20)]
        code, err = server.stop()

    assert code == 0, err
    assert [line["decision_id"] for line in logged(workspace)] == answers


def test_tokens_say_who_may_do_what(workspace: Workspace) -> None:
    act_token, read_token = "a" * 20, "b" * 20
    with serving(workspace, OFFLINE_DQN_SERVE_TOKENS=f"act:{act_token},read:{read_token}") as server:
        body = {"episode_id": "e", "observation": OBSERVATION}

        def ask(path: str, token: str | None, content: object = None) -> tuple[int, str | None]:
            status, answer = server.ask(path, content, headers={} if token is None else {"Authorization": token})
            return status, answer["error"]["cause"] if status >= 400 else None

        assert ask("/v1/health", None) == (200, None)
        assert ask("/v1/act", None, body) == (401, "token_missing")
        assert ask("/v1/act", "Bearer wrong", body) == (401, "token_wrong")
        assert ask("/v1/act", f"Basic {act_token}", body) == (401, "token_wrong")
        assert ask("/v1/act", f"Bearer {read_token}", body) == (403, "role_missing")
        assert ask("/v1/act", f"Bearer {act_token}", body) == (200, None)
        assert ask("/metrics", f"Bearer {act_token}") == (403, "role_missing")
        assert ask("/v1/release", f"Bearer {read_token}") == (200, None)
        assert ask("/openapi.json", None) == (401, "token_missing")
        assert ask("/openapi.json", f"Bearer {act_token}") == (200, None)
        # A probe learns that the server decides, and nothing of the workspace.
        assert server.ask("/v1/ready") == (200, {"ready": True})
        known = server.ask("/v1/ready", headers={"Authorization": f"Bearer {act_token}"})[1]
        assert known["champion"] == 1
    assert len(logged(workspace)) == 1


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (("--host", "0.0.0.0"), {}, "can be reached by other machines, and no token is set"),
        ((), {"OFFLINE_DQN_SERVE_TOKENS": "act:short"}, "wanted are at least 16"),
        ((), {"OFFLINE_DQN_SERVE_TOKENS": "boss:" + "x" * 20}, "begins with no role"),
    ],
)
def test_a_server_that_would_be_open_does_not_start(
    workspace: Workspace, options: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    process = start_server(workspace.root, *options, **environment)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert words in err
    assert "xxxx" not in err


def test_times_of_requests_are_taken_where_they_are_wanted_and_may_not_go_back(workspace: Workspace) -> None:
    configure(workspace, clock="request", seed=1)
    with serving(workspace) as server:
        server.act("t", timestamp="2026-03-01T12:00:00Z")
        back = server.ask(
            "/v1/act", {"episode_id": "t", "observation": OBSERVATION, "timestamp": "2026-03-01T11:00:00+00:00"}
        )
        zoneless = server.ask(
            "/v1/act", {"episode_id": "t", "observation": OBSERVATION, "timestamp": "2026-03-01T13:00:00"}
        )
        server.act("t", timestamp="2026-03-01T14:30:00+02:00")
        beyond = [
            server.ask("/v1/act", {"episode_id": f"u{number}", "observation": OBSERVATION, "timestamp": timestamp})
            for number, timestamp in enumerate(
                ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"]
            )
        ]

    assert [(status, answer["error"]["cause"]) for status, answer in beyond] == [(422, "out_of_range")] * 3
    assert (back[0], back[1]["error"]["cause"]) == (409, "clock_went_back")
    assert (zoneless[0], zoneless[1]["error"]["cause"]) == (422, "wrong_type")
    assert [line["timestamp"] for line in logged(workspace)] == [
        "2026-03-01T12:00:00.000000Z",
        "2026-03-01T12:30:00.000000Z",
    ]


def test_the_log_is_ingested_without_an_adapter(workspace: Workspace, run: Run) -> None:
    with serving(workspace) as server:
        for episode in range(5):
            for step in range(3):
                server.act(f"e{episode}", step=step)

    assert run(workspace, "ingest").code == 0

    asked = "SELECT count(*) AS n, min(decided_by) AS by, count(behavior_probs) AS known FROM steps"
    assert run(workspace, "query", asked, "--json").json["rows"] == [{"n": 15, "by": "policy", "known": 15}]
    assert run(workspace, "query", "SELECT reason FROM quarantine", "--json").json["rows"] == []


def test_outcomes_are_joined_by_the_next_night(workspace: Workspace, run: Run) -> None:
    with serving(workspace) as server:
        first, second = (server.act("e", step=step)["decision_id"] for step in (0, 1))

        def tell(**outcome: object) -> tuple[int, str]:
            status, answer = server.ask("/v1/outcomes", outcome)
            return status, answer["error"]["cause"] if status >= 400 else answer["status"]

        assert tell(decision_id=first, reward=-2.5) == (200, "new")
        assert tell(decision_id=first, reward=-2.5) == (200, "repeated")
        assert tell(decision_id="nobody's", reward=-1) == (404, "outcome_unknown")
        assert tell(decision_id=second, reward=-1, truncated=True, final_observation=OBSERVATION) == (200, "new")
        assert tell(decision_id=second, terminated=True) == (409, "outcome_contradicting")
        assert tell(decision_id=first, reward="much") == (422, "wrong_type")
        assert tell(decision_id=first) == (422, "empty_outcome")
        assert tell(decision_id=first, reward=-1, terminated=True, truncated=True) == (422, "contradiction")
        assert tell(decision_id=first, reward=-1, timestamp="2001-01-01T00:00:00Z") == (422, "outcome_early")
        told = {"outcomes": [{"decision_id": first, "reward": -0.5}, {"decision_id": "nobody's", "reward": -1}]}
        _, many = server.ask("/v1/outcomes", told)
        page = server.ask("/metrics")[1]
    with serving(workspace) as server:  # it remembers
        assert tell(decision_id=first, reward=-2.5) == (200, "repeated")

    assert [(o["status"], o["accepted"]) for o in many["outcomes"]] == [("new", True), ("unknown", False)]
    assert 'offline_dqn_outcomes_total{status="unknown"} 2.0' in page
    assert run(workspace, "ingest").code == 0
    asked = "SELECT status, count(*) AS n, sum(reward) AS reward FROM outcomes_status GROUP BY ALL"
    assert run(workspace, "query", asked, "--json").json["rows"] == [{"status": "counted", "n": 3, "reward": -4.0}]


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_what_would_damage_an_episode_is_refused_also_after_a_kill(
    workspace: Workspace, run: Run, durability: str
) -> None:
    configure(workspace, durability=durability)
    with serving(workspace) as server:

        def cause(path: str, **body: object) -> str:
            status, answer = server.ask(path, body)
            assert status == 409, answer
            return str(answer["error"]["cause"])

        def asked_on(episode: str, **more: object) -> str:
            return cause("/v1/act", episode_id=episode, observation=OBSERVATION, **more)

        first, last = (server.act("numbered", step=step)["decision_id"] for step in (0, 1))
        ended = server.act("timed")["decision_id"]
        assert cause("/v1/outcomes", decision_id=first, reward=-1, terminated=True) == "outcome_not_last"
        told = {"outcomes": [{"decision_id": name, "reward": -1, "terminated": True} for name in (first, last, ended)]}
        statuses = [answer["status"] for answer in server.ask("/v1/outcomes", told)[1]["outcomes"]]
        assert statuses == ["not_last", "new", "new"]
        assert (asked_on("numbered"), asked_on("timed", step=0)) == ("steps_mixed", "steps_mixed")
        assert (asked_on("numbered", step=2), asked_on("timed")) == ("episode_ended", "episode_ended")
        server.process.kill()
    with serving(workspace) as server:
        assert (asked_on("numbered"), asked_on("timed", step=0)) == ("steps_mixed", "steps_mixed")
        assert (asked_on("numbered", step=2), asked_on("timed")) == ("episode_ended", "episode_ended")
        assert cause("/v1/outcomes", decision_id=first, terminated=True) == "outcome_not_last"
        assert server.ask("/v1/outcomes", {"decision_id": last, "terminated": True})[1]["status"] == "repeated"

    assert run(workspace, "ingest").code == 0
    asked = "SELECT episode_id, n_steps, terminated, damage FROM episodes ORDER BY ALL"
    assert run(workspace, "query", asked, "--json").json["rows"] == [
        {"episode_id": "numbered", "n_steps": 2, "terminated": True, "damage": None},
        {"episode_id": "timed", "n_steps": 1, "terminated": True, "damage": None},
    ]


def test_what_misses_its_deadline_is_decided_by_version_zero(workspace: Workspace) -> None:
    configure(workspace, deadline_ms=0.001)  # which nothing can meet
    with serving(workspace) as server:
        answers = [server.act(f"e{i}") for i in range(20)]
        page = server.ask("/metrics")[1]

    assert {(answer["decided_by"], answer["release"]) for answer in answers} == {("late", 1)}
    assert answers[0]["probabilities"] == pytest.approx(
        {"scale_down": 0.7 / 3, "hold": 0.7 / 3, "scale_up": 0.3 + 0.7 / 3}
    )
    assert [line["decided_by"] for line in logged(workspace)] == ["late"] * 20
    assert 'offline_dqn_late_total{release="1"} 20.0' in page


def test_a_cap_holds_across_a_kill(tmp_path: Path) -> None:
    workspace = served_workspace(tmp_path / "workspace", releases=0, champion=None)  # whose rules like to scale up
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text() + '\n[actions.caps]\nscale_up = { at_most = 4, per = "1h" }\n')
    ask = {"observation": OBSERVATION, "available_actions": ["scale_up", "hold"]}
    for _ in range(3):
        with serving(workspace) as server:
            server.ask("/v1/act", {"decisions": [{"episode_id": f"{i}", **ask} for i in range(8)]})
            server.process.kill()

    lines = logged(workspace)
    assert len(lines) == 24
    assert [line["action"] for line in lines].count("scale_up") == 4
    assert {line["observation"]["taken_scale_up"] for line in lines[8:]} <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert lines[-1]["behavior_probs"] == [0.0, 1.0, 0.0]


def test_a_full_log_is_refused_or_met_by_version_zero_as_the_operator_chose(workspace: Workspace) -> None:
    configure(workspace, min_free_mb=1_000_000_000)
    with serving(workspace) as server:
        status, answer = server.ask("/v1/act", {"episode_id": "e", "observation": OBSERVATION, "step": 1})
        not_ready = server.ask("/v1/ready")
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text() + 'on_full = "baseline"\n')
    with serving(workspace) as server:
        unlogged = server.act("e", step=1)
        ready = server.ask("/v1/ready")

    assert (status, answer["error"]["cause"]) == (503, "log_full")
    assert (not_ready[0], not_ready[1]["ready"], not_ready[1]["release"]) == (503, False, 1)
    assert "serve.min_free_mb is 1000000000" in not_ready[1]["why"]
    assert (ready[0], ready[1]["ready"], "why" in ready[1]) == (200, True, False)
    assert (unlogged["decided_by"], unlogged["release"], unlogged["logged"]) == ("baseline", 0, False)
    assert logged(workspace) == []


def test_decisions_wait_for_the_disk_where_that_is_asked(workspace: Workspace) -> None:
    configure(workspace, durability="disk")
    with serving(workspace) as server:
        server.act()
        page = server.ask("/metrics")[1]

    assert 'offline_dqn_log_unsynced_bytes{log="steps"} 0.0' in page
    assert len(logged(workspace)) == 1


def test_a_workspace_without_outcomes_is_not_served(workspace: Workspace) -> None:
    contract = workspace.root / "contract.toml"
    contract.write_text(contract.read_text().partition("[outcomes]")[0])
    process = start_server(workspace.root)

    assert "has no table [outcomes]" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_https_is_served_with_a_certificate(workspace: Workspace) -> None:
    make_certificate(workspace.root)
    configure(workspace, tls_certificate="certificate.pem", tls_key="key.pem")
    with serving(workspace) as server:
        trusted = ssl.create_default_context(cafile=str(workspace.root / "certificate.pem"))
        with (
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET /v1/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: secure.recv(4096), b""))
        address = server.address
    (workspace.root / "key.pem").unlink()
    process = start_server(workspace.root)

    assert address.startswith("https://127.0.0.1:")
    assert answer.startswith(b"HTTP/1.1 200")
    assert "key.pem does not exist" in process.communicate(timeout=60)[1]


def test_a_body_that_does_not_arrive_is_given_up(workspace: Workspace) -> None:
    configure(workspace, request_timeout_s=0.3)
    with serving(workspace) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /v1/act HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        slow.settimeout(20)
        answer = b""
        while b'"cause":"body_timeout"' not in answer:  # headers and body may come apart
            received = slow.recv(4096)
            assert received, answer
            answer += received
        assert server.act()["release"] == 1


@pytest.mark.parametrize("begun", [b"", b"POST /v1/act HT"])
def test_a_connection_that_asks_nothing_is_given_up_and_one_between_requests_is_kept(
    workspace: Workspace, begun: bytes
) -> None:
    configure(workspace, request_timeout_s=0.3)
    with serving(workspace) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        kept.request("GET", "/v1/health")
        kept.getresponse().read()
        used = kept.sock
        slow.sendall(begun)
        slow.settimeout(20)
        assert slow.recv(4096) == b""
        time.sleep(0.5)
        kept.request("GET", "/v1/health")
        assert kept.getresponse().status == 200
        assert kept.sock is used
        kept.close()


def make_certificate(folder: Path) -> None:
    """A self-signed certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
