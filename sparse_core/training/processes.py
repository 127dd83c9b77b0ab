"""Several processes in one training: each computes its share of every batch, and all take the same step.

Every process draws the whole batch from the same seed and keeps its own rows, so that the result is that of one process
with the whole batch, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """Those that share a training, as one of them sees it: this one is alone. All must call the same methods in the same
    order, with tensors of the same shapes."""

    def __init__(self, count: int = 1, rank: int = 0) -> None:
        self.count, self.rank = count, rank

    @property
    def leads(self) -> bool:
        """Whether this is the one that prints and writes files."""
        return self.rank == 0

    @property
    def own(self) -> slice:
        """The rows of a batch that are this process's to compute. Every so manieth, not a run of them: rows are ordered by
        kind and noise level, and each process is to see the mix."""
        return slice(self.rank, None, self.count)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of everybody's tensor."""
        return tensor

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of the whole batch in order, from everybody's own."""
        return rows

    def any(self, flag: bool) -> bool:
        """Whether it holds for anybody."""
        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Puts everybody's mean in place of each tensor."""
        if self.count == 1:  # spares a copy of all gradients
            return
        means = self.mean(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


ALONE = Processes()


class Accelerated(Processes):
    """Processes that Hugging Face accelerate works with."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator.num_processes, accelerator.process_index)
        self.accelerator = accelerator

    def mean(self, tensor: Tensor) -> Tensor:
        """See `Processes.mean`."""
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "mean").to(tensor.device)

    def whole(self, rows: Tensor) -> Tensor:
        """See `Processes.whole`."""
        gathered = self.accelerator.gather(rows.to(self.accelerator.device).contiguous())
        return gathered.unflatten(0, (self.count, -1)).transpose(0, 1).flatten(0, 1).to(rows.device)


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that this one was started with, while the context lasts: by ``accelerate launch`` or ``torchrun``, or
    alone. Each gets its own GPU.

    :raises ModuleNotFoundError: there are several, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # else it takes each process without a GPU to be alone
    try:
        yield Accelerated(accelerator)
    finally:
        accelerator.end_training()
