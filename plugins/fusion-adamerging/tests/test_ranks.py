"""Several processes share the tasks and find the same coefficients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.adarank import AdaRank
from fusion_adamerging.symerge import SyMerge
from fusion_core import RunContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from pools_checkpoints import CheckpointsPool

HERE = Path(__file__).parent
SCRIPT = """
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[2])
from conftest import RandomTasks, TurnedTask, pool_of
from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.adarank import AdaRank
from fusion_adamerging.symerge import SyMerge
from fusion_core import RunContext

torch.set_num_threads(1)
names = ("layer", "task", "row")
methods = {name: AdaMerging(steps=8, lr=0.05, granularity=name) for name in names}
methods |= {"component": AdaRank(steps=8, lr=0.07), "layer again": methods["layer"]}
for name, method in methods.items():
    context = RunContext(tasks=RandomTasks(("a", "b"), TurnedTask))
    method.run(pool_of("mlp", experts=3, dtype=torch.float64), context)
    path = Path(sys.argv[1], f"{name}-{os.environ.get('RANK', 0)}.json")
    path.write_bytes(context.side_files["coefficients.json"])
context = RunContext(tasks=RandomTasks(("a", "b"), TurnedTask))
pool = pool_of("mlp", experts=3, dtype=torch.float64)
SyMerge(steps=8, own_lr=0.02).run(pool, context)
own = context.side_files["task_tensors.safetensors"].state_dict()
torch.save(own, Path(sys.argv[1], f"own-{os.environ.get('RANK', 0)}.pt"))
"""
Results = dict[str, dict[str, dict[str, float]]]


def _search_in_processes(folder: Path, world: int) -> list[Results]:
    """Search in `world` processes; return the coefficients of each process by method."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    arguments = ["--rdzv-endpoint=127.0.0.1:0", str(script), str(folder), str(HERE)]
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, check=False, timeout=1800, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        {
            name: json.loads((folder / f"{name}-{rank}.json").read_text())["coefficients"]
            for name in ("layer", "task", "row", "component", "layer again")
        }
        for rank in range(world)
    ]


def _flat(coefficients: dict[str, dict[str, float]]) -> torch.Tensor:
    values = [value for row in coefficients.values() for value in row.values()]
    return torch.tensor(values, dtype=torch.float64)


def _search_alone(pool: CheckpointsPool, tasks: Any, shared: str) -> dict[str, dict[str, float]]:
    context = RunContext(tasks=tasks)
    if shared == "component":
        AdaRank(steps=8, lr=0.07).run(pool, context)
    else:
        AdaMerging(steps=8, lr=0.05, granularity=shared).run(pool, context)
    coefficients: dict[str, dict[str, float]] = json.loads(context.side_files["coefficients.json"])[
        "coefficients"
    ]
    return coefficients


@pytest.mark.thorough
def test_several_processes_find_the_coefficients_of_one(
    tmp_path: Path, make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    tasks = type(turned_tasks)(("a", "b"), turned_tasks.kind)
    # Ranks sum the tasks' gradients in another order, and Adam divides a gradient by its own size:
    # rounding by e of its terms changes a step by lr * e / |gradient|. That is below the tolerance,
    # 1e-6 of coefficients of 0.2, for gradients above 2 % of their terms in fp32, 3e-11 in fp64.
    alone = {
        granularity: _search_alone(
            make_pool("mlp", experts=3, dtype=torch.float64), tasks, granularity
        )
        for granularity in ("layer", "task", "row", "component")
    }
    both = _search_in_processes(tmp_path / "two", 2)
    assert both[0] == both[1], "every rank ends with the same coefficients"
    assert both[0]["layer again"] == both[0]["layer"], "and again with the same bits"
    idle = _search_in_processes(tmp_path / "three", 3)  # more processes than tasks
    assert all(coefficients == idle[0] for coefficients in idle)
    context = RunContext(tasks=tasks)
    method = SyMerge(steps=8, own_lr=0.02)
    method.run(make_pool("mlp", experts=3, dtype=torch.float64), context)
    layers: Any = context.side_files["task_tensors.safetensors"]
    for folder, world in (("two", 2), ("three", 3)):
        ranks = [torch.load(tmp_path / folder / f"own-{rank}.pt") for rank in range(world)]
        for name, values in layers.state_dict().items():
            assert all(torch.equal(tensors[name], ranks[0][name]) for tensors in ranks)
            torch.testing.assert_close(ranks[0][name], values, rtol=1e-6, atol=1e-8)
    for granularity, coefficients in alone.items():
        for others in (both[0], idle[0]):
            torch.testing.assert_close(
                _flat(others[granularity]), _flat(coefficients), rtol=1e-6, atol=1e-8
            )
        assert (_flat(coefficients) - 0.2).abs().max() > 0.05
