"""WEMoE: learned gates, which start as task arithmetic, follow the experts, and are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import RunContext, build_for_task, run_fusion
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import CheckpointSource, Linear
from fusion_moe.routers import FILE, Gate, LearnedRouter, LowRankExperts, add_routers
from fusion_moe.wemoe import Wemoe
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class KilledError(Exception):
    """Stands in for the death of the process."""


def run(**options: Any) -> Any:
    pool, tasks = tiny_pool("mlp", experts=2), TinyTasks(("a", "b"))
    output = options.pop("output", None)
    algorithm = Wemoe(**{"steps": 4, "batch_size": 4, **options})
    return run_fusion(algorithm=algorithm, model_pool=pool, task_pool=tasks, output=output)


def gates_of(result: Any) -> dict[str, torch.Tensor]:
    stored = result.side_files[FILE]
    parts = ("gate", "offset")
    return {key: stored.tensor(key) for key in stored.infos if key.endswith(parts)}


def test_without_a_search_it_is_task_arithmetic() -> None:
    result = run(steps=0, init=0.4)
    expected = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 0.4}, model_pool=result.pool
    ).model
    inputs = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(result.model(inputs), expected(inputs), rtol=1e-5, atol=1e-5)


def test_router_computes_the_formula() -> None:
    torch.manual_seed(0)
    shapes = {"down": (2, 3, 6), "up": (2, 5, 3), "bias": (2, 5), "gate": (2, 6), "offset": (2,)}
    numbers = {part: torch.randn(shape, dtype=torch.float64) for part, shape in shapes.items()}
    experts = LowRankExperts(*(numbers[part] for part in ("down", "up", "bias")))
    router = LearnedRouter(experts, Gate(numbers["gate"], numbers["offset"]))
    for row in 100 * torch.randn(4, 6, dtype=torch.float64):
        rms = (row @ row / 6).sqrt()
        expected = torch.zeros(5, dtype=torch.float64)
        for k in range(2):
            weight = numbers["gate"][k] @ row / (6 * rms) + numbers["offset"][k]
            expected += weight * (numbers["up"][k] @ numbers["down"][k] @ row + numbers["bias"][k])
        torch.testing.assert_close(router(row), expected)


@pytest.mark.parametrize("objective", ["teacher", "entropy"])
def test_the_search_lowers_the_objective(objective: str) -> None:
    values: list[float] = []

    def on_metrics(_: int, metrics: Mapping[str, float]) -> None:
        values.append(metrics[objective])

    context = RunContext(tasks=TinyTasks(("a", "b")), on_metrics=on_metrics)
    pool = tiny_pool("mlp", experts=2)
    Wemoe(steps=30, objective=objective, examples=16).run(pool, context)
    assert values[-1] < 0.9 * values[0]


def test_a_killed_search_resumes_to_the_same_bits(tmp_path: Path) -> None:
    pool = tiny_pool("mlp", experts=2)

    taken: list[int] = []

    def search(state: Path | None, last: int) -> dict[str, torch.Tensor]:
        def on_metrics(step: int, _: Mapping[str, float]) -> None:
            taken.append(step)
            if step == last:
                raise KilledError

        context = RunContext(tasks=TinyTasks(("a", "b")), on_metrics=on_metrics, state=state)
        Wemoe(steps=8, save_every=3).run(pool, context)
        stored: Any = context.side_files[FILE]
        return {key: stored.tensor(key) for key in stored.infos}

    whole = search(None, 8)
    with pytest.raises(KilledError):
        search(tmp_path, 5)
    taken.clear()
    resumed = search(tmp_path, 8)
    assert taken == [3, 4, 5, 6, 7], "it continues from the last saved state"
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_only_chosen_layers_are_routed() -> None:
    result = run(routed=["3.*"])
    assert gates_of(result).keys() == {"3/gate", "3/offset"}
    merged = Linear((0.3, 0.3))
    names = [name for name in result.pool.base.infos if not name.startswith("3.")]
    expected = RunContext().merge(result.pool, merged)
    for name in names:
        torch.testing.assert_close(result.weights.tensor(name), expected.tensor(name))
    assert torch.equal(result.weights.tensor("3.weight"), result.pool.base.tensor("3.weight"))
    with pytest.raises(RecipeError, match=r"algorithm\.routed: no tensor matches 'mpl'"):
        run(routed="mpl")


def test_output_is_measured_and_loaded_with_its_gates(tmp_path: Path) -> None:
    result = run(output=tmp_path / "out")
    assert any(bool(gate.any()) for gate in gates_of(run()).values())
    inputs = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        expected = result.model(inputs)
        loaded = build_for_task(tmp_path / "out", pool=result.pool)
        torch.testing.assert_close(loaded(inputs), expected)
    tasks = TinyTasks(("a", "b"))
    assert result.report.tasks["a"] == tasks["a"].evaluate(result.model)


def test_gates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    result = run(output=tmp_path / "out")
    stored = load_file(tmp_path / "out" / FILE)
    stored["3/gate"] = stored["3/gate"][:, :-1].contiguous()
    save_file(stored, tmp_path / "out" / FILE)
    with pytest.raises(CheckpointError, match="the shapes of 3 do not fit each other"):
        add_routers(result.pool.build(CheckpointSource(tmp_path / "out")), tmp_path / "out")
