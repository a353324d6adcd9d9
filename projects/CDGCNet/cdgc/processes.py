"""Sums and selections over the pixels of all processes of a distributed training.

Without a process group the only process is the whole group. Every process must call these
functions, in the same order.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_from_processes(value: Tensor) -> list[Tensor]:
    """One tensor per process, in the order of their ranks; all have the shape of ``value``."""
    if world_size() == 1:
        return [value]
    gathered = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(gathered, value.contiguous())
    return gathered


def largest_over_processes(values: Tensor, share: float) -> Tensor:
    """The largest values of all processes together.

    Of equal values the one of the lower rank is taken first and, within a process, the one that
    comes first in memory order. The selection therefore depends on the values alone, and is that
    of one process that holds the values of all in the order of their ranks.

    Args:
        values: of any shape; each process may have another number of them.
        share: how many to select, or within (0, 1) a fraction of all values.

    Returns:
        Mask of this process's share of the selection, in the shape of ``values``.
    """
    flat = values.flatten()
    size = torch.tensor([flat.numel()], device=flat.device)
    sizes = torch.cat(gather_from_processes(size)).tolist()
    count = min(int(share * sum(sizes)) if 0 < share < 1 else int(share), sum(sizes))
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    length = min(count, max(sizes))
    # The selection takes a process's values in descending order, so its part is known from its
    # length alone.
    ordered, order = flat.sort(descending=True, stable=True)
    candidates = flat.new_full((length,), -torch.inf)
    candidates[: flat.numel()] = ordered[:length]
    candidates = torch.cat(gather_from_processes(candidates))
    winners = candidates.argsort(descending=True, stable=True)[:count]
    rank = dist.get_rank() if world_size() > 1 else 0
    selected = torch.arange(flat.numel(), device=flat.device) < (winners // length == rank).sum()
    return torch.empty_like(selected).scatter_(0, order, selected).view(values.shape)
