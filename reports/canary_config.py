"""Settings of the canary: the `[canary]` table of offline_dqn.toml."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from datasets.durations import seconds_of
from datasets.settings import Settings


class CanaryConfig(Settings):
    """How a candidate is tried on live traffic: in which steps, against which margins, and how often one may err."""

    interval: str = "1m"
    """Time between two looks of the server; a breach or a success is acted on within one."""
    plan: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)
    """Shares of the traffic, one step after another; 1 at the end means that success promotes, without it a reviewer is
    asked to. Steps above the certified share of the release are left out."""
    stop_error: float = Field(0.05, gt=0, le=0.5)
    """Chance that a candidate as good as the champion is ever stopped, over all looks and all measures: half of it for
    the return, the rest in equal parts for success, each constraint and late decisions."""
    promote_error: float = Field(0.05, gt=0, le=0.5)
    """Chance that a candidate which is worse by more than a margin, in any one measure, ever succeeds."""
    margin: float | None = Field(None, ge=0)
    """What the mean return of an episode may lose, in reward units; without it `margin_sd` says so."""
    margin_sd: float = Field(0.1, gt=0)
    """The same in standard deviations of the champion's episode returns."""
    success_margin: float = Field(0.05, gt=0, lt=1)
    """What the success rate may lose."""
    breach_margin: float = Field(0.5, gt=0)
    """By how much more steps may breach a constraint than under the champion, in shares of the constraint's limit."""
    late_margin: float = Field(0.01, gt=0, lt=1)
    """By how much more decisions may miss their deadline than under the champion."""
    min_episodes: int = Field(50, ge=20)
    """Episodes (clusters where the contract has them) of each side before anything is concluded, and of the candidate
    at each step before the next one."""
    min_blocks: int = Field(10, ge=5)
    """The same for the blocks of a switchback."""
    min_exposure: float = Field(0.9, gt=0, le=1)
    """Share of the decisions in the candidate's episodes that the candidate must have made for a success to count:
    where the kill switch or late scoring acted in its place, nothing was learned of it."""
    longest: str = "14d"
    """Undecided for this long, a canary ends and the champion acts alone."""

    @field_validator("interval", "longest")
    @classmethod
    def _duration(cls, duration: str) -> str:
        seconds_of(duration)
        return duration

    @field_validator("plan")
    @classmethod
    def _ascending(cls, plan: tuple[float, ...]) -> tuple[float, ...]:
        check_plan(plan)
        return plan

    @model_validator(mode="after")
    def _looks_in_time(self) -> Self:
        if seconds_of(self.interval) > seconds_of(self.longest):
            raise ValueError(f"interval {self.interval} is longer than longest {self.longest}: nobody would ever look")
        return self

    @property
    def interval_s(self) -> float:
        """`interval` in seconds."""
        return seconds_of(self.interval)

    @property
    def longest_s(self) -> float:
        """`longest` in seconds."""
        return seconds_of(self.longest)


def check_plan(plan: tuple[float, ...]) -> None:
    """Refuses what is no ramp.

    Raises:
        ValueError: there is no step, or they do not ascend within (0, 1], or 1 stands alone.
    """
    if not plan or any(not 0 < share <= 1 for share in plan) or any(a >= b for a, b in zip(plan, plan[1:])):  # noqa: RUF007, B905
        raise ValueError(f"the plan {', '.join(f'{s:g}' for s in plan) or '()'} wants ascending shares in (0, 1]")
    if plan[0] == 1:
        raise ValueError("a plan that begins with 1 leaves the champion nothing to be compared on: begin below it")
