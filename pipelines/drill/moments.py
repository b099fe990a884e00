"""Which faults are injected when: drawn once, from a seed, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Change:
    """One change that an undisturbed night made to its workspace.

    Attributes:
        n: its place in the night, from 1.
        stage: of the night.
        event: what Python's audit hook calls it.
        path: what is changed, relative to the workspace.
    """

    n: int
    stage: str
    event: str
    path: str


@dataclass(frozen=True)
class Trial:
    """A fault that is to be injected.

    Attributes:
        number: from 1.
        fault: its name.
        change: the night is stopped just before this one.
        stage: in which that lies in an undisturbed night.
        delay_s: seconds that the night runs on from there before a kill; 0 kills at the change itself.
        seed: for what the fault itself draws.
        turn: how many trials of this fault came before; its variants take turns.
    """

    number: int
    fault: str
    change: int
    stage: str
    delay_s: float
    seed: int
    turn: int


def read_changes(path: Path) -> list[Change]:
    """Every change that `subject` wrote down, in order."""
    return [Change(**json.loads(line)) for line in path.read_text().splitlines()]


def draw_trials(changes: Sequence[Change], faults: Sequence[str], rounds: int, seed: int) -> list[Trial]:
    """`rounds` trials of each fault, each in another stage of the night as far as there are stages.

    By stage, since a stage that writes little, such as drift, would hardly be met by drawing among all changes.
    Half of the kills come up to half a second after the change: in what libraries write by themselves.

    Raises:
        ValueError: an undisturbed night changed nothing.
    """
    if not changes:
        raise ValueError("an undisturbed night changed nothing in its workspace, so there is no moment to draw")
    rng = np.random.default_rng(seed)
    stages = list(dict.fromkeys(change.stage for change in changes))
    trials: list[Trial] = []
    for _ in range(rounds):
        for fault in faults:
            earlier = [trial.stage for trial in trials if trial.fault == fault]
            fewest = min(earlier.count(stage) for stage in stages)
            stage = str(rng.choice([stage for stage in stages if earlier.count(stage) == fewest]))
            change = int(rng.choice([change.n for change in changes if change.stage == stage]))
            delay_s = float(rng.uniform(0.0, 0.5)) * int(rng.integers(2))
            own_seed = int(rng.integers(2**31))
            trials.append(Trial(len(trials) + 1, fault, change, stage, delay_s, own_seed, len(earlier)))
    return trials
