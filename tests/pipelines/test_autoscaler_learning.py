"""The promise itself, where the truth is known: one logged night makes a policy that earns more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.simulators.autoscaler_logs import as_simulated
from datasets.simulators.service import ServiceParameters
from datasets.simulators.simulation import simulate_night, true_value, weekly_return
from datasets.simulators.threshold_rule import logging_policy
from pipelines import stages
from pipelines.acting import load_release
from pipelines.training import train
from pipelines.workspace import open_workspace, write_workspace
from tests.pipelines.conftest import edit

MARGIN = 0.4
"""Reward units per service-hour by which every candidate beats the policy that wrote its log."""

EVALUATION = """
[evaluate]
level = 0.99
n_replicates = 2000
fqe = { n_random_features = 200 }

[gate]
alpha = 0.05
overlap = { largest_tail_index = 0.99, largest_share = 1.0 }
"""
"""Every estimate is shown, also where the gate would not trust the overlap of a single night."""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_one_night_makes_a_policy_that_earns_more(seed: int, tmp_path: Path) -> None:
    settings = write_workspace(tmp_path / "workspace", "autoscaler").root / "offline_dqn.toml"
    edit(settings, "n_episodes = 4000", f"n_episodes = 4000\nseed = {seed}")
    edit(settings, "n_updates = 4000", f"n_updates = 2000\nseed = {seed}")
    edit(settings, "hidden = [128, 128]", "hidden = [64, 64]")
    settings.write_text(f"{settings.read_text()}\n{EVALUATION}")
    workspace = open_workspace(tmp_path / "workspace")
    stages.simulate(workspace)
    stages.ingest(workspace)
    snapshot, _ = stages.snapshot(workspace)
    outcome = stages.evaluate(workspace, train(workspace, snapshot).release)
    policy, gamma = as_simulated(load_release(workspace, 1)), workspace.contract.gamma

    parameters = ServiceParameters()
    candidate, before = (
        true_value(p, parameters, n_episodes=10_000, seed=7, gamma=gamma) for p in (policy, logging_policy())
    )
    week, week_before = (weekly_return(p, parameters, n_services=100, seed=7) for p in (policy, logging_policy()))
    # A night has traffic of its own: the same seed gives the candidate the very traffic that its log was written in.
    night = simulate_night(
        np.random.default_rng([seed, 1]), parameters, night=1, n_episodes=4000, policy=policy, policy_version="1"
    )
    truth = float((night.episodes.rewards @ gamma ** np.arange(parameters.steps_per_episode)).mean())
    estimate = outcome.evaluation.estimate("dr", "candidate")

    assert estimate is not None
    assert estimate.value is not None
    assert estimate.interval is not None
    print(
        f"\nseed {seed}: {before.value:.3f} -> {candidate.value:.3f} per hour (+{candidate.value - before.value:.3f}, "
        f"standard error {np.hypot(candidate.standard_error, before.standard_error):.3f}); week "
        f"{week_before.value:.3f} -> {week.value:.3f}; that night DR {estimate.value:.3f} "
        f"[{estimate.interval.low:.3f}, {estimate.interval.high:.3f}], truth {truth:.3f}; gate "
        f"{'passed' if outcome.passed else 'refused: ' + outcome.evaluation.decision.reason}"
    )
    assert candidate.value - before.value > MARGIN
    assert week.value - week_before.value > 0
    assert estimate.interval.low <= truth <= estimate.interval.high
