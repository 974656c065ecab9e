"""How many tasks workers can run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def capacity(workers: Iterable[Mapping[str, Any]], resources: Mapping[str, float]) -> int:
    """Return how many tasks that need `resources` the workers of a scheduler run at once."""
    return sum(_of_one(worker["nthreads"], worker["resources"], resources) for worker in workers)


def _of_one(threads: int, has: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return min([threads, *(int(has.get(name, 0) // amount) for name, amount in needs.items())])
