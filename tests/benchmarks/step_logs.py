"""Logs of steps with 12 features, as large as wanted, written by DuckDB."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from datasets.contract import Contract, contract_from_text
from datasets.duck import duck, literal, quoted
from datasets.journal import StagedFile
from datasets.lake import Lake, folder_lock, open_lake
from datasets.tables import table_columns

EPISODE_STEPS = 20
STEPS_PER_DAY = 100_000

_NUMBERS = ", ".join(f"x{i} := round((hash(i, {i}) % 1000000) / 1000.0, 3)" for i in range(10))
_OBSERVATION = (
    f"struct_pack({_NUMBERS}, zone := ['a', 'b', 'c'][1 + (hash(i, 'z') % 3)::INTEGER], busy := hash(i, 'b') % 2 = 0)"
)

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


def write_step_log(path: Path, n_steps: int, *, first_day: str = "2026-01-05", first_step: int = 0) -> None:
    """JSON Lines of `n_steps` steps, in the order of time, nothing wrong with them.

    Values are hashes of the step's number: no two runs differ, and nothing compresses away.
    """
    step = f"(i % {EPISODE_STEPS})"
    with duck(memory="1500MB") as connection:
        connection.execute(
            f"""COPY (
                SELECT 'e' || lpad((i // {EPISODE_STEPS})::VARCHAR, 8, '0') AS episode_id,
                    {step}::INTEGER AS step,
                    strftime(TIMESTAMP {literal(first_day)} + to_seconds(i * 86400 // {STEPS_PER_DAY}),
                        '%Y-%m-%dT%H:%M:%S+00:00') AS timestamp,
                    'd' || i::VARCHAR AS decision_id,
                    'v1' AS policy_version,
                    {_OBSERVATION} AS observation,
                    ['down', 'hold', 'up'][1 + (hash(i, 'a') % 3)::INTEGER] AS action,
                    0.3333 AS behavior_prob,
                    -round((hash(i, 'r') % 10000) / 1000.0, 3) AS reward,
                    {step} = {EPISODE_STEPS - 1} AS terminated,
                    false AS truncated
                FROM range({first_step}, {first_step + n_steps}) AS steps(i)
            ) TO {literal(str(path))} (FORMAT json)"""
        )


def spoil_step_log(path: Path, target: Path) -> None:
    """A copy of a log in which one line in a thousand is cut off, of a wrong type, or out of range."""
    with path.open() as log, target.open("w") as copy:
        for number, line in enumerate(log):
            if number % 3000 == 7:
                line = line[: len(line) // 2] + "\n"
            elif number % 3000 == 1007:
                line = line.replace('"x3":', '"x3":"', 1).replace(',"x4"', '","x4"', 1)
            elif number % 3000 == 2007:
                line = line.replace('"reward":-', '"reward":', 1).replace('"reward":0.', '"reward":7.', 1)
            copy.write(line)


def write_step_lake(folder: Path, n_steps: int, *, first_day: str = "2026-01-05") -> Lake:
    """A lake of steps like those of `write_step_log`, without an ingest: one Parquet file a day, in one commit."""
    lake = open_lake(folder, benchmark_contract())
    step = f"(i % {EPISODE_STEPS})"
    values = {
        "episode_id": f"'e' || lpad((i // {EPISODE_STEPS})::VARCHAR, 8, '0')",
        "step": step,
        "timestamp": f"TIMESTAMPTZ {literal(first_day + ' 00:00:00+00')} + to_seconds(i * 86400 // {STEPS_PER_DAY})",
        "observation": _OBSERVATION,
        "action": "['down', 'hold', 'up'][1 + (hash(i, 'a') % 3)::INTEGER]",
        "reward": "-round((hash(i, 'r') % 10000) / 1000.0, 3)",
        "terminated": f"{step} = {EPISODE_STEPS - 1}",
        "truncated": "false",
        "behavior_prob": "0.3333",
        "cluster": f"'e' || lpad((i // {EPISODE_STEPS})::VARCHAR, 8, '0')",
        "decision_id": "'d' || i::VARCHAR",
        "policy_version": "'v1'",
    }
    columns = {name: kind for name, kind in table_columns(lake.contract)["steps"].items() if name != "log_date"}
    selected = ", ".join(f"({values.get(name, 'NULL')})::{kind} AS {quoted(name)}" for name, kind in columns.items())
    staged = []
    with folder_lock(folder), duck(memory="1500MB") as connection:
        lake.staging_path.mkdir(exist_ok=True)
        for day, start in enumerate(range(0, n_steps, STEPS_PER_DAY)):
            stop = min(start + STEPS_PER_DAY, n_steps)
            date = (datetime.fromisoformat(first_day) + timedelta(days=day)).date().isoformat()
            path = lake.staging_path / f"{date}.parquet"
            connection.execute(
                f"COPY (SELECT {selected} FROM range({start}, {stop}) AS steps(i)) "
                f"TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"
            )
            staged.append(StagedFile(path, f"log_date={date}/part.parquet", {"log_date": date}, stop - start))
        lake.commit({"steps": staged})
    return lake
