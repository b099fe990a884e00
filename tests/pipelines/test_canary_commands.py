"""`offline-dqn canary` from a shell, on releases that a night made."""

from __future__ import annotations

import pytest

from pipelines.canary import CanaryRefusedError, _steps
from pipelines.workspace import Workspace
from reports.canary_config import CanaryConfig
from tests.pipelines.conftest import Run

AT = ("--as-of", "2026-02-01")


def test_a_canary_is_started_shown_and_aborted(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback", "--to", 0, "--reviewer", "Ada").code == 0
    started = run(workspace, "canary", "start", 1, "--share", 0.05, "--reviewer", "Ada", *AT, "--json")
    assert started.code == 0, started.err
    assert (started.json["share"], started.json["canary"]["champion"]) == (0.05, 0)
    assert started.json["canary"]["plan"][0] == 0.05
    again = run(workspace, "canary", "start", 1, "--reviewer", "Ada", *AT)
    assert (again.code, "Canary 1 of release 1 runs; one at a time" in again.err) == (3, True)
    shown = run(workspace, "canary", "status", *AT)
    assert shown.code == 0
    assert "Canary 1: release 1 against release 0, share 0.05" in shown.out
    assert "the candidate has 0 complete episodes, wanted are 50" in shown.out
    waiting = run(workspace, "canary", "advance", *AT, "--json")
    assert (waiting.code, waiting.json["did"], waiting.json["share"]) == (3, "", 0.05)
    forced = run(workspace, "canary", "advance", "--override", "quiet day", "--reviewer", "Grace", *AT, "--json")
    assert (forced.code, forced.json["share"]) == (0, 0.2)
    ended = run(workspace, "canary", "abort", "--reviewer", "Grace", "--note", "enough", *AT, "--json")
    assert (ended.code, ended.json["share"], ended.json["canary"]["reason"]) == (0, 0.0, "by Grace: enough")
    events = run(workspace, "canary", "status", *AT, "--json").json
    assert (events["running"], [event["event"] for event in events["events"]]) == (
        False, ["started", "advanced", "ended"],
    )  # fmt: skip
    assert run(workspace, "canary", "abort").code == 3


def test_only_a_release_that_may_be_promoted_is_tried(workspace: Workspace, run: Run) -> None:
    champion = run(workspace, "canary", "start", 1, "--reviewer", "Ada")
    unknown = run(workspace, "canary", "start", 7, "--reviewer", "Ada")
    baseline = run(workspace, "canary", "start", 0, "--reviewer", "Ada")
    assert (champion.code, "Release 1 is the champion already" in champion.err) == (1, True)
    assert (unknown.code, "There is no release 7" in unknown.err) == (1, True)
    assert (baseline.code, "Release 0 is the baseline" in baseline.err) == (3, True)
    assert run(workspace, "rollback", "--to", 0, "--reviewer", "Ada").code == 0
    assert run(workspace, "reject", 1, "--reviewer", "Grace", "--note", "too thirsty").code == 0
    rejected = run(workspace, "canary", "start", 1, "--reviewer", "Ada")
    assert (rejected.code, "was rejected by Grace" in rejected.err) == (3, True)
    assert not (workspace.root / "serving" / "canary.json").exists()


def test_no_canary_is_started_under_the_kill_switch(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback", "--to", 0, "--reviewer", "Ada").code == 0
    assert run(workspace, "disable", "--reviewer", "Grace", "--note", "pager").code == 0
    for override in ((), ("--override", "we know better")):
        refused = run(workspace, "canary", "start", 1, "--reviewer", "Ada", *override, *AT)
        assert refused.code == 3
        said = " ".join(refused.err.split())
        assert "The kill switch was thrown by Grace on " in said
        assert "(pager), so no canary is started. `offline-dqn enable --reviewer NAME` lets releases act again" in said
    assert not (workspace.root / "serving" / "canary.json").exists()
    assert run(workspace, "enable", "--reviewer", "Grace").code == 0
    assert run(workspace, "canary", "start", 1, "--reviewer", "Ada", *AT).code == 0


def test_a_release_that_lapsed_is_not_tried_either(workspace: Workspace, run: Run) -> None:
    assert run(workspace, "rollback", "--to", 0, "--reviewer", "Ada").code == 0
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text() + "\n[nightly]\nreview_days = 1e-6\n")
    lapsed = run(workspace, "canary", "start", 1, "--reviewer", "Ada")
    assert lapsed.code == 3, lapsed.err
    assert "Release 1 has lapsed" in lapsed.err
    assert not (workspace.root / "serving" / "canary.json").exists()


def test_wrong_usage_is_told_from_a_refusal(workspace: Workspace, run: Run) -> None:
    for wrong in (
        ("--plan", "a,b"), ("--block", "soon"), ("--override", "why"),
        ("--kind", "switchback", "--block", "10m", "--burn-in", "10m"),
    ):  # fmt: skip
        assert run(workspace, "canary", "start", 1, *wrong).code == 2, wrong
    assert run(workspace, "canary", "status").out.startswith("No canary has run")


def test_no_share_lies_above_the_certified_one_but_by_name_and_reason() -> None:
    config = CanaryConfig()
    assert _steps(None, None, config, 1.0, None) == (0.05, 0.2, 0.5, 1.0)
    assert _steps(None, 0.1, config, 1.0, None) == (0.1, 0.2, 0.5, 1.0)
    assert _steps(None, None, config, 0.3, None) == (0.05, 0.2)  # what nobody asked for is cut
    assert _steps((0.1, 0.9), None, config, 0.3, "we know better") == (0.1, 0.9)
    for plan, share, certified in (((0.1, 0.9), None, 0.3), (None, 0.4, 0.3), (None, None, 0.01), (None, None, 0.0)):
        with pytest.raises(CanaryRefusedError, match=f"The gate certified a share of {certified:.3g}"):
            _steps(plan, share, config, certified, None)
    for plan in ((0.5, 0.2), (1.0,), (0.0, 0.5), (0.5, 1.5), ()):
        with pytest.raises(CanaryRefusedError, match="plan"):
            _steps(plan, None, config, 1.0, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": (0.5, 0.5)}, "ascending shares"),
        ({"interval": "soon"}, "no duration"),
        ({"interval": "15d"}, "nobody would ever look"),
        ({"min_episodes": 3}, "greater than or equal to 20"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CanaryConfig(**settings)  # type: ignore[arg-type]  # on purpose
