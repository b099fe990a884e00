"""Log lines of every kind, and what may happen to them on their way: for tests that feed anything at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.datasets.builders import step_row

MUTATIONS: list[Callable[[random.Random, str], str]] = [
    lambda r, s: s[: r.randrange(len(s) + 1)],
    lambda r, s: s[: (i := r.randrange(len(s)))] + r.choice('{}[]",:0-eE.\\u\x00\x7fé\n\r \t\x0b') + s[i:],
    lambda r, s: s[: (i := r.randrange(len(s)))] + s[i + r.randrange(1, 9) :],
    lambda r, s: s.replace(
        r.choice(["0.5", "-1.0", "true", "false", '"hold"', '"e"', "[0.0, 1.0]"]),
        r.choice(["null", "NaN", "-Infinity", "1e999", "[]", "{}", '""', '"x"', "-0", "9" * 40, '"0.5"', "[1, true]"]),
    ),
    lambda r, s: s.replace(
        r.choice(['"step"', '"cpu"', '"action"', '"timestamp"', '"observation"', '"truncated"']),
        r.choice(['"reward"', '"STEP"', '"Cpu"', '"observation"', '"final_observation"', '""', '"a.b"']),
    ),
    lambda r, s: s.replace(
        "2024-05-01T10:0",
        r.choice(
            ["99999-05-01T10:0", "0000-05-01T10:0", "-1", "2024-02-30T10:0", "infinity", "2024-05-01 10:0", "10:0"]
        ),
    ),
    lambda r, s: s.replace("Z", r.choice(["", "+02:00", "+0200", "-03", "z", " UTC", ":30Z", "+99:00"])),
    lambda r, s: s[: r.randrange(len(s))] + s,
    lambda _, s: s.replace(": ", ":").replace(", ", ","),
    lambda r, s: r.choice(["", " ", "\t", "null", "[]", '"text"', "{}", s + s, "﻿" + s, s + " "]),
]


def random_row(chance: random.Random, name: str) -> dict[str, Any]:
    """A row for the tiny contract with values in any of their spellings, of which columns may be missing."""
    row = step_row(
        chance.choice([name, 7, 1.5, True, 'ü"x\\', "{a}", "[b]"]),
        observation={
            "cpu": chance.choice([0.5, 0, 1, 0.1 + 0.2, 1e-320, "0.5", True, None, 5.0]),
            "zone": chance.choice(["a", "b", "new", None, 3, "", {"x": 1}, "{", "é"]),
            "busy": chance.choice([True, False, None, 1, "true"]),
            "load": chance.choice(
                [[0.0, 1.0], [1, 2.5e3], None, [1.0], ["1.5", 2], [None, 1], [True, 0], [1e400, 0], "[0, 1]"]
            ),
        },
        step=chance.choice([0, 1, 2, 1.0, 1.5, -1, 2**31, "1", None]),
        action=chance.choice(["hold", "up", "down", "hold", "left", None, 1]),
        reward=chance.choice([-1.0, 0, -10, -11, "x", None, -0.0]),
        terminated=chance.choice([True, False, None, "false", 0]),
        behavior_prob=chance.choice([0.5, 1, 0, 1.5, "0.5", None]),
        behavior_probs=chance.choice([None, None, [0.25, 0.5, 0.25], [1, 0, 0], [0.5, 0.5], ["a"], [0.2, 0.2, 0.2]]),
        available_actions=chance.choice([None, None, ["hold", "up"], ["hold", 3], [], "hold", ["left", "hold"]]),
        decision_id=chance.choice([None, None, name, 12]),
        truncated=chance.choice([True, False, None]),
        final_observation=chance.choice([None, None, {"cpu": 0.25, "load": [1, 2]}, {"cpu": "x"}, {"zone": "a"}, 3]),
        extra=chance.choice([None, 1, {"deep": [1]}]),
    )
    if chance.random() < 0.2:  # a feature as a column of its own
        row["cpu"] = chance.choice([0.75, "x", None])
    return row


def mostly_good_row(chance: random.Random, name: str) -> dict[str, Any]:
    """A row of which at most one thing differs from one that fits."""
    row, other = step_row(name), random_row(chance, name)
    key = chance.choice([*row, "final_observation", "extra", "decision_id", "behavior_probs", "available_actions"])
    return {**row, key: other.get(key)}


def mutated_log(chance: random.Random, n_lines: int) -> bytes:
    """JSON Lines of which many were changed, with endings of any kind."""
    lines = []
    for i in range(n_lines):
        row = chance.choice([random_row, mostly_good_row, mostly_good_row])(chance, f"e{i}")
        line = json.dumps(row, ensure_ascii=chance.random() < 0.5)
        for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
            line = chance.choice(MUTATIONS)(chance, line or " ")
        lines.append(line + chance.choice(["\n", "\n", "\n", "\r\n"]))
    end = chance.choice(["", "\n", "\n\udcff\n", "\n\x00\n", '{"episode_id": "cut'])
    start = chance.choice(["", "", "﻿"])
    return (start + "".join(lines) + end).encode("utf-8", "surrogateescape")
