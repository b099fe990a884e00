"""Pieces on Ray workers: processes of this machine, or those of a cluster that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from prefect_ray import RayTaskRunner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.engine_config import EngineConfig
from pipelines.made_by import made_by
from pipelines.metrics.usage import used_elsewhere
from pipelines.piece_task import packed_piece_task, workers_reach_server
from pipelines.pieces import Done, EngineError, Parcels, Piece, in_flow, refuse_others, work_out_packed

_LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RaySystemError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OwnerDiedError,
)

_TRIES = 4


class RayWorkers:
    """What `pipelines.engines` gives pieces to where `[engine] kind = "ray"`."""

    def __init__(self, config: EngineConfig, parcels: Parcels, stack: ExitStack) -> None:
        """Starts the workers, or connects.

        Args:
            parcels: pack what goes to them.
            stack: ends them, or the connection.

        Raises:
            EngineError: no cluster answers, it has no workers, or they are not like this process.
        """
        self._parcels = parcels
        self._as_tasks = in_flow() and workers_reach_server(config.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
        kwargs: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if config.address is None:
            kwargs |= _on_this_machine(config.n_local)
        try:
            self._runner = _started(config.address, kwargs, stack)
        except Exception as error:  # ray.init raises that very class where a node does not start in time
            where = f"at [engine] address = {config.address}" if config.address else "here"
            raise EngineError(
                f"No Ray cluster can be had {where} ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
                + (
                    "Start one with `ray start --head --ray-client-server-port 10001`, or leave the address out."
                    if config.address
                    else "The machine may be too busy: run it again, or leave [engine] kind out."
                )
            ) from error
        if config.address is not None:
            refuse_others(_on_every_node(), made_by(), "start Ray on them: `ray start --address HOST:6379`")

    def submit(self, pieces: Sequence[Piece]) -> list[Callable[[], Any]]:
        """See `Workers`."""
        return [self._waiting(self._begun(*packed), packed[2]) for packed in self._parcels.packed(pieces)]

    def _begun(self, function: bytes | str, item: bytes, name: str) -> Callable[[], Done]:
        if self._as_tasks:
            named = packed_piece_task.with_options(name=name.split()[0], task_run_name=name)
            future: Any = self._runner.submit(named, {"function": function, "item": item, "name": name})
            return future.result  # type: ignore[no-any-return]
        begun = ray.remote(work_out_packed).options(name=name).remote(function, item, name)
        return lambda: ray.get(begun)

    def _waiting(self, result: Callable[[], Done], name: str) -> Callable[[], Any]:
        def wait() -> Any:
            try:
                done = result()
            except _LOST as error:
                raise EngineError(
                    f"The Ray workers ended while they were at {name} ({type(error).__name__}). Most often the memory "
                    "of their machine is too small for so many pieces at once: lower [engine] workers. "
                    "`offline-dqn nightly` goes on from there."
                ) from error
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # as the piece itself raised it
            used_elsewhere(done.cpu_s, done.peak_bytes)
            return done.found

        return wait


def _started(address: str | None, kwargs: dict[str, Any], stack: ExitStack) -> RayTaskRunner:
    """A node gets 30 s to start, whatever one asks for; a busy machine may need more than one try."""
    for _ in range(_TRIES - 1 if address is None else 0):
        try:
            return stack.enter_context(RayTaskRunner(init_kwargs=kwargs))
        except Exception:
            ray.shutdown()
    return stack.enter_context(RayTaskRunner(address, init_kwargs=kwargs))


def _on_this_machine(n: int) -> Mapping[str, Any]:
    return {"num_cpus": n, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}


def _on_every_node() -> Mapping[str, Mapping[str, str]]:
    """What computes on each node, by its address."""
    asked = {
        str(node["NodeManagerAddress"]): ray.remote(made_by)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("CPU")
    }
    return {name: ray.get(answer) for name, answer in asked.items()}
