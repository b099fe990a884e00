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
from drift.few_groups import Grouping
from drift.gaming import DeclaredOutcome, StepRate, reward_against_outcomes
from drift.records import DriftReport, Suspicion
from drift.suspicion import confined_shifts
from drift.windows import DriftWindow
from reports.outcomes import outcomes_of

Labels = NDArray[np.str_]


def guarded(
    report: DriftReport,
    references: DriftWindow | Sequence[DriftWindow],
    live_window: DriftWindow,
    *,
    compared_with: Sequence[Replay],
    live: Replay,
    lake: Lake,
    config: DriftConfig,
) -> DriftReport:
    """A drift report with what looks suspicious about it.

    Args:
        references: the windows that live nights were compared with. Reward and outcomes are what actions move, so they
            are held against the last one.
        live_window: that of `live`.
        compared_with, live: the episodes themselves, of each reference and of the live nights.

    Raises:
        ConstraintError: a condition of the contract fails on a step.
    """
    windows = [references] if isinstance(references, DriftWindow) else list(references)
    reference, before, wanted = windows[-1], compared_with[-1], config.min_live_episodes
    outcomes, worth = _declared(before, live), reference.effective_episodes
    suspicions: tuple[Suspicion, ...] = ()
    not_looked_for = ""
    if outcomes and worth < wanted:
        not_looked_for = (
            "whether the reward rose while an outcome fell was not looked for: weighted to the acting policy, the "
            f"reference's {reference.n_episodes} episodes are worth {worth:.1f}, and it takes {wanted}"
        )
    else:
        rewards = _reward(before), _reward(live)
        suspicions = reward_against_outcomes(reference, live_window, rewards, outcomes, config)
    if report.drifted_columns:
        groupings = _groupings(lake, compared_with, live)
        rng = np.random.default_rng([config.seed, 1])
        suspicions += confined_shifts(
            windows, live_window, report, config, groups=groupings, episodes=live.episode_ids.astype(str), rng=rng
        )
    unasked = [said for said in (not_looked_for, _not_asked(report)) if said]
    return replace(report, suspicions=suspicions, not_looked_for="; ".join(unasked))


def _not_asked(report: DriftReport) -> str:
    """What drifted without a column of the live window that would say in which episodes."""
    parts = [f"the slow drift of {', '.join(one.name for one in report.slow)}"] if report.slow else []
    if any(test.drifted for test in report.joint) and not report.drifted_columns:
        parts.append("what all columns together show")
    if not parts:
        return ""
    return (
        f"whether few sources or episodes bring {' and '.join(parts)} was not looked for: only columns that drifted in "
        "the live window are asked for that"
    )


def _groupings(lake: Lake, compared_with: Sequence[Replay], live: Replay) -> list[Grouping]:
    """By file, first without the numbers in its name, as yesterday's has others; by batch; and by who acted."""
    replays = [*compared_with, live]
    since = np.concatenate([replay.nights for replay in replays]).min().astype(date)
    files, batches = _origins(lake, np.concatenate([replay.episode_ids for replay in replays]).astype(str), since)
    numberless = np.array([re.sub(r"\d+", "#", name) for name in files], dtype=str)
    ends = np.cumsum([replay.n_episodes for replay in replays])[:-1]
    found = []
    for labels in (numberless, files, batches):
        *references, now = np.split(labels, ends)
        known = tuple(reference if (reference != "").all() else None for reference in references)
        found.append(Grouping("few sources", now, known))
    *before, now = (replay.policy_versions.astype(str) for replay in replays)
    return [*found, Grouping("one policy version", now, tuple(before))]


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


def _declared(reference: Replay, live: Replay) -> list[DeclaredOutcome]:
    """What both contracts declare, charged as the gate does: unanswered is breached, and no success."""
    before, now = outcomes_of(reference), outcomes_of(live)
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
