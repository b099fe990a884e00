"""One piece of a stage: how it travels to a worker, is worked out there, and what comes back."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from datasets.errors import OfflineDqnError
from datasets.spreading import NotSharedError
from offline_dqn.devices import one_thread

_LARGE_BYTES = 1 << 20
"""Pickled size from which a function goes by a file instead of with every piece."""


class EngineError(OfflineDqnError):
    """Workers that cannot be had, that are not like this process, or that ended in the middle of a piece."""


@dataclass(frozen=True)
class Done:
    """What a piece found in another process.

    Attributes:
        found: returned by its function.
        cpu_s: CPU seconds that it took.
        peak_bytes: most resident memory that its process has held so far.
    """

    found: Any
    cpu_s: float
    peak_bytes: int


class Piece:
    """A function and the item that it is to be called with. Opaque: Prefect looks for futures in what is not."""

    __slots__ = ("function", "item", "name")

    def __init__(self, name: str, function: Callable[[Any], Any], item: Any) -> None:
        """`name` says which of how many it is, such as "fold 2 of 5"."""
        self.name, self.function, self.item = name, function, item


class Workers(Protocol):
    """Workers that have been started."""

    def submit(self, pieces: Sequence[Piece]) -> list[Callable[[], Any]]:
        """Begins all pieces; each of what is returned waits for what one of them found.

        Raises:
            EngineError: then, or when waited for: a worker ended.
            NotSharedError: when waited for: one does not see the workspace.
        """
        ...


def in_flow() -> bool:
    """Whether this is part of a flow run of Prefect, which a command at the shell does not even import."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def work_out(piece: Piece) -> Any:
    """Works a piece out with one thread: how many a worker happens to have must not change the last bits."""
    with one_thread():
        return piece.function(piece.item)


def refuse_others(found: Mapping[str, Mapping[str, str]], here: Mapping[str, str], remedy: str) -> None:
    """Refuses workers whose code, libraries or processor would find other numbers.

    Args:
        found: `made_by` of each worker, by its name.
        here: of this process.
        remedy: how to get workers, where there are none.

    Raises:
        EngineError: there are none, or one differs; says in what.
    """
    if not found:
        raise EngineError(f"[engine] address leads to a cluster without workers: {remedy}.")
    for worker, theirs in found.items():
        apart = [f"{k} {theirs.get(k, 'unknown')} instead of {v}" for k, v in here.items() if theirs.get(k) != v]
        if apart:
            raise EngineError(
                f"The worker {worker} would find other numbers than this process: it has {', '.join(apart)}. Install "
                "the same version and requirements.lock on every machine, restart its workers, and keep to one kind of "
                "processor."
            )


# --- on the way to another process


def pack(value: Any) -> bytes:
    """A value as bytes for a process that sees the same files: arrays that are mapped from a file go by its path."""
    buffer = io.BytesIO()
    _Packer(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class Parcels:
    """Functions as bytes, once for all pieces of a stage; a large one lies in a file that every worker reads once.

    Args:
        folder: that workers see, made when it is needed; `stack` removes it.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder / f"{os.uname().nodename}-{os.getpid()}", stack

    def packed(self, pieces: Sequence[Piece]) -> Iterator[tuple[bytes | str, bytes, str]]:
        """Function, item and name of each piece, as `work_out_packed` takes them."""
        functions: dict[int, bytes | str] = {}
        for piece in pieces:
            if id(piece.function) not in functions:
                functions[id(piece.function)] = self._laid_down(pack(piece.function))
            yield functions[id(piece.function)], pack(piece.item), piece.name

    def _laid_down(self, function: bytes) -> bytes | str:
        if len(function) < _LARGE_BYTES:
            return function
        if not self._folder.exists():
            _remove_left(self._folder.parent)
            self._folder.mkdir(parents=True)
            self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / hashlib.sha256(function).hexdigest()[:16]
        path.write_bytes(function)
        return str(path)


def _remove_left(folder: Path) -> None:
    """What processes of this machine that were killed have left."""
    host = f"{os.uname().nodename}-"
    for left in folder.glob(f"{host}*"):
        process = left.name.removeprefix(host)
        # Else it is of another host, whose name begins like that of this one: its processes are not seen here.
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True)


def work_out_packed(function: bytes | str, item: bytes, name: str) -> Done:
    """`work_out` of a piece that came in bytes, in a process that works out nothing else meanwhile.

    Args:
        function: pickled, or the path of the file that it is pickled in.
        item: pickled.
    """
    began = time.process_time()
    called = cloudpickle.loads(function) if isinstance(function, bytes) else _from_file(function)
    found = work_out(Piece(name, called, cloudpickle.loads(item)))
    return Done(found, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@lru_cache(maxsize=1)
def _from_file(path: str) -> Callable[[Any], Any]:
    try:
        return cloudpickle.loads(Path(path).read_bytes())  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise _not_shared(path, error) from error


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # it ships no types
    """Pickles functions by value where they cannot be imported, and mapped arrays by their file."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.memmap and obj.mode == "r" and obj.filename is not None and _is_whole(obj):
            order = "C" if obj.flags.c_contiguous else "F"
            size = Path(obj.filename).stat().st_size
            return _mapped, (str(obj.filename), size, obj.dtype, obj.offset, obj.shape, order)
        return super().reducer_override(obj)


def _is_whole(array: np.memmap[Any, Any]) -> bool:
    """Whether it is the mapping itself: a view keeps the file's name and not the place of what it shows."""
    return array.base is array._mmap  # type: ignore[attr-defined]  # numpy's own, absent from its types


def _mapped(
    path: str, size: int, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any
) -> NDArray[Any]:
    try:
        found = Path(path).stat().st_size
    except OSError as error:
        raise _not_shared(path, error) from error
    if found != size:
        raise NotSharedError(
            f"{path} is another file on {os.uname().nodename}: {found} bytes, and {size} where the night runs. Mount "
            "the workspace's folder itself on every machine; a copy grows old."
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def _not_shared(path: str, error: OSError) -> NotSharedError:
    return NotSharedError(
        f"The worker on {os.uname().nodename} cannot read {path}: {error.strerror}. Workers read what is large from "
        "the workspace itself: mount its folder under the same path on every machine, or leave [engine] address out."
    )
