"""The estimated memory of a worker, against the measured one, for every method without data."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion_core import AlgorithmSpec, RunContext, RunOptions, plan
from fusion_core.checking._working import working_memory
from fusion_core.commands import load_plugins
from fusion_core.planning.pipeline import apply_stages
from fusion_core.weights import Columns, Matrices, Rows, Stacked
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins

#: Tall, wide and square: what grows with one side or the other is told apart.
SHAPES = [(2400, 80), (80, 1200), (320, 320)]
AROUND = {"transform": "{} task-arithmetic", "merge": "{}", "calibrate": "task-arithmetic {}"}
OPTIONS: dict[str, dict[str, Any]] = {"wudi": {"steps": 2}, "doge": {"steps": 2}}
#: They return tensors of single models, and hold next to nothing.
COPIES = {"moe", "passthrough", "stack"}
#: The workspace of LAPACK in addition to the result, in squares of the smaller side.
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
    specs = [component.spec for component in load_plugins().components(AlgorithmSpec)]
    free = (spec for spec in specs if spec.needs_tasks == "none" and spec.name not in COPIES)
    return {
        spec.name: Method(
            AROUND[spec.stage].format(spec.name), spec.max_experts, spec.cost == "matrices"
        )
        for spec in free
    }


METHODS = methods()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", METHODS)
def test_the_memory_of_a_worker_is_estimated_from_its_kernels(method: str) -> None:
    shapes = SHAPES if METHODS[method].is_matrixwise else SHAPES[:1]
    for shape in shapes:
        estimated, held = measure_one_tensor(method, shape)
        assert held / 1.3 <= estimated
        assert estimated <= 1.6 * held


class Interleaved(CheckpointsPool):
    """Eight experts of two matrices (320, 240), transposed and row by row in turns."""

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        del name, shape
        return Matrices((Stacked(8), Columns(240), Rows(320), Rows(gate=1, up=1)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "trim", "iso-c", "tsv-m", "svc"])
@pytest.mark.parametrize("kind", [CheckpointsPool, Interleaved])
def test_the_memory_of_a_worker_with_packed_matrices_is_estimated(
    method: str, kind: type[CheckpointsPool], tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("base", *"abc")}
    for path in paths.values():  # files: of tensors in memory, views count as all of them
        save_file({"mlp.experts.gate_up": torch.randn(8, 240, 640, generator=draw)}, path)
    estimated, held = measure_merge(
        method, kind(CheckpointsConfig(base=paths.pop("base"), models=paths))
    )
    assert held / 1.3 <= estimated
    assert estimated <= 1.6 * held


def measure_one_tensor(method: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the estimated and the measured bytes of a merge of one tensor of a shape."""
    most = METHODS[method].most
    draw = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(shape, generator=draw)
    experts = {
        name: {"w": base + 1e-3 * torch.randn(shape, generator=draw)} for name in "abc"[:most]
    }
    return measure_merge(
        method, CheckpointsPool(CheckpointsConfig(base={"w": base}, models=experts))
    )


def measure_merge(method: str, pool: CheckpointsPool) -> tuple[int, int]:
    """Return the estimated and the measured bytes of a merge of a pool's only tensor."""
    names = METHODS[method].stages.split()
    stages = [{"name": name, **OPTIONS.get(name, {})} for name in names]
    planned = plan({"algorithm": stages, "model_pool": pool}, RunOptions(workers=1))
    merged = apply_stages(planned.stages, planned.aligned, RunContext())
    (estimated,) = working_memory(merged)
    merged.prepare(RunContext().executor)
    merged.prepare(RunContext().executor, estimated.name)
    with Held() as held:
        for span in merged.ranges(estimated.name):
            merged.read(estimated.name, *span)
    return estimated.bytes, held.peak
