"""What a worker is said to hold, against what its tensors take, for every method without data."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion_core import AlgorithmSpec, RunContext, RunOptions, plan
from fusion_core.checking._working import working_memory
from fusion_core.commands import load_plugins
from fusion_core.planning.pipeline import apply_stages

pytestmark = pytest.mark.plugins

#: Tall, wide and square: what grows with one side or the other is told apart.
SHAPES = [(2400, 80), (80, 1200), (320, 320)]
AROUND = {"transform": "{} task-arithmetic", "merge": "{}", "calibrate": "task-arithmetic {}"}
OPTIONS: dict[str, dict[str, Any]] = {"wudi": {"steps": 2}, "doge": {"steps": 2}}
#: They return tensors of single models, and hold next to nothing.
COPIES = {"passthrough", "stack"}
#: What LAPACK takes beside the result, in squares of the smaller side.
WORKSPACES = {"linalg_eigh": 2, "linalg_svd": 4, "linalg_solve_ex": 1}


class Held(TorchDispatchMode):
    """Count the bytes of all tensors that are alive, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata  # noqa: SLF001 - the one identity that storages have
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        squares = next((n for name, n in WORKSPACES.items() if name in str(func)), 0)
        workspace = 0 if not squares else squares * min(args[0].shape) ** 2 * args[0].itemsize
        self.peak = max(self.peak, sum(self.alive.values()) + workspace)
        return returned


class Method(NamedTuple):
    stages: str
    most: int | None
    is_matrixwise: bool


def methods() -> dict[str, Method]:
    specs = [each.spec for each in load_plugins().components(AlgorithmSpec)]
    free = (spec for spec in specs if spec.needs_tasks == "none" and spec.name not in COPIES)
    return {
        spec.name: Method(
            AROUND[spec.stage].format(spec.name), spec.max_experts, spec.cost == "matrices"
        )
        for spec in free
    }


METHODS = methods()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_worker_holds_is_said_by_its_kernels(method: str) -> None:
    shapes = SHAPES if METHODS[method].is_matrixwise else SHAPES[:1]
    for shape in shapes:
        said, held = compared(method, shape)
        assert held / 1.3 <= said
        assert said <= 1.6 * held


def compared(method: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Return what is said and what is held while one tensor of a shape is merged."""
    stages, most = METHODS[method].stages, METHODS[method].most
    draw = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(shape, generator=draw)
    experts = {
        name: {"w": base + 1e-3 * torch.randn(shape, generator=draw)} for name in "abc"[:most]
    }
    raw = {
        "algorithm": [{"name": name, **OPTIONS.get(name, {})} for name in stages.split()],
        "model_pool": {"base": {"w": base}, "models": experts},
    }
    planned = plan(raw, RunOptions(workers=1))
    merged = apply_stages(planned.stages, planned.aligned, RunContext())
    merged.prepare(RunContext().executor)
    merged.prepare(RunContext().executor, "w")
    (said,) = working_memory(merged)
    with Held() as held:
        merged.read("w", 0, said.elements)
    return said.bytes, held.peak
