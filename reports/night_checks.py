"""Nightly drift checks as pages show them: the newest one whole, those before it, and what acted in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from drift.decision import RetrainDecision
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

_PARTS: dict[str, type[Any]] = {
    "columns": ColumnDrift,
    "joint": JointDrift,
    "slow": SlowDrift,
    "effects": DriftEffect,
    "suspicions": Suspicion,
}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NightCheck:
    """What one night's drift check found and what was decided.

    Attributes:
        night: ISO date of the instant that the night took for now.
        champion: release that acted; None before the first promotion.
        decision: whether to retrain, and because of what.
        live_nights: first and last night of the live window, ISO dates; None where there was none.
        report: the comparison; None where there was nothing to compare.
    """

    night: str
    champion: int | None
    decision: RetrainDecision
    live_nights: tuple[str, str] | None
    report: DriftReport | None

    @classmethod
    def from_json(cls, night: str, champion: int | None, outcome: Mapping[str, Any]) -> NightCheck:
        """From `DriftOutcome.to_json()`, of this version or of one that knew fewer or more fields."""
        live, report = outcome["live_nights"], outcome["report"]
        return cls(
            night=night,
            champion=champion,
            decision=_made(RetrainDecision, outcome["decision"]),
            live_nights=(live[0], live[-1]) if live else None,
            report=report_from_json(report) if report else None,
        )


@dataclass(frozen=True, kw_only=True)
class NightlyChecks:
    """The check that a page is of, and what went before it.

    Attributes:
        newest: the check itself.
        past: of earlier nights, oldest first.
        promotions: the registry's history, oldest first.
    """

    newest: NightCheck
    past: tuple[NightCheck, ...] = ()
    promotions: tuple[Promotion, ...] = ()


def report_from_json(values: Mapping[str, Any]) -> DriftReport:
    """What `DriftReport.to_json()` gave; what another version has more is left out."""
    parts = {name: tuple(_made(kind, part) for part in values.get(name, ())) for name, kind in _PARTS.items()}
    nightly = _made(NightlyDrift, values["nightly"]) if values.get("nightly") else None
    return _made(DriftReport, {**values, **parts, "nightly": nightly})


def changes_of_champion(checks: Sequence[NightCheck], promotions: Sequence[Promotion]) -> dict[str, str]:
    """What happened to the champion before each night's check, in words, by night; "" of the key after the last one.

    Nights are told by the instant that they took for now, promotions by the clock: in replayed or simulated logs these
    are years apart. So the two are put together by who acted in which order.
    """
    found: dict[str, list[str]] = {}
    ahead = list(promotions)
    for i, check in enumerate(checks):
        before = checks[i - 1].champion if i else None
        if check.champion == before:
            continue
        place = next((k for k, p in enumerate(ahead) if (p.to_release or None) == check.champion), None)
        if place is None:
            found[check.night] = [f"release {check.champion} acts" if check.champion else "the rules act"]
        elif i:
            found[check.night] = [_words(promotion) for promotion in ahead[: place + 1]]
        ahead = ahead[place + 1 :] if place is not None else ahead
    if checks and ahead:
        found[""] = [_words(promotion) for promotion in ahead]
    return {night: "; ".join(words) for night, words in found.items()}


def _words(promotion: Promotion) -> str:
    what = f"release {promotion.to_release}" if promotion.to_release else "the rules"
    done = f"back to {what}" if promotion.action == "rollback" else f"{what} promoted"
    return f"{done} by {promotion.reviewer}"


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every T is a dataclass
    return kind(**{name: _tupled(value) for name, value in values.items() if name in known})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list | tuple) else value
