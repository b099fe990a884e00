"""One decision over HTTP, beside a bare FastAPI route and the same ONNX session, and Ray Serve; memory under load."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from datasets.observations import record_of
from offline_dqn.scorers import scorer_of
from pipelines.acting import load_release, read_graph
from pipelines.workspace import Workspace
from tests.benchmarks.load import Load, drive, request_bytes
from tests.benchmarks.peers import interpreter_of
from tests.benchmarks.rows import BenchRow, bench_row
from tests.pipelines.serving.running import (
    OBSERVATION,
    add_release,
    configure,
    make_champion,
    served_workspace,
    serving,
)

_BARE = Path(__file__).with_name("peer_scripts") / "bare_route.py"
_RAY = _BARE.with_name("ray_route.py")
_ROUNDS, _SECONDS = 5, 3.0
BATCH = 64
MEMORY_MINUTES = 10.0


def decision_rows(folder: Path, memory_minutes: float = MEMORY_MINUTES) -> list[BenchRow]:
    """Latency and rate at 1 and 16 clients, batches of 64, and memory; ours and the bare route in turns."""
    workspace = served_workspace(folder / "decision", releases=0, champion=None)
    add_release(workspace, 1, hidden=(128, 128))
    make_champion(workspace, 1)
    # What is remembered is bounded; here so that the bound is reached before memory is first looked at.
    workspace = configure(workspace, max_open_decisions=20_000)
    session_ms = session_quantiles_ms(workspace)
    rows: list[BenchRow] = []
    with serving(workspace) as server, bare_route() as bare:
        warm_up(server.port, bare)
        found: dict[int, list[Load]] = {}
        for clients in (1, 16):
            ours, theirs = in_turns(
                partial(drive_single, server.port, clients),
                partial(drive_single, bare, clients),
            )
            found[clients] = ours
            rows += latency_rows(clients, ours, theirs, session_ms)
        one_by_one, batches = in_turns(
            lambda: drive(server.port, made_before(requests(), 6_000), clients=1, seconds=_SECONDS),
            lambda: drive(server.port, made_before(requests(BATCH), 1_500), clients=1, seconds=_SECONDS),
        )
        refuse_failures([*one_by_one, *batches])
        single = 1e6 / statistics.median(load.per_s for load in one_by_one)
        each = 1e6 / (BATCH * statistics.median(load.per_s for load in batches))
        who = "one decision a request, 1 client"
        rows.append(
            bench_row(f"decision, batches of {BATCH}: time each", each, single, who, "us", largest_ratio=1 / 20)
        )
        pid = server.process.pid
        alone, together = (cpu_us_each(pid, server.port, n) for n in (0, BATCH))
        what = f"decision, batches of {BATCH}: CPU of the server each"
        rows.append(bench_row(what, together, alone, "one decision a request, 1 client", "us"))
        grown = memory_growth_mb(server.process.pid, server.port, memory_minutes)
        what = f"decision, memory grown over {memory_minutes:g} minutes at 16 clients"
        rows.append(bench_row(what, grown, None, "", "MB", largest=8.0))
    return [*rows, *ray_rows(workspace.release_path(1), found)]


def ray_rows(release: Path, ours: dict[int, list[Load]]) -> list[BenchRow]:
    """The same release behind Ray Serve, after ours: its processes take time also where nobody asks."""
    rows = []
    with ray_route(release) as (port, version):
        warm_up(port)
        for clients, loads in ours.items():
            theirs = [drive_single(port, clients) for _ in range(_ROUNDS)]
            refuse_failures(theirs)
            for share in (0.5, 0.99):
                found, peer = (statistics.median(load.quantile_ms(share) for load in each) for each in (loads, theirs))
                name = f"decision, {named(clients)}, beside Ray Serve: p{share * 100:.0f}"
                rows.append(bench_row(name, found, peer, f"Ray Serve {version}, same ONNX model", "ms"))
    return rows


def latency_rows(clients: int, ours: list[Load], theirs: list[Load], session_ms: dict[float, float]) -> list[BenchRow]:
    """p50, p95, p99 against the bare route plus the bare session, and the time that each decision takes."""
    refuse_failures([*ours, *theirs])
    name = f"decision, {named(clients)}"
    peer = f"bare route (fastapi {importlib.metadata.version('fastapi')}) + ONNX session"
    rows = []
    for share in (0.5, 0.95, 0.99):
        found, bare = (statistics.median(load.quantile_ms(share) for load in loads) for loads in (ours, theirs))
        goal = 2.0 if share == 0.99 else None
        rows.append(
            bench_row(f"{name}: p{share * 100:.0f}", found, bare + session_ms[share], peer, "ms", largest_ratio=goal)
        )
    found, bare = (1e6 / statistics.median(load.per_s for load in loads) for loads in (ours, theirs))
    return [*rows, bench_row(f"{name}: time each", found, bare, peer.partition(" +")[0], "us")]


def drive_single(port: int, clients: int) -> Load:
    """Requests for one decision each, for one round."""
    return drive(port, requests(), clients=clients, seconds=_SECONDS)


def named(clients: int) -> str:
    """So many clients, in words."""
    return f"{clients} client{'s' if clients > 1 else ''}"


def refuse_failures(loads: list[Load]) -> None:
    """Raises a RuntimeError where a request failed."""
    failed = sum(load.n_failed for load in loads)
    if failed:
        raise RuntimeError(f"{failed} requests failed under load")


def in_turns(ours: Callable[[], Load], theirs: Callable[[], Load]) -> tuple[list[Load], list[Load]]:
    """Both, round by round: whatever slows the machine for a while slows both."""
    pairs = [(ours(), theirs()) for _ in range(_ROUNDS)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def requests(batch: int = 0) -> Callable[[], bytes]:
    """Requests for one decision, or for a batch; no two of one episode and step."""
    numbers = itertools.count(time.time_ns())

    def one() -> dict[str, object]:
        return {"episode_id": f"e{next(numbers)}", "step": 0, "observation": OBSERVATION}

    def request() -> bytes:
        body = {"decisions": [one() for _ in range(batch)]} if batch else one()
        return request_bytes("/v1/act", json.dumps(body).encode())

    return request


def made_before(request: Callable[[], bytes], n: int) -> Callable[[], bytes]:
    """The same requests, the first n of them made already: making a batch takes as long as a part of its answer."""
    made = itertools.chain([request() for _ in range(n)], iter(request, b""))
    return lambda: next(made)


def session_quantiles_ms(workspace: Workspace, n: int = 5_000) -> dict[float, float]:
    """Quantiles of a direct run of release 1's session on one row, inputs made."""
    policy = load_release(workspace, 1)
    graph = read_graph(workspace.release_path(1))
    scorer = scorer_of(policy, graph)
    records, permitted = [record_of(workspace.contract, OBSERVATION)], np.ones((1, 3), dtype=bool)
    took = []
    for _ in range(n):
        began = time.perf_counter()
        scorer.score(records, permitted)
        took.append(time.perf_counter() - began)
    return {share: float(np.quantile(took, share)) * 1000 for share in (0.5, 0.95, 0.99)}


