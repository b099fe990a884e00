"""Where training runs, how precisely, and whether its networks fit there: said before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from datasets.errors import OfflineDqnError
from offline_dqn.architecture import CONVOLUTIONS, Architecture
from offline_dqn.train_config import TrainConfig

_STATES = 5
"""Of each parameter: online, target, gradient, and Adam's two moments."""

_SAVED = 4
"""Of these, what a checkpoint holds, beside the networks kept as candidates; it is put together in memory, twice."""

_PASSES = 3
"""Of a batch's activations: those of the online network, their gradients, and those of the target."""

_WATCHED_ROWS = 65_536
"""Observations that pass through a kept network at once."""

_SURELY_FITS = 256_000_000


class DeviceError(OfflineDqnError):
    """A device or precision that this machine does not have, or networks that do not fit."""


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one.

    Raises:
        DeviceError: torch does not know it, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise DeviceError(
            f"train.device = '{name}' cannot be used here ({str(error).splitlines()[0][:120]}). This machine and this "
            f'build of torch have: {", ".join(there)}. "auto" takes a GPU if there is one.'
        ) from error
    return device


@contextmanager
def threads(n_threads: int | None) -> Iterator[None]:
    """Let torch use so many threads (None: as many as it does), and give the process its own number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and the linear algebra behind numpy use one thread.

    They cut sums by the number of threads, which changes the last bits: what is recorded must not depend on how many a
    process happens to have.
    """
    with threads(1), threadpool_limits(limits=1):
        yield


def kernels_here() -> str:
    """Which kernels numpy's linear algebra and torch chose for this processor, such as "SkylakeX AVX512"."""
    chosen = {str(found["architecture"]) for found in threadpool_info() if "architecture" in found}
    return " ".join([*sorted(chosen), torch.backends.cpu.get_cpu_capability()])


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bf16 where that is asked for; weights, losses and optimizer stay in fp32.

    Raises:
        DeviceError: bf16 is asked for and the device computes it only by imitation, slower than fp32.
    """
    able = _has_bf16(device)
    if precision == "bf16" and not able:
        raise DeviceError(
            f"train.precision = 'bf16', and this {device.type} has no instructions for it: it would be slower than "
            "fp32, not faster. Set it to 'fp32', or to 'auto'."
        )
    enabled = precision == "bf16" or (precision == "auto" and able and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def refuse_too_large(architecture: Architecture, config: TrainConfig, n_steps: int, device: torch.device) -> None:
    """Checks that the networks fit.

    Args:
        architecture: of all networks together.
        config: batch size and candidates.
        n_steps: that are learned from.
        device: where.

    Raises:
        DeviceError: they need more memory than there is.
    """
    available = available_bytes(device)
    parameters, batch = needed_bytes(architecture, config, n_steps)
    if available is None or parameters + batch <= max(available, _SURELY_FITS):
        return
    n = sum(math.prod(shape) for shape in architecture.parameter_shapes().values()) / architecture.n_members
    raise DeviceError(
        f"the networks are too large for memory: {architecture.n_members} networks of {n:,.0f} parameters need about "
        f"{parameters / 1e9:.1f} GB with targets, gradients, optimizer and candidates, and {batch / 1e9:.1f} GB for "
        f"what passes through them; {available / 1e9:.1f} GB of the {device.type}'s memory are available. Make "
        f"train.hidden ({', '.join(map(str, config.hidden))}) or train.batch_size ({config.batch_size}) smaller, or "
        f"train fewer networks (n_members = {config.n_members}; each penalty weight, target gap and BCQ threshold has "
        "its own)."
    )


def needed_bytes(architecture: Architecture, config: TrainConfig, n_steps: int) -> tuple[int, int]:
    """About what parameters and activations take, in bytes; arguments as `refuse_too_large`."""
    n_kept = len(config.candidates_at)
    n = sum(math.prod(shape) for shape in architecture.parameter_shapes().values())
    copies = _STATES + n_kept + 2 * (_SAVED + n_kept)
    outputs = architecture.n_actions * architecture.n_quantiles
    units = sum(architecture.hidden) + outputs
    if architecture.n_quantiles > 1:
        units += architecture.n_quantiles**2  # every quantile against every target
    if architecture.image is not None:
        pixels = architecture.image.height * architecture.image.width
        units += sum(channels * pixels // 4 ** (i + 1) for i, channels in enumerate(CONVOLUTIONS))
    learned = _PASSES * config.batch_size * architecture.n_members * units
    watched = min(n_steps, _WATCHED_ROWS) * config.n_members * 2 * max(*architecture.layer_sizes, outputs)
    return 4 * n * copies, 4 * max(learned, watched)


def available_bytes(device: torch.device) -> int | None:
    """Memory that can be had on the device now; None where the system does not say."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    known = [found for found in (_of_machine(), _of_container()) if found is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _of_container() -> int | None:
    """What a control group (version 2) leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or it has no limit ("max")
        return None
    return max(0, limit - used + int(stat.get("inactive_file", 0)))
