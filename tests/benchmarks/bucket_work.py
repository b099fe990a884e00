"""A lake in a bucket against a lake in a folder: the same night on both, and many machines that are killed at work.

`python -m tests.benchmarks.bucket_work night|writers` prints its figures as JSON; `make bucket` runs both. The store is
an S3 server on loopback, so what travels is not slowed by a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.batches import list_batches
from tests.datasets.builders import ask, episode, lake_at, write_rows
from tests.object_store_server import BUCKET, object_store_server


def night(folder: Path, environment: Mapping[str, str], n_episodes: int) -> dict[str, Any]:
    """The first night of one workspace, with its lake in a folder and in a bucket, from the same logs."""
    from pipelines import stages
    from tests.pipelines.conftest import write_small_workspace

    local = write_small_workspace(folder / "local")
    settings = local.root / "offline_dqn.toml"
    settings.write_text(settings.read_text().replace("n_episodes = 2000", f"n_episodes = {n_episodes}"))
    stages.simulate(local)
    shutil.copytree(local.root, folder / "bucket")
    shutil.copytree(local.root, folder / "other", ignore=shutil.ignore_patterns("logs"))
    for name in ("bucket", "other"):
        text = settings.read_text()
        (folder / name / "offline_dqn.toml").write_text(f'[store]\nlake = "s3://{BUCKET}/night"\n\n{text}')
    found: dict[str, Any] = {"n_episodes": n_episodes}
    for name in ("local", "bucket"):
        seconds, cpu_s = _timed(_command("nightly", folder / name), environment)
        found[name] = {"wall_s": round(seconds, 1), "cpu_s": round(cpu_s, 1)}
    for name in ("local", "bucket", "other"):  # the last one has seen no log: it reads what the bucket holds
        asked = _answer(folder / name, environment, "SELECT count(*) AS n, sum(reward) AS reward FROM steps")
        found.setdefault(name, {})["steps"] = asked
        digest = "SELECT * EXCLUDE (batch_id) FROM steps ORDER BY source, source_line"
        found[name]["rows"] = hashlib.sha256(
            json.dumps(_answer(folder / name, environment, digest)).encode()
        ).hexdigest()
    found["snapshots_alike"] = _names(folder / "local" / "snapshots") == _names(folder / "bucket" / "snapshots")
    seconds, _ = _timed(_command("nightly", folder / "bucket"), environment)
    found["bucket"]["second_night_wall_s"] = round(seconds, 1)
    return found


def writers(
    folder: Path, environment: Mapping[str, str], *, n_machines: int, n_logs: int, n_kills: int, seed: int, lease: bool
) -> dict[str, Any]:
    """Machines that take overlapping logs into one lake at once, each killed at random moments."""
    address = f"s3://{BUCKET}/writers-{seed}-{lease}"
    names = set[str]()
    for machine in range(n_machines):
        for log in range(n_logs):  # every second episode is in the logs of two machines
            mine = [f"m{machine}-{log}", f"m{(machine + 1) % n_machines}-{log}"]
            names |= set(mine)
            write_rows(folder / str(machine) / f"{log}.jsonl", [row for name in mine for row in episode(name)])
    kills, conflicts = [0] * n_machines, [0] * n_machines
    env = {**os.environ, **environment}

    def run(machine: int) -> None:
        chance = random.Random(seed * 1000 + machine)
        command = [sys.executable, "-m", "tests.datasets.bucket_writer", address, str(folder / str(machine))]
        while True:
            process = subprocess.Popen([*command, *([] if lease else ["no-lease"])], stdout=subprocess.PIPE, env=env)
            try:
                if kills[machine] < n_kills:
                    process.wait(chance.uniform(2.0, 12.0))
                answer, _ = process.communicate()
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                answer, _ = process.communicate()
                kills[machine] += 1
            conflicts[machine] += answer.count(b"conflict")
            if process.returncode == 0:
                return
            assert process.returncode == -signal.SIGKILL, answer

    started = time.monotonic()
    threads = [threading.Thread(target=run, args=(machine,)) for machine in range(n_machines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lake = lake_at(folder / "reader", address=address)
    ((n_rows, n_distinct),) = ask(lake, "SELECT count(*), count(DISTINCT (episode_id, step)) FROM {steps}")
    return {
        "machines": n_machines,
        "lease": lease,
        "logs": n_machines * n_logs,
        "kills": sum(kills),
        "commits": lake.commit_number(),
        "conflicts": sum(conflicts),
        "rows_brought": sum(batch.counts.n_in for batch in list_batches(lake)),
        "rows_expected": 3 * len(names),
        "rows_found": n_rows,
        "rows_twice": n_rows - n_distinct,
        "wall_s": round(time.monotonic() - started, 1),
    }


def _command(name: str, workspace: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", name, "--workspace", str(workspace)]


def _timed(command: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and what it starts."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 3), done.stderr  # 3: a verdict against the candidate
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _answer(workspace: Path, environment: Mapping[str, str], sql: str) -> Any:
    command = [*_command("query", workspace), sql, "--json"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("night", "writers"))
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--logs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4, help="of each machine, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-lease", action="store_true", help="nobody waits: every commit is a race")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, object_store_server() as environment:
        os.environ.update(environment)
        if given.work == "night":
            found = night(Path(folder), environment, given.episodes)
        else:
            found = writers(
                Path(folder),
                environment,
                n_machines=given.machines,
                n_logs=given.logs,
                n_kills=given.kills,
                seed=given.seed,
                lease=not given.no_lease,
            )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
