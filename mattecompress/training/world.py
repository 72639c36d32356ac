"""The processes that train together: one alone, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process's place among `size` processes, and the device it computes on."""

    rank: int
    size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace gradients by their mean over all processes; a part that no process used counts as 0."""
        if self.size > 1:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._average([parameter.grad for parameter in trained if parameter.grad is not None])

    def average_buffers(self, model: nn.Module) -> None:
        """Replace floating buffers (batch-norm statistics) by their mean over all processes."""
        if self.size > 1:
            self._average([buffer for buffer in model.buffers() if buffer.is_floating_point()])

    def _average(self, tensors: list[Tensor]) -> None:
        """In one message: the many small tensors of a network would wait longer for the wire than for the work."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str | None = None) -> Iterator[World]:
    """Join the processes of torchrun (gloo on CPUs, nccl on GPUs), or be alone where WORLD_SIZE is not set."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
