"""The executors of this process, and their options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fusion_core.recipe.config import ComponentConfig

if TYPE_CHECKING:
    from concurrent.futures import Executor


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class ThreadsConfig(ComponentConfig):
    """The options of `threads`."""

    workers: Annotated[int, Field(ge=1)] = Field(default_factory=_usable_cores)
    """The number of threads that merge; default: one per core."""


def make_threads(config: ThreadsConfig) -> Executor:
    """Return an executor with threads of this process."""
    from fusion_core.weights.merging.execution import Threads

    return Threads(config.workers)


def make_serial(_: ComponentConfig) -> Executor:
    """Return an executor that works on the calling thread."""
    from fusion_core.weights import SerialExecutor

    return SerialExecutor()