def warm_up(*ports: int) -> None:
    """A moment of load on each."""
    for port in ports:
        drive(port, requests(), clients=4, seconds=1.0)


def cpu_us_each(pid: int, port: int, batch: int) -> float:
    """Microseconds of CPU that a server's process takes for a decision: what else the machine does counts little."""
    made = made_before(requests(batch), 1_500 if batch else 6_000)
    before = cpu_s(pid)
    load = drive(port, made, clients=1, seconds=2 * _SECONDS)
    refuse_failures([load])
    return (cpu_s(pid) - before) * 1e6 / (len(load.latencies_s) * (batch or 1))


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has taken, the system's for it included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_growth_mb(pid: int, port: int, minutes: float) -> float:
    """By how much the server's resident memory grows between the first sixth of the load and its end, in MB."""
    drive(port, requests(), clients=16, seconds=minutes * 10)
    before = resident_mb(pid)
    drive(port, requests(), clients=16, seconds=minutes * 50)
    return resident_mb(pid) - before


def resident_mb(pid: int) -> float:
    """Memory of a process that is in use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


@contextmanager
def ray_route(release: Path) -> Iterator[tuple[int, str]]:
    """Ray Serve as processes of their own; its port and version.

    Raises:
        RuntimeError: its environment is missing.
    """
    command = [str(interpreter_of("serving")), "-W", "ignore", str(_RAY), str(release)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port, version = process.stdout.readline().split()
        yield int(port), version
    finally:
        process.stdin.close()  # it ends its own processes
        process.wait(timeout=60)


@contextmanager
def bare_route() -> Iterator[int]:
    """The peer as a process of its own; its port."""
    process = subprocess.Popen([sys.executable, str(_BARE)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
