"""Outcomes on their way into the log: written once, answered one by one, and all forgotten if the disk is full."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog, LogFullError, LogUnsureError
from pipelines.serving.open_decisions import Verdict
from pipelines.serving.outcome import Outcome
from pipelines.serving.outcomes import ACCEPTED, NoOutcomesError, Outcomes
from tests.datasets.builders import tiny

TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)
CONTRACT = tiny(outcomes={"attribution_window": "30m"})


def outcome(name: str = "d", reward: float | None = -1.0, at: float = 1, **changes: Any) -> Outcome:
    return Outcome(name, TEN + timedelta(minutes=at), reward, **changes)


def opened(folder: Path, log: DecisionLog, **config: Any) -> Outcomes:
    outcomes = Outcomes(
        CONTRACT, ServeConfig(min_free_mb=0, **config), log, steps=folder / "steps", outcomes=folder / "outcomes"
    )
    outcomes.decided([("d", TEN)])
    return outcomes


def log_in(folder: Path) -> DecisionLog:
    return DecisionLog(folder / "outcomes", ServeConfig(min_free_mb=0))


def written(folder: Path) -> list[Any]:
    return [json.loads(line) for path in sorted((folder / "outcomes").glob("served-*")) for line in path.open()]


def test_each_outcome_of_a_request_has_its_own_fate(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        outcomes = opened(tmp_path, log)
        asked = [
            outcome(),
            outcome(),
            outcome("nobody"),
            outcome(at=-1),
            outcome(at=31),
            outcome(at=2, end="truncated"),
        ]
        verdicts = outcomes.take(asked)
        assert verdicts == ["new", "repeated", "unknown", "early", "late", "new"]
        assert [row["timestamp"] for row in written(tmp_path)] == [
            "2026-03-01T10:01:00.000000Z",
            "2026-03-01T10:02:00.000000Z",
        ]
        (verdict,) = outcomes.take([outcome(reward=None, at=3, end="terminated")])
        assert verdict == "contradicting"
        causes = [outcomes.cause(o, v) for o, v in zip(asked, verdicts, strict=True)]
        assert [bool(cause) for cause in causes] == [v not in ACCEPTED for v in verdicts]
        assert causes[2] == "no decision 'nobody' was made in the last 1:00:00; that of an older one would not count"


def test_unknown_outcomes_are_written_where_others_log_decisions_too(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        assert opened(tmp_path, log, unknown_outcomes="write").take([outcome("nobody")]) == ["unverified"]
    assert len(written(tmp_path)) == 1


def test_what_a_full_disk_refused_is_new_when_it_comes_again(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        outcomes = opened(tmp_path, log)
        assert outcomes.take([outcome()]) == ["new"]
        asked = [outcome(at=2, end="terminated"), outcome(at=3), outcome(at=2, end="terminated")]
        log._config = ServeConfig(min_free_mb=100_000_000)
        log._space_checked_at = float("-inf")
        for _ in range(2):
            with pytest.raises(LogFullError):
                outcomes.take(asked)
        log._config = ServeConfig(min_free_mb=0)
        assert outcomes.take(asked) == ["new", "new", "repeated"]
    assert len(written(tmp_path)) == 3


def test_what_the_disk_may_have_lost_is_written_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    config = ServeConfig(min_free_mb=0, durability="disk")
    with DecisionLog(tmp_path / "outcomes", config) as log:
        outcomes = opened(tmp_path, log)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", failing)
            for minute in (1, 2):  # sent again without a time of its own, it would count twice
                with pytest.raises(LogUnsureError):
                    outcomes.take([outcome(at=minute, is_timed=False)])
        assert outcomes.take([outcome(at=3, is_timed=False)]) == ["repeated"]
        assert outcomes.take([outcome(at=4, is_timed=False)]) == ["repeated"]
    first, *again = written(tmp_path)
    assert again == [first, first]


def test_an_outcome_sent_by_many_at_once_is_written_once(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        outcomes = opened(tmp_path, log)
        found: list[Verdict] = []
        threads = [threading.Thread(target=lambda: found.extend(outcomes.take([outcome()]))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(found) == {"new": 1, "repeated": 15}
    assert len(written(tmp_path)) == 1


def test_a_contract_without_outcomes_cannot_be_served(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, pytest.raises(NoOutcomesError, match=r"no table \[outcomes\], so every logged step"):
        Outcomes(tiny(), ServeConfig(), log, steps=tmp_path, outcomes=tmp_path)
