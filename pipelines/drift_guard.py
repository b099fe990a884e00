"""The guard against poisoned and gamed data: where live episodes come from, and what the contract wants of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.duck import duck
from datasets.lake import Lake
from datasets.replay import Replay
from datasets.step_rules import Judged
from drift.config import DriftConfig
from drift.gaming import DeclaredOutcome, StepRate, reward_against_outcomes
from drift.records import DriftReport
from drift.suspicion import Grouping, confined_shifts
from drift.windows import DriftWindow
from reports.outcomes import outcomes_of

Labels = NDArray[np.str_]


def guarded(
    report: DriftReport,
    references: DriftWindow | Sequence[DriftWindow],
    live_window: DriftWindow,
    *,
    gate: Replay,
    live: Replay,
    lake: Lake,
    config: DriftConfig,
) -> DriftReport:
    """A drift report with what looks suspicious about it.

    Args:
        references: the windows that live nights were compared with; the first is that of `gate`.
        live_window: that of `live`.
        gate, live: the episodes themselves.

    Raises:
        ConstraintError: a condition of the contract fails on a step.
    """
    windows = [references] if isinstance(references, DriftWindow) else list(references)
    suspicions = reward_against_outcomes(
        windows[0], live_window, (_reward(gate), _reward(live)), _declared(gate, live), config
    )
    if report.drifted_columns:
        groupings = _groupings(lake, gate, live, len(windows))
        rng = np.random.default_rng([config.seed, 1])
        suspicions += confined_shifts(
            windows, live_window, report, config, groups=groupings, episodes=live.episode_ids.astype(str), rng=rng
        )
    return replace(report, suspicions=suspicions)


def _groupings(lake: Lake, gate: Replay, live: Replay, n_references: int) -> list[Grouping]:
    """By file, first without the numbers in its name, as yesterday's has others; by batch; and by who acted."""
    since = np.concatenate([gate.nights, live.nights]).min().astype(date)
    files, batches = _origins(lake, np.concatenate([gate.episode_ids, live.episode_ids]).astype(str), since)
    numberless = np.array([re.sub(r"\d+", "#", name) for name in files], dtype=str)
    versions = np.concatenate([gate.policy_versions, live.policy_versions]).astype(str)
    n, others = gate.n_episodes, (None,) * (n_references - 1)
    sources = [
        Grouping("few sources", labels[n:], (labels[:n] if (labels[:n] != "").all() else None, *others))
        for labels in (numberless, files, batches)
    ]
    return [*sources, Grouping("one policy version", versions[n:], (versions[:n], *others))]


def _origins(lake: Lake, episodes: Labels, since: date) -> tuple[Labels, Labels]:
    """(N,) log file and batch of each episode's first row; "" where the lake no longer has it.

    Args:
        since: night on which the first of them started; the lake's files of earlier nights are not opened.
    """
    wanted = pa.table({"episode_id": episodes, "place": np.arange(len(episodes))})
    with duck() as connection:
        connection.register("wanted", wanted)
        found = connection.sql(
            f"""SELECT place, arg_min(source, source_line) AS source, arg_min(batch_id, source_line) AS batch
            FROM {lake.scan("steps")} JOIN wanted USING (episode_id) WHERE log_date >= DATE '{since}' GROUP BY place"""
        ).to_arrow_table()
    files, batches = np.full(len(episodes), "", dtype=object), np.full(len(episodes), "", dtype=object)
    files[found["place"].to_numpy()] = found["source"].to_numpy(zero_copy_only=False)
    batches[found["place"].to_numpy()] = found["batch"].to_numpy(zero_copy_only=False)
    return files.astype(str), batches.astype(str)


def _reward(replay: Replay) -> StepRate:
    return StepRate(replay.rewards, np.ones(replay.n_steps, dtype=bool))


def _declared(gate: Replay, live: Replay) -> list[DeclaredOutcome]:
    """What both contracts declare, charged as the gate does: unanswered is breached, and no success."""
    before, now = outcomes_of(gate), outcomes_of(live)
    found = []
    if before.success is not None and now.success is not None:
        found.append(
            DeclaredOutcome("the success rate", True, *(_rate(s, False) for s in (before.success, now.success)))
        )
    for name in before.breaches.keys() & now.breaches.keys():
        sides = before.breaches[name], now.breaches[name]
        found.append(DeclaredOutcome(f"the breach rate of {name}", False, *(_rate(side, True) for side in sides)))
    return sorted(found, key=lambda outcome: outcome.name)


def _rate(judged: Judged, as_true: bool) -> StepRate:
    charged = judged.charged(as_true=as_true)
    return StepRate(charged.true.astype(np.float64), charged.known)
