"""Training by several processes at once, each on its part of every batch, with the result of one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from datasets.errors import OfflineDqnError
from offline_dqn.training_data import Batch


class DistributedError(OfflineDqnError):
    """Processes that cannot train together."""


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is; the first one (rank 0) writes what is to be kept.

    Every process draws the same whole batch from a source of its own and computes its part of it. Gradients are
    averaged, so that all processes take the same step as one process would on the whole batch, to rounding, and hold
    the same bits.

    Source: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training (arXiv:2006.15704),
    section 2.2. Differs from it: one reduction after the whole backward pass, the networks being small.
    """

    rank: int = 0
    n_ranks: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process keeps checkpoints, metrics and the result."""
        return self.rank == 0

    def check(self, batch_size: int, fingerprint: str, step: int) -> None:
        """That all can train together: the same data, settings and checkpoint, and parts of equal size.

        Raises:
            DistributedError: they cannot.
        """
        if batch_size % self.n_ranks:
            raise DistributedError(
                f"train.batch_size = {batch_size} cannot be divided among {self.n_ranks} processes; make it a multiple "
                f"of {self.n_ranks}, such as {-(-batch_size // self.n_ranks) * self.n_ranks}."
            )
        first = self.heard(f"{fingerprint} {step}")
        if first.split()[0] != fingerprint:
            raise DistributedError(
                f"process {self.rank} has other data, settings or another version of torch than process 0. Give all of "
                "them the same workspace and the same environment."
            )
        if first.split()[1] != str(step):
            raise DistributedError(
                f"process {self.rank} would go on from update {step}, process 0 from {first.split()[1]}. The workspace "
                "must be one folder that all processes see."
            )

    def part(self, batch: Batch) -> Batch:
        """This process's share of a batch."""
        if self.n_ranks == 1:
            return batch
        n = len(batch.steps) // self.n_ranks
        own = slice(self.rank * n, (self.rank + 1) * n)
        return replace(batch, **{name: values[own] for name, values in vars(batch).items() if values is not None})

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the values of each tensor by their mean over all processes."""
        if self.n_ranks == 1:
            return
        kept = list(tensors)
        together = torch.cat([tensor.reshape(-1) for tensor in kept])
        dist.all_reduce(together)
        together /= self.n_ranks
        for tensor, mean in zip(kept, torch.split(together, [tensor.numel() for tensor in kept]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """Its mean over all processes."""
        mean = tensor.clone()
        self.mean_([mean])
        return mean

    def mean_of(self, metrics: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The mean of each number over all processes."""
        if self.n_ranks == 1:
            return dict(metrics)
        names = sorted(metrics)
        values = self.mean(torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=device))
        return {name: float(value) for name, value in zip(names, values, strict=True)}

    def gathered(self, values: Tensor) -> Tensor:
        """Of every process, in the order of their parts of the batch."""
        if self.n_ranks == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.n_ranks)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def heard(self, text: str) -> str:
        """What process 0 says here; the others wait for it."""
        if self.n_ranks == 1:
            return text
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        said = list(text.encode())
        length = torch.tensor([len(said)], device=device)
        dist.broadcast(length, src=0)
        letters = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.rank == 0:
            letters.copy_(torch.tensor(said, dtype=torch.uint8))
        dist.broadcast(letters, src=0)
        return bytes(letters.tolist()).decode()


ALONE = Ranks()
"""One process."""


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started: over NCCL where each has a GPU, else over Gloo.

    Raises:
        DistributedError: `torchrun` did not start this process.
    """
    if "LOCAL_RANK" not in os.environ:
        raise DistributedError("this process was not started by torchrun: `torchrun --nproc-per-node 2 -m ...`.")
    local = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # nobody leaves while another still speaks to it
    finally:
        dist.destroy_process_group()
