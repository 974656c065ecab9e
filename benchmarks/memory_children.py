"""The parts of `memory.py` that need torch, as separate programs with their own peaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def build(directory: str, *sizes: str) -> None:
    """Write a base and three experts of each size, with the shapes of Llamas."""
    import torch
    from llama import Llama
    from methods_children import write_models

    shapes = {
        "small": Llama(256, 704, 4, 4, 2, 4_000),
        "middle": Llama(512, 1_408, 6, 8, 2, 32_000),
        "large": Llama(1_024, 2_816, 6, 16, 4, 32_000),  # the largest tensors count, not layers
    }
    for size in sizes:
        folder = Path(directory) / size
        folder.mkdir()
        dtype = torch.bfloat16 if size == "large" else torch.float32
        write_models(folder, shapes[size], ["base", "x", "y", "z"], dtype=dtype)


def methods() -> None:
    """Print pipeline and maximal experts of every installed method without data, by name."""
    from fusion_core import AlgorithmSpec
    from fusion_core.commands import load_plugins

    around = {
        "transform": lambda name: [name, "task-arithmetic"],
        "calibrate": lambda name: ["task-arithmetic", name],
        "merge": lambda name: [name],
    }
    specs = [component.spec for component in load_plugins().components(AlgorithmSpec)]
    free = [spec for spec in specs if spec.needs_tasks == "none"]
    pipelines = {spec.name: (around[spec.stage](spec.name), spec.max_experts) for spec in free}
    print(json.dumps(pipelines))


def merge(recipe: str, workers: str) -> None:
    """Plan a recipe, estimate its memory, run it, and print estimate and peak."""
    from fusion_core import RunOptions, check, plan
    from fusion_core.commands import execute
    from fusion_core.machine.memory import peak_memory

    planned = plan(json.loads(Path(recipe).read_text()), RunOptions(workers=int(workers)))
    estimate = check(planned).memory
    bare = peak_memory()
    execute(planned)
    measured = {
        "bare": bare,
        "peak": peak_memory(),
        "at_least": estimate.at_least,
        "estimate": estimate.total - estimate.process,
        "compiles": "numba" in sys.modules,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    children: dict[str, Callable[..., None]] = {
        function.__name__: function for function in (build, methods, merge)
    }
    children[sys.argv[1]](*sys.argv[2:])
