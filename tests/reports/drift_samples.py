"""Nightly drift checks as pages show them: drifted, calm, held for a person, without data; with names of any kind."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from drift.config import DriftConfig
from drift.decision import RetrainDecision, decide_retrain
from drift.records import (
    ColumnDrift,
    DriftEffect,
    DriftReport,
    JointDrift,
    NightlyDrift,
    SlowDrift,
    Suspicion,
)
from reports.history import Promotion
from reports.night_checks import NightCheck, NightlyChecks

NIGHT = "2024-05-21"

_BINS = ("< 0.1", *(f"[{i / 10:.6g}, {(i + 1) / 10:.6g})" for i in range(1, 9)), ">= 0.9", "(missing)")
_BEFORE = (*[0.1] * 10, 0.0)
_NOW = (0.04, 0.05, 0.06, 0.08, 0.09, 0.1, 0.12, 0.14, 0.15, 0.165, 0.005)


def column(name: str, psi: float | None = 0.0121, threshold: float | None = 0.0312, **more: Any) -> ColumnDrift:
    """A numeric column of the given PSI."""
    return ColumnDrift(**{
        "name": name, "kind": "numeric", "exogenous": False, "status": "stable", "reason": "", "reference_rows": 41020,
        "live_rows": 1980, "psi": psi, "kl": None if psi is None else psi / 2.1,
        "kl_reverse": None if psi is None else psi * 1.1 / 2.1, "js": 0.01, "wasserstein": 0.031, "typical_psi": 0.006,
        "threshold": threshold, "p_value": 0.4, "reference_missing_share": 0.0, "live_missing_share": 0.005,
        "bins": _BINS, "reference_probs": _BEFORE, "live_probs": _NOW,
    } | more)  # fmt: skip


def drifted_columns() -> tuple[ColumnDrift, ...]:
    """Seven columns: three drifted, one beyond chance but small, one that could not be judged."""
    return (
        column("cpu"),
        column(
            "request_rate", 0.1874, 0.0414, status="drifted", p_value=0.0005, exogenous=True, since="2024-05-18",
            live_missing_share=0.12,
        ),
        column("replicas", 0.0193, 0.0388),
        column("p95_ms", 0.0411, 0.0402, status="drifted", p_value=0.0092, since=NIGHT),
        column(
            "zone", 4.1, 0.0212, kind="categorical", status="drifted", p_value=0.0005, wasserstein=None,
            bins=("a", "b", "c", "(rare or unseen)", "(missing)"), reference_probs=(0.34, 0.33, 0.33, 0.0, 0.0),
            live_probs=(0.31, 0.33, 0.0, 0.36, 0.0), unseen_share=0.36, since=NIGHT,
        ),
        column("reward", 0.0166, 0.0141, role="reward", reason="beyond chance, but PSI is below 0.02"),
        column(
            "hour", None, None, status="not enough data", reason="only the live window has this column", kl=None,
            kl_reverse=None, wasserstein=None, p_value=None, bins=(), reference_probs=(), live_probs=(),
        ),
    )  # fmt: skip


def nightly(names: tuple[str, ...] = ("zone", "request_rate", "p95_ms", "cpu")) -> NightlyDrift:
    """Eleven nights with a gap of three; the first column moves in the last night, the second since the 18th."""
    days = [date(2024, 5, 8) + timedelta(i) for i in (0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13)]
    psi = {0: [0.004] * 10 + [4.1], 1: [0.01] * 7 + [0.06, 0.09, 0.13, 0.187]}
    return NightlyDrift(
        columns=names,
        nights=tuple(day.isoformat() for day in days),
        n_episodes=(330,) * len(days),
        psi=tuple(tuple(psi.get(i, [0.008] * 11)) for i in range(len(names))),
        threshold=tuple([0.0212, 0.0414, 0.0402, None][i % 4] for i in range(len(names))),
    )


def drift_report(**more: Any) -> DriftReport:
    """Three of six columns drifted, joint tests, slow drift and effects."""
    return DriftReport(**{
        "columns": drifted_columns(), "status": "drifted", "unit": "night", "n_units": 21, "optimistic": False,
        "sentence": "3 of 6 columns drifted: zone (PSI 4.100, 0.021 allowed), request_rate (PSI 0.187, 0.041 allowed), "
        "p95_ms (PSI 0.041, 0.040 allowed) (false-alarm rate 0.01, 21 reference nights).",
        "false_alarm_rate": 0.01, "min_psi": 0.02, "reference_episodes": 2007, "effective_reference_episodes": 2007.0,
        "reference_nights": 21, "live_episodes": 330, "live_nights": 1,
        "joint": (
            JointDrift(
                method="classifier", status="drifted", reason="", statistic=0.713, typical=0.504, threshold=0.541,
                p_value=0.0005, rows=(2000, 1980), columns=(("zone", 0.62), ("request_rate", 0.21)),
            ),
            JointDrift(method="mmd", status="not enough data", reason="fewer than 100 live rows"),
        ),
        "slow": (SlowDrift(name="cpu", since="2024-05-12", n_nights=9, psi=0.0313, threshold=0.0312, p_value=0.004),),
        "effects": (
            DriftEffect(
                column="request_rate", share_change=0.12, value_change=-0.31, overlap_change=-0.02,
                sentence="request_rate moves 12% of the champion's actions, and its value by -0.31 per episode.",
            ),
        ),
        "nightly": nightly(),
    } | more)  # fmt: skip


def decision(cause: Any = "drift", sentence: str | None = None, *, retrain: bool = True) -> RetrainDecision:
    """A decision; by default to retrain because of the drift of `drift_report`."""
    said = sentence or f"Retrain: {drift_report().sentence[:-1]}."
    return RetrainDecision(retrain, cause, said, (said,) if retrain else ())


def drifted_check(**more: Any) -> NightCheck:
    """The newest night of these samples: drift, and a training."""
    return NightCheck(**{
        "night": NIGHT, "champion": 6, "decision": decision(), "live_nights": (NIGHT, NIGHT), "report": drift_report(),
    } | more)  # fmt: skip


def calm_report(n_columns: int = 4) -> DriftReport:
    """Nothing moved."""
    columns = tuple(column(f"feature_{i}", 0.002 + 0.01 * i / n_columns) for i in range(n_columns))
    sentence = f"0 of {n_columns} columns drifted (false-alarm rate 0.01, 21 reference nights)."
    return drift_report(
        columns=columns, status="stable", sentence=sentence, joint=(), slow=(), effects=(), nightly=None
    )


def calm_check(night: str = NIGHT, champion: int | None = 6, n_columns: int = 4) -> NightCheck:
    """A night on which nothing was found."""
    report = calm_report(n_columns)
    kept = decision("none", f"Keep the champion: {report.sentence}", retrain=False)
    return NightCheck(night=night, champion=champion, decision=kept, live_nights=(night, night), report=report)


def unknown_check(night: str = NIGHT, champion: int | None = 6) -> NightCheck:
    """A night on which nothing could be compared."""
    kept = decision("not enough data", "Keep the champion: there was nothing to compare.", retrain=False)
    return NightCheck(night=night, champion=champion, decision=kept, live_nights=None, report=None)


def held_check() -> NightCheck:
    """A shift that is confined to one source."""
    suspicion = Suspicion(
        kind="few sources", column="request_rate", where=("logs/steps/eu.jsonl",), share=0.04,
        sentence="request_rate moved in 1 of 25 sources alone (logs/steps/eu.jsonl, 4% of the episodes).",
    )  # fmt: skip
    report = drift_report(suspicions=(suspicion,))
    held = decide_retrain(has_champion=True, report=report, champion_age_days=3.0, config=DriftConfig())
    return drifted_check(decision=held, report=report)


def past(n: int = 13) -> tuple[NightCheck, ...]:
    """Nights before the newest, with one missing, one without data, and another champion since the sixth."""
    days = [date.fromisoformat(NIGHT) - timedelta(n - i) for i in range(n)]
    checks = [calm_check(day.isoformat(), 5 if i < 5 else 6) for i, day in enumerate(days)]
    checks[2] = unknown_check(checks[2].night, 5)
    checks[4] = drifted_check(night=checks[4].night, champion=5, live_nights=checks[4].live_nights)
    return tuple(check for i, check in enumerate(checks) if i != 8)


def promotions() -> tuple[Promotion, ...]:
    """Of releases 5 and 6, by the clock of another year."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return (
        Promotion(at, "promote", None, 5, "Ada", ""),
        Promotion(at + timedelta(9), "promote", 5, 6, "Grace", "looks right"),
    )


