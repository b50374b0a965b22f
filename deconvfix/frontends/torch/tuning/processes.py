"""Sums and means over the processes of torch.distributed; one process alone where it is not in use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["average", "rank", "total", "world"]


def in_use() -> bool:
    """Whether several processes work together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """The number of this process."""
    return torch.distributed.get_rank() if in_use() else 0


def world() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if in_use() else 1


def total(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes, in place."""
    if not in_use():
        return
    on_gpu = torch.distributed.get_backend() == "nccl"  # which reduces nothing else
    for tensor in tensors:
        there = tensor.cuda() if on_gpu else tensor
        torch.distributed.all_reduce(there)
        if there is not tensor:
            tensor.copy_(there)


def average(*values: float) -> list[float]:
    """Means over all processes, so that every process decides alike."""
    sums = torch.tensor([*values, 1.0], dtype=torch.float64)
    total([sums])
    # The last entry has become the number of processes.
    mean: list[float] = (sums[:-1] / sums[-1]).tolist()
    return mean
