"""Training by several processes, as `torchrun` starts them.

Every process holds the whole supernet, draws the same children and works on its share of each
batch; gradients are summed, and batch norms use the moments of the whole batch. So the same seed
and the same batch size give the same training with any number of processes, up to rounding.
Without torchrun there is one worker and nothing is communicated.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from bignas.device_db.errors import InputError
from bignas.supernet.layer import Layer
from bignas.supernet.layers import EPSILON, BatchExecution

__all__ = ["ALONE", "SynchronizedExecution", "Workers", "is_first_worker", "workers"]


@dataclass(frozen=True)
class Workers:
    """The processes of one training run as seen by one of them, which computes on `device`."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raise InputError unless the workers can share a batch evenly."""
        if batch_size % self.count:
            raise InputError(f"a batch of {batch_size} cannot be shared by {self.count} processes")

    def execution(self, alone: BatchExecution) -> BatchExecution:
        """How layers are computed in training, given how one worker alone would do it."""
        return alone if self.count == 1 else SynchronizedExecution(alone, self.count)

    @property
    def share(self) -> slice:
        """Which items of a batch or list are this worker's."""
        return slice(self.rank, None, self.count)

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers, in one message."""
        if self.count > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            _scatter(flat, tensors)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of the first worker."""
        if self.count > 1:
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
            dist.broadcast(flat, src=0)
            _scatter(flat, tensors)

    def sum_of(self, values: Sequence[float]) -> list[float]:
        """Sums over all workers, value by value."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(total)
        return [float(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any worker."""
        return self.sum_of([float(flag)])[0] > 0


ALONE = Workers(0, 1, torch.device("cpu"))


@contextmanager
def workers() -> Iterator[Workers]:
    """The workers that torchrun started, else this process alone; on a GPU where there is one."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers(0, 1, device)
        return
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def is_first_worker() -> bool:
    """Whether this process is the one that reports."""
    return os.environ.get("RANK", "0") == "0"


class SynchronizedExecution(BatchExecution):
    """Batch norms use the moments of the batches of all workers; the rest is as in `alone`."""

    def __init__(self, alone: BatchExecution, count: int) -> None:
        self._alone = alone
        self._count = count

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve this worker's images."""
        return self._alone.convolve(layer, x, weight, bias)

    def normalize(self, name: str, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise by moments that are averaged over the workers, whose shares are equal."""
        del name
        centred = y - _channelwise(self._mean(y))
        variance = self._mean(centred.square())
        factor = scale * torch.rsqrt(variance + EPSILON)
        return centred * _channelwise(factor) + _channelwise(shift)

    def _mean(self, y: Tensor) -> Tensor:
        total: Tensor = all_reduce(y.float().mean((0, 2, 3)))  # type: ignore[no-untyped-call]
        return total / self._count


def _channelwise(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
