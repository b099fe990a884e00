"""Logs of steps with 12 features, as large as wanted, written by DuckDB."""

from __future__ import annotations

from pathlib import Path

from datasets.contract import Contract, contract_from_text
from datasets.duck import duck, literal

EPISODE_STEPS = 20
STEPS_PER_DAY = 100_000

_CONTRACT = """
name = "benchmark"
gamma = 0.99
{features}
[features.zone]
type = "categorical"
values = ["a", "b", "c"]
[features.busy]
type = "boolean"
[actions]
names = ["down", "hold", "up"]
[reward]
min = -10.0
max = 0.0
[behavior]
propensity = "logged"
[episodes]
kind = "sequence"
timeout = "2h"
on_timeout = "truncated"
"""


def benchmark_contract() -> Contract:
    """Ten numeric features with ranges, a categorical and a boolean one."""
    numeric = "\n".join(f'[features.x{i}]\ntype = "numeric"\nmin = 0.0\nmax = 1000.0' for i in range(10))
    return contract_from_text(_CONTRACT.format(features=numeric), "the benchmark's contract")


def write_step_log(path: Path, n_steps: int, *, first_day: str = "2026-01-05") -> None:
    """JSON Lines of `n_steps` steps, in the order of time, nothing wrong with them.

    Values are hashes of the step's number: no two runs differ, and nothing compresses away.
    """
    features = ", ".join(f"x{i} := round((hash(i, {i}) % 1000000) / 1000.0, 3)" for i in range(10))
    step = f"(i % {EPISODE_STEPS})"
    last = f"{step} = {EPISODE_STEPS - 1}"
    with duck(memory="1500MB") as connection:
        connection.execute(
            f"""COPY (
                SELECT 'e' || lpad((i // {EPISODE_STEPS})::VARCHAR, 8, '0') AS episode_id,
                    {step}::INTEGER AS step,
                    strftime(TIMESTAMP {literal(first_day)} + to_seconds(i * 86400 // {STEPS_PER_DAY}),
                        '%Y-%m-%dT%H:%M:%S+00:00') AS timestamp,
                    'd' || i::VARCHAR AS decision_id,
                    'v1' AS policy_version,
                    struct_pack({features}, zone := ['a', 'b', 'c'][1 + (hash(i, 'z') % 3)::INTEGER],
                        busy := hash(i, 'b') % 2 = 0) AS observation,
                    ['down', 'hold', 'up'][1 + (hash(i, 'a') % 3)::INTEGER] AS action,
                    0.3333 AS behavior_prob,
                    -round((hash(i, 'r') % 10000) / 1000.0, 3) AS reward,
                    {last} AS terminated,
                    false AS truncated
                FROM range({n_steps}) AS steps(i)
            ) TO {literal(str(path))} (FORMAT json)"""
        )
