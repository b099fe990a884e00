"""Where the pieces of a stage are worked out: threads, Dask or Ray, each started and ended by Prefect's task runner.

Inside a flow every piece is a task run of it, to be seen in Prefect's UI; a command at the shell has no flow and needs
no server, and gives the same pieces to the same workers. Nothing here changes a number: a piece computes with one
thread wherever it is, and what the pieces found comes back in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.spreading import Found, Item, Spread, one_by_one
from offline_dqn.devices import one_thread
from pipelines.engine_config import EngineConfig
from pipelines.pieces import EngineError, Parcels, Piece, Workers, in_flow, work_out

if TYPE_CHECKING:  # a command at the shell does without Prefect
    from prefect.task_runners import TaskRunner

_active: ContextVar[Spread | None] = ContextVar("engine", default=None)
"""That of the night or command under way: the stages in it share its workers."""


@contextmanager
def spreading(config: EngineConfig, root: Path) -> Iterator[Spread]:
    """What works out pieces, as configured; workers start with the first piece and end with the outermost `with`.

    Args:
        config: of the engine.
        root: folder of the workspace, which workers see, too.

    Raises:
        EngineError: the extra is not installed. Asked for pieces, what it yields raises one where workers cannot be
            had, are not like this process, or end in the middle of a piece.
    """
    active = _active.get()
    if active is not None:
        yield active
        return
    if not config.is_spread:
        yield one_by_one
        return
    with ExitStack() as stack:
        token = _active.set(_Engine(config, root, stack))
        try:
            yield _active.get() or one_by_one
        finally:
            _active.reset(token)


class _Engine:
    """A `Spread` that starts its workers when it first needs them."""

    def __init__(self, config: EngineConfig, root: Path, stack: ExitStack) -> None:
        self._config, self._root, self._stack = config, root, stack
        self._workers: Workers | None = None

    def __call__(self, what: str, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        if len(items) < 2:
            return one_by_one(what, function, items)
        if self._workers is None:
            self._workers = _started(self._config, self._root, self._stack)
        pieces = [Piece(f"{what} {number} of {len(items)}", function, item) for number, item in enumerate(items, 1)]
        with one_thread():  # of the whole process, so that no piece that ends lets the others have more
            waiting = self._workers.submit(pieces)
            return [wait() for wait in waiting]


def _started(config: EngineConfig, root: Path, stack: ExitStack) -> Workers:
    if config.kind == "threads":
        return _Threads(config, stack)
    parcels = Parcels(root / ".engine", stack)
    try:
        if config.kind == "dask":
            from pipelines.dask_workers import DaskWorkers

            return DaskWorkers(config, parcels, stack)
        from pipelines.ray_workers import RayWorkers

        return RayWorkers(config, parcels, stack)
    except ImportError as error:
        raise EngineError(
            f'[engine] kind = "{config.kind}" needs the extra of that name, and {error.name} is not installed: '
            f"pip install 'offline-dqn[pipeline,{config.kind}]', or leave [engine] kind out."
        ) from error


class _Threads:
    def __init__(self, config: EngineConfig, stack: ExitStack) -> None:
        self._n, self._stack = config.n_local, stack
        self._runner: TaskRunner[Any] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, pieces: Sequence[Piece]) -> list[Callable[[], Any]]:
        if in_flow():
            return [self._as_task(piece) for piece in pieces]
        if self._pool is None:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self._n, "engine"))
        return [self._pool.submit(work_out, piece).result for piece in pieces]

    def _as_task(self, piece: Piece) -> Callable[[], Any]:
        from prefect.task_runners import ThreadPoolTaskRunner

        from pipelines.piece_task import piece_task

        if self._runner is None:
            self._runner = self._stack.enter_context(ThreadPoolTaskRunner(max_workers=self._n))
        named = piece_task.with_options(name=piece.name.split()[0], task_run_name=piece.name)
        return self._runner.submit(named, {"piece": piece}).result
