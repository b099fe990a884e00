"""Pieces on Dask workers: processes of this machine, or those of a scheduler that runs already."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import dask
import distributed
from distributed.comm.core import CommClosedError
from prefect_dask.task_runners import DaskTaskRunner

from pipelines.engine_config import EngineConfig
from pipelines.made_by import made_by
from pipelines.metrics.usage import used_elsewhere
from pipelines.piece_task import packed_piece_task, workers_reach_server
from pipelines.pieces import Done, EngineError, Parcels, Piece, in_flow, refuse_others, work_out_packed

_CONNECT_S = 20
_POLL_S = 0.02
_LOOK_EVERY_S = 10.0
_WITHOUT_WORKERS_S = 60.0
"""Seconds that no worker may be there while pieces wait: one that died is started anew within some of them."""

_PATIENCE = {"distributed.comm.timeouts.tcp": "300s", "distributed.scheduler.worker-ttl": "1h"}
"""A machine that is busy keeps a worker from answering; that is no reason to take it for dead."""


class DaskWorkers:
    """What `pipelines.engines` gives pieces to where `[engine] kind = "dask"`."""

    def __init__(self, config: EngineConfig, parcels: Parcels, stack: ExitStack) -> None:
        """Starts the workers, or connects.

        Args:
            parcels: pack what goes to them.
            stack: ends them, or the connection.

        Raises:
            EngineError: no scheduler answers, it has no workers, or they are not like this process.
        """
        self._parcels = parcels
        self._as_tasks = in_flow() and workers_reach_server(config.address)
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        dask.config.set(_PATIENCE)
        self._runner = stack.enter_context(
            DaskTaskRunner(cluster_kwargs=_on_this_machine(config.n_local))
            if config.address is None
            else DaskTaskRunner(address=config.address, client_kwargs={"timeout": _CONNECT_S})
        )
        try:
            self._client = self._runner.client
        except (OSError, TimeoutError) as error:
            raise EngineError(
                f"No Dask scheduler answers at [engine] address = {config.address} within {_CONNECT_S} s "
                f"({type(error).__name__}). Start one there (`dask scheduler`) with workers (`dask worker "
                f"{config.address} --nthreads 1`), or leave the address out."
            ) from error
        if config.address is not None:
            refuse_others(self._client.run(made_by), made_by(), _start_one(config.address))

    def submit(self, pieces: Sequence[Piece]) -> list[Callable[[], Any]]:
        """See `Workers`."""
        return [self._waiting(*self._begun(*packed), packed[2]) for packed in self._parcels.packed(pieces)]

    def _begun(self, function: bytes | str, item: bytes, name: str) -> tuple[Any, Callable[[], Done]]:
        """Dask's future of a piece, and what gives its result."""
        if self._as_tasks:
            named = packed_piece_task.with_options(name=name.split()[0], task_run_name=name)
            future: Any = self._runner.submit(named, {"function": function, "item": item, "name": name})
            return future.wrapped_future, future.result
        begun: Any = self._client.submit(work_out_packed, function, item, name, pure=False)
        return begun, begun.result

    def _waiting(self, begun: Any, result: Callable[[], Done], name: str) -> Callable[[], Any]:
        def wait() -> Any:
            try:
                self._wait_while_worked_on(begun)
                done = result()
            except (distributed.KilledWorker, CommClosedError, asyncio.CancelledError, _NoWorkersError) as error:
                raise EngineError(
                    f"The Dask workers ended while they were at {name} ({type(error).__name__}). Most often the memory "
                    "of their machine is too small for so many pieces at once: lower [engine] workers. "
                    "`offline-dqn nightly` goes on from there."
                ) from error
            used_elsewhere(done.cpu_s, done.peak_bytes)
            return done.found

        return wait

    def _wait_while_worked_on(self, begun: Any) -> None:
        """Until a piece is done; Dask itself would wait for ever for workers that do not come back."""
        looked_at, seen_at = time.monotonic(), time.monotonic()
        while not begun.done():
            time.sleep(_POLL_S)
            now = time.monotonic()
            if now - looked_at > _LOOK_EVERY_S:
                looked_at = now
                seen_at = now if self._client.nthreads() else seen_at
                if now - seen_at > _WITHOUT_WORKERS_S:
                    raise _NoWorkersError


class _NoWorkersError(Exception):
    """None is left, and none has come for a while."""


def _on_this_machine(n: int) -> dict[str, Any]:
    return {
        "n_workers": n,
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",  # None would be port 8787, with a warning where it is taken
        "memory_limit": 0,  # what a piece holds Dask cannot spill; it would only pause for ever
        "silence_logs": logging.CRITICAL,  # a piece that fails is told of by whoever waits for it
    }


def _start_one(address: str) -> str:
    return f"start workers there: `dask worker {address} --nthreads 1`"
