"""Several processes that share the tasks out: ranks, as torchrun starts them.

Each rank passes its own tasks through a live model of its own. What is exchanged is small
(gradients of coefficients, and figures), so it goes through the store where the ranks of a job meet
anyway, for CPUs and GPUs alike: a process group would be another set of connections and threads,
and gloo's can abort a rank as it ends. Sums are taken in the order of ranks, so that a run at the
same number of ranks and threads gives the same bits.
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
_PATIENCE = timedelta(minutes=30)  # a rank may have many tasks to record before it answers


@dataclass(frozen=True)
class Meeting:
    """Where ranks leave what they bring: in turns, which every rank takes in the same order."""

    store: Store
    turns: Iterator[int] = field(default_factory=count)

    def gathered(self, rank: int, world: int, item: ItemT) -> list[ItemT]:
        """Leave one item and return everybody's; the first rank clears them away once all are read.

        The first rank may be the one that holds the store: it stays until the others have read.
        """
        turn = next(self.turns)
        with _meeting("the ranks no longer meet"):
            self.store.set(f"{turn}/{rank}", pickle.dumps(item))  # type: ignore[arg-type] # bytes too
        brought = [self._brought(turn, index) for index in range(world)]
        with _meeting("the ranks no longer meet"):
            if self.store.add(f"{turn}/read", 1) == world:
                self.store.set(f"{turn}/over", "")
            if rank == 0:
                self._clear(turn, world)
        return [pickle.loads(each) for each in brought]  # noqa: S301 - of this very job

    def _brought(self, turn: int, rank: int) -> bytes:
        with _meeting(f"rank {rank} brought nothing to the others"):
            return self.store.get(f"{turn}/{rank}")

    def _clear(self, turn: int, world: int) -> None:
        self.store.wait([f"{turn}/over"])
        for key in (*range(world), "read", "over"):
            self.store.delete_key(f"{turn}/{key}")


@contextmanager
def _meeting(failure: str) -> Iterator[None]:
    try:
        yield
    except distributed.DistError as error:
        raise WorkerError(f"{failure} ({error}); see what they printed") from error


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; alone by default."""

    rank: int = 0
    world: int = 1
    meeting: Meeting | None = None

    def own(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return this rank's share."""
        return list(items[self.rank :: self.world])

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks, in their order; the same bits on each."""
        first, *others = self.gathered(values.cpu())
        for other in others:
            first = first + other
        return first.to(values.device)

    def gathered(self, item: ItemT) -> list[ItemT]:
        """Return what every rank brought, in their order."""
        if self.meeting is None:
            return [item]
        return self.meeting.gathered(self.rank, self.world, item)

    def from_first(self, item: ItemT) -> ItemT:
        """Return what the first rank brought."""
        return self.gathered(item)[0]


@cache
def joined_ranks() -> Ranks:
    """Join the processes that torchrun started, if it did; once in a process."""
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
    # Where torchrun starts all ranks again, it keeps the store, and in it what the dead ones left.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(rank, world, Meeting(PrefixStore(f"fusion-core/{start}", store)))
