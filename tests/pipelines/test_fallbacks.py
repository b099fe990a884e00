"""What a release left to version 0, counted from the log, and told beyond a share."""

from __future__ import annotations

import json

import pytest

from pipelines import stages
from pipelines.fallbacks import Fallbacks, late_share, live_fallbacks
from pipelines.nights import COLUMNS, NightRecord
from pipelines.workspace import Workspace


def test_the_log_says_who_decided(fresh: Workspace) -> None:
    stages.simulate(fresh, n_episodes=50)
    (log,) = fresh.logs_path.glob("*.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    for i, step in enumerate(steps):
        step["policy_version"] = "3" if i % 2 == 0 else "4"
        step["decided_by"] = "guard" if i % 20 == 0 else "late" if i % 50 == 2 else "policy"
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    stages.ingest(fresh)
    own = [step["decided_by"] for step in steps[::2]]

    found = live_fallbacks(fresh, 3)

    assert found == Fallbacks(3, len(own), own.count("guard"), own.count("late"))
    assert found.n_guard > 10
    assert found.n_late > 2
    assert late_share(fresh, 3) == own.count("late") / len(own)
    for nobody in (None, 0, 5):
        assert live_fallbacks(fresh, nobody) is None
        assert late_share(fresh, nobody) == 0.0


def test_beyond_a_share_somebody_is_told() -> None:
    found = Fallbacks(release=3, n_decisions=1_000, n_guard=60, n_late=5)
    assert found.alert(0.065) == ""
    assert found.alert(0.05).startswith(
        "version 0 made 6.5% of release 3's 1,000 live decisions (guard 6.0%, late 0.5%), more than guard.alert_share"
    )


@pytest.mark.parametrize(("share", "shown"), [(None, "-"), (0.0123, "1.2%")])
def test_a_night_shows_the_share(share: float | None, shown: str) -> None:
    night = NightRecord(
        as_of="2026-01-01T00:00:00+00:00", batch=None, status="", n_in=0, n_quarantined=0, drift="", decision="",
        release=None, value=None, low=None, high=None, baseline=None, gate=None, reason="", report=None, seconds={},
        fallback_share=share, warnings=[],
    )  # fmt: skip
    assert dict(zip(COLUMNS, night.row(), strict=True))["to version 0"] == shown
    assert NightRecord.from_json(night.to_json()) == night