def nightly_checks(newest: NightCheck | None = None) -> NightlyChecks:
    """The drifted night after two weeks of others."""
    return NightlyChecks(newest=newest or drifted_check(), past=past(), promotions=promotions())


def extreme_checks(hostile: str) -> NightlyChecks:
    """Hostile and endless names everywhere, numbers that do not exist or are out of all proportion."""
    long = "a_name_without_any_space_" * 8
    columns = [
        column(hostile, math.nan, reason=hostile),
        column(
            long, 1e9, 0.02, status="drifted", bins=(long, hostile) * 20, reference_probs=(0.025,) * 40,
            live_probs=(*[0.0] * 39, 1.0), kl=math.inf, since=NIGHT,
        ),
        column(hostile, 3.0, 0.0, status="drifted", wasserstein=1e300),
        *(column(f"vector[{i}] {hostile}", 0.01 + i / 1000, 0.03) for i in range(30)),
    ]  # fmt: skip
    joint = JointDrift(
        method="classifier", status="drifted", reason="", statistic=1.0, threshold=0.5, p_value=0.0,
        columns=((hostile, 1.0), (long, 0.0)),
    )  # fmt: skip
    report = drift_report(
        columns=tuple(columns),
        sentence=f"{hostile} {long}",
        joint=(joint, JointDrift(method="mmd", status="not enough data", reason=hostile)),
        slow=(SlowDrift(name=hostile, since=NIGHT, n_nights=1, psi=1e9, threshold=0.02, p_value=0.0),),
        effects=(DriftEffect(column=long, share_change=1.0, value_change=None, overlap_change=None, sentence=hostile),),
        suspicions=(
            Suspicion(
                kind="few episodes", column=hostile, where=(long, hostile), share=0.0, sentence=f"{hostile}: {long}"
            ),
        ),
        nightly=nightly((long, hostile, *(f"vector[{i}]" for i in range(65)))),
        optimistic=True,
    )
    newest = drifted_check(
        decision=decision("suspicious", f"Wait for a person: {hostile} {long}", retrain=False), report=report
    )
    named = tuple(replace(p, reviewer=hostile) for p in promotions())
    return NightlyChecks(newest=newest, past=past(), promotions=(*named, *named))
