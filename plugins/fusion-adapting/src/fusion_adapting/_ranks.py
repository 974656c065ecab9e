"""Several processes that share the tasks: ranks, as torchrun starts them.

Each rank passes its own tasks through its own live model. The ranks exchange little: gradients of
coefficients, and metrics. So they use the store through which torchrun connects them, on CPUs and
GPUs alike. A process group would need further connections and threads, and gloo's can abort a rank
as it ends. Sums are taken in the order of ranks, so that a run gives the same bits for the same
number of ranks and threads.
"""

from __future__ import annotations

import os
import pickle
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from torch import distributed

from fusion_core.errors import FusionError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch._C._distributed_c10d import Store

ItemT = TypeVar("ItemT")
_PATIENCE = timedelta(minutes=30)  # a rank may have to ask many teachers before it answers


@dataclass(frozen=True)
class Exchange:
    """Exchange of items through a store, in turns that every rank takes in the same order."""

    store: Store
    turns: Iterator[int] = field(default_factory=count)

    def gather(self, rank: int, world: int, item: ItemT) -> list[ItemT]:
        """Send one item and return those of all ranks.

        The first rank may be the one that hosts the store. It waits until all have read the items,
        and then deletes them.
        """
        turn = next(self.turns)
        with _named_failure("lost the connection to the other ranks"):
            self.store.set(f"{turn}/{rank}", pickle.dumps(item))  # type: ignore[arg-type] # bytes too
        received = []
        for index in range(world):
            with _named_failure(f"rank {index} sent nothing to the others"):
                received.append(self.store.get(f"{turn}/{index}"))
        with _named_failure("lost the connection to the other ranks"):
            if self.store.add(f"{turn}/read", 1) == world:
                self.store.set(f"{turn}/over", "")
            if rank == 0:
                self.store.wait([f"{turn}/over"])
                for key in (*range(world), "read", "over"):
                    self.store.delete_key(f"{turn}/{key}")
        return [pickle.loads(pickled) for pickled in received]  # noqa: S301 - from this very job


@contextmanager
def _named_failure(failure: str) -> Iterator[None]:
    try:
        yield
    except distributed.DistError as error:
        raise WorkerError(f"{failure} ({error}); see the output of the ranks") from error


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the number of processes; a single process by default."""

    rank: int = 0
    world: int = 1
    exchange: Exchange | None = None

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return this rank's share of items."""
        return list(items[self.rank :: self.world])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks, in their order; the bits are the same on each rank."""
        first, *others = self.gather(values.cpu())
        for other in others:
            first = first + other
        return first.to(values.device)

    def gather(self, item: ItemT) -> list[ItemT]:
        """Return the items of all ranks, in their order."""
        if self.exchange is None:
            return [item]
        return self.exchange.gather(self.rank, self.world, item)

    def broadcast(self, item: ItemT) -> ItemT:
        """Return the first rank's item."""
        return self.gather(item)[0]


@cache
def join_ranks() -> Ranks:
    """Join the processes that torchrun started, if any; call it once per process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not distributed.is_available():
        raise FusionError("this build of torch cannot run several processes")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    except (ValueError, distributed.DistError) as error:
        raise WorkerError(
            f"cannot join the other ranks: {error}; start them by torchrun"
        ) from error
    # A restart by torchrun reuses the store, with the items of the ranks that died.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(rank, world, Exchange(PrefixStore(f"fusion-core/{start}", store)))
