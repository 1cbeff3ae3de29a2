"""Training in several processes (torchrun): start, batch norm over the whole batch, and reductions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce as _all_reduce  # differentiable


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one process that writes files and prints."""
        return self.rank == 0


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes torchrun started, or stand alone. One GPU a process where there are GPUs, else gloo on CPU."""
    has_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield World(0, 1, 1, torch.device("cuda" if has_gpu else "cpu"))
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device)
    finally:
        dist.destroy_process_group()


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch over all processes.

    torch's SyncBatchNorm does this on GPUs only; this one also runs on gloo, so that any number of processes gives
    the loss curve of one.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        n_local = x_NCHW.new_full((1,), x_NCHW.numel() / x_NCHW.shape[1])
        sums = all_reduce(torch.cat([x_NCHW.sum(dim=(0, 2, 3)), n_local]))
        n, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x_NCHW - mean.view(1, -1, 1, 1)
        variance = all_reduce((centred * centred).sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            momentum = self.momentum if self.momentum is not None else 0.1
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * (n / (n - 1)), momentum)
            self.num_batches_tracked.add_(1)
        normalised = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        scaled: Tensor = normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return scaled


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over all processes, with gradients."""
    total: Tensor = _all_reduce(tensor)  # type: ignore[no-untyped-call]
    return total


def use_global_batch_norm(module: nn.Module) -> None:
    """Let every batch norm below ``module`` see the whole batch; parameters and names stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm2d


def summed(value: float, world: World) -> float:
    """The sum of a number over all processes."""
    if world.size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=world.device)
    dist.all_reduce(tensor)
    return float(tensor)
