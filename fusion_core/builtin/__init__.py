"""The core's own plugin, registered like any other: a pool, and two executors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.errors import RecipeError
from fusion_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the pool of any checkpoints."""
    yield ModelPoolSpec(
        name="checkpoints",
        summary="Any safetensors checkpoints and LoRA adapters: paths, hub ids, or live models.",
        target="fusion_core.builtin.checkpoints:CheckpointsPool",
        config="fusion_core.builtin.checkpoints_config:CheckpointsConfig",
        offline=True,
    )


@hookimpl
def fusion_create_executor(name: str, options: Mapping[str, str]) -> Executor | None:
    """Create the executors that need nothing but this process."""
    if name == "serial":
        if options:
            raise RecipeError(f"executor 'serial' has no option {', '.join(sorted(options))}")
        from fusion_core.weights import SerialExecutor

        return SerialExecutor()
    if name == "threads":
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(_workers(options), thread_name_prefix="fusion")
    return None


def _workers(options: Mapping[str, str]) -> int | None:
    """Return the number of workers, None for the executor's own choice."""
    if unknown := options.keys() - {"workers"}:
        raise RecipeError(f"executor 'threads' has no option {', '.join(sorted(unknown))}")
    if "workers" not in options:
        return cores()
    if not options["workers"].isdecimal() or int(options["workers"]) < 1:
        raise RecipeError(f"--workers {options['workers']}: not a positive number")
    return int(options["workers"])


def cores() -> int:
    """Return how many cores this process may use: the workers that executors have by default."""
    import os

    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
