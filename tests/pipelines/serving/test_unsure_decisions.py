"""A decision whose line the disk may have lost: it stands, and is neither drawn again nor contradicted."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.sentry.config import SentryConfig
from pipelines.sentry.telling import ServerFailures
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
from tests.pipelines.serving.running import OBSERVATION, logged, served_workspace


def failing(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("on_full", ["refuse", "baseline"])
def test_what_the_disk_may_have_lost_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_full: Any) -> None:
    workspace = served_workspace(tmp_path / "workspace", releases=1)
    config = ServeConfig(durability="disk", on_full=on_full, min_free_mb=0, seed=1)
    acting, contract, steps = ActingReleases(workspace), workspace.contract, workspace.logs_path
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
            ServerFailures(SentryConfig(), contract.name),
        )
        messages = ActMessages(contract, "server", 10)

        def act(number: int) -> dict[str, Any]:
            named = {"episode_id": "e", "decision_id": f"d{number}", "step": number, "observation": OBSERVATION}
            asked = messages.read(json.dumps(named).encode())
            return asyncio.run(service.act(asked, time.perf_counter()))[0]

        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", failing)
            for _ in range(2):
                with pytest.raises(RefusedRequestError) as refused:
                    act(0)
                assert (refused.value.status, refused.value.cause) == (503, "log_unsure")
        answers = [act(0), act(0), act(1)]
        service.close()

    lines = logged(workspace)
    assert [line["decision_id"] for line in lines] == ["d0", "d0", "d0", "d1"]
    assert lines[0] == lines[1] == lines[2]  # exact repeats, which ingest takes once
    assert answers[0] == answers[1]
    assert (answers[0]["action"], answers[0]["probability"]) == (lines[0]["action"], lines[0]["behavior_prob"])
