"""Several processes that share the tasks out: ranks, as torchrun starts them.

Each rank holds the live model and the task vectors, passes its own tasks through and projects its
own summed gradient once. What is exchanged is small, and summed in the order of ranks, so that a
run at the same number of ranks and threads gives the same bits.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Sequence

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; alone by default."""

    rank: int = 0
    world: int = 1

    def own(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return this rank's share."""
        return list(items[self.rank :: self.world])

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks, in their order; the same bits on each."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        distributed.all_gather(parts, values.contiguous())
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def gathered(self, item: ItemT) -> list[ItemT]:
        """Return what every rank brought, in their order."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        distributed.all_gather_object(items, item)
        return items

    def from_first(self, item: ItemT) -> ItemT:
        """Return what the first rank brought."""
        return self.gathered(item)[0]


def ranks_of(device: torch.device) -> Ranks:
    """Join the processes that torchrun started, if it did: over gloo, or nccl on GPUs.

    They stay joined until the process ends: a group that is left and joined anew may hang.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not distributed.is_available():
        raise FusionError("this build of torch cannot run several processes")
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), world)
