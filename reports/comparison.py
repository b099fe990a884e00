"""What differs between two releases' evaluations: verdicts, estimates, checks, action shares, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reports.json_differences import JsonDifference, json_differences
from reports.records import Check, Estimate, Evaluation


@dataclass(frozen=True)
class Judged:
    """One side: a release, its evaluation, and where it comes from (digests and versions by name)."""

    release: int
    evaluation: Evaluation
    lineage: Mapping[str, str]


@dataclass(frozen=True)
class EstimateRow:
    """One estimator of one policy on either side; `difference` is the second minus the first, where both have a value.

    The two were estimated on `gate` episodes of their own snapshots: where these differ, so do the numbers by chance.
    """

    estimator: str
    policy: str
    first: Estimate | None
    second: Estimate | None
    difference: float | None


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate on either side; None where it was not asked."""

    name: str
    first: Check | None
    second: Check | None

    @property
    def turned(self) -> bool:
        """Whether one side passed what the other failed, or only one was asked."""
        return (self.first and self.first.passed) != (self.second and self.second.passed)


@dataclass(frozen=True)
class ShareRow:
    """Average probability of one action under the two candidates."""

    action: str
    first: float | None
    second: float | None


@dataclass(frozen=True)
class ReleaseComparison:
    """Two releases side by side.

    Attributes:
        same_episodes: whether both were judged on the same snapshot, so that their numbers can be held side by side.
        verdicts: "passed", "refused" or "not decided", with the reason, for each.
        baselines: what each was compared with.
    """

    releases: tuple[int, int]
    same_episodes: bool
    verdicts: tuple[tuple[str, str], tuple[str, str]]
    baselines: tuple[str, str]
    estimates: tuple[EstimateRow, ...]
    checks: tuple[CheckRow, ...]
    shares: tuple[ShareRow, ...]
    settings: tuple[JsonDifference, ...]
    lineage: tuple[JsonDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare_releases(first: Judged, second: Judged) -> ReleaseComparison:
    """What differs between two judged releases; nothing is estimated here."""
    ours, theirs = first.evaluation, second.evaluation
    return ReleaseComparison(
        releases=(first.release, second.release),
        same_episodes=first.lineage.get("snapshot") == second.lineage.get("snapshot"),
        verdicts=(_verdict(ours), _verdict(theirs)),
        baselines=(ours.baseline_name, theirs.baseline_name),
        estimates=tuple(_estimates(ours, theirs)),
        checks=tuple(_checks(ours, theirs)),
        shares=tuple(_shares(ours, theirs)),
        settings=tuple(json_differences(_plain(ours.config), _plain(theirs.config))),
        lineage=tuple(json_differences(dict(first.lineage), dict(second.lineage))),
    )


def _verdict(evaluation: Evaluation) -> tuple[str, str]:
    decision = evaluation.decision
    return ("not decided", "") if decision is None else ("passed" if decision.passed else "refused", decision.reason)


def _estimates(ours: Evaluation, theirs: Evaluation) -> Iterator[EstimateRow]:
    keys = dict.fromkeys((e.estimator, e.policy) for evaluation in (ours, theirs) for e in evaluation.estimates)
    for estimator, policy in keys:
        first, second = ours.estimate(estimator, policy), theirs.estimate(estimator, policy)
        values = [side.value if side else None for side in (first, second)]
        both = values[0] is not None and values[1] is not None
        yield EstimateRow(estimator, policy, first, second, values[1] - values[0] if both else None)  # type: ignore[operator]  # both are numbers


def _checks(ours: Evaluation, theirs: Evaluation) -> Iterator[CheckRow]:
    sides = [{c.name: c for c in e.decision.checks} if e.decision else {} for e in (ours, theirs)]
    rows = [CheckRow(name, sides[0].get(name), sides[1].get(name)) for name in {**sides[0], **sides[1]}]
    yield from sorted(rows, key=lambda row: not row.turned)


def _shares(ours: Evaluation, theirs: Evaluation) -> Iterator[ShareRow]:
    sides = [next((s.shares for s in e.action_shares if s.policy == "candidate"), {}) for e in (ours, theirs)]
    for action in {**sides[0], **sides[1]}:
        yield ShareRow(action, sides[0].get(action), sides[1].get(action))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {stage: dict(values) for stage, values in config.items()}
