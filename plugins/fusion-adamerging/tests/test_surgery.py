"""Adapters of features against a plain training loop, and the files of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fusion_adamerging.surgery import Surgery
from fusion_adapting import Batches, apply_adapter, make_generator
from fusion_core import (
    RunContext,
    Split,
    build_for_task,
    load_for_task,
    mark_features,
    run_fusion,
)
from fusion_core.errors import FusionError, RecipeError
from fusion_core.weights import CheckpointSource, Linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pools_checkpoints import CheckpointsPool

    Make = Callable[..., CheckpointsPool]


@pytest.mark.parametrize("kind", ["mlp", "convolution", "transformer", "recurrent"])
def test_adapters_are_those_of_a_plain_loop(kind: str, make_pool: Make, turned_tasks: Any) -> None:
    pool = make_pool(kind, experts=3, dtype=torch.float64)
    context = RunContext(tasks=turned_tasks, seed=5)
    merged = context.merge(pool, Linear((0.3,) * 3))
    options = {"rank": 2, "steps": 30, "batch_size": 8, "examples": 24, "lr": 0.01}
    assert Surgery(**options).calibrate(merged, pool, context) is merged
    saved: Any = context.side_files["task_adapters.safetensors"]

    model = pool.build(merged, dtype=torch.float64)
    for task in turned_tasks:
        batches = [task.batch(n, size=8, split=Split.UNLABELED, seed=5).inputs for n in range(3)]
        inputs = torch.cat(batches)
        with torch.no_grad():
            features = task.features(model, inputs)
            expert = pool.build(pool.experts[task.name], dtype=torch.float64)
            wanted = task.features(expert, inputs)
        width = features.shape[1]
        down, up = (nn.Linear(*size, bias=False).double() for size in ((width, 2), (2, width)))
        draw = make_generator(5, f"surgery\0{task.name}")
        start = torch.rand(2, width, generator=draw)
        down.weight.data = ((2 * start - 1) / width**0.5).double()
        nn.init.zeros_(up.weight)
        optimiser = torch.optim.Adam([down.weight, up.weight], lr=0.01)
        order = Batches(8, 5)
        for step in range(30):
            rows = order.rows(task.name, step, 24)
            error = features[rows] - up(torch.relu(down(features[rows]))) - wanted[rows]
            optimiser.zero_grad()
            error.abs().mean().backward()
            optimiser.step()
        for name, layer in (("down", down), ("up", up)):
            values = saved.tensor(f"{task.name}/{name}")
            torch.testing.assert_close(values, layer.weight.detach(), rtol=1e-5, atol=1e-7)
        key = f"distance/{task.name}"
        steps = context.metrics.steps
        distance = float((features - wanted).abs().mean())
        assert steps[30][key] < steps[0][key] == pytest.approx(distance)


def test_the_report_measures_the_models_of_build_for_task(
    make_pool: Make, turned_tasks: Any, tmp_path: Path
) -> None:
    pool, out = make_pool("mlp", experts=3, trained=True), tmp_path / "out"
    options = {"steps": 60, "examples": 64, "rank": 4, "lr": 0.02}
    stages = ["task-arithmetic", {"name": "surgery", **options}]
    pools: dict[str, Any] = {"model_pool": pool, "task_pool": turned_tasks}
    result = run_fusion(algorithm=stages, **pools, output=out)
    live = run_fusion(algorithm=stages, **pools)
    plain = run_fusion(algorithm="task-arithmetic", **pools)
    weights = result.weights.state_dict()
    assert all(torch.equal(tensor, weights[n]) for n, tensor in plain.weights.state_dict().items())
    assert json.loads((out / "task_adapters.json").read_text())["modules"]["a"] == "3"
    for task in turned_tasks:
        expected = task.evaluate(build_for_task(out, task.name, pool=pool))
        assert result.report.tasks[task.name] == live.report.tasks[task.name] == expected
    assert result.report.needs_task
    assert result.report.tasks != plain.report.tasks
    with pytest.raises(RecipeError, match="has an adapter or other modules for task 'a'") as caught:
        load_for_task(out, "a")
    assert "build_for_task" in str(caught.value.hint)


def test_build_for_task_loads_task_tensors(
    make_pool: Make, turned_tasks: Any, tmp_path: Path
) -> None:
    pool, out = make_pool("mlp", experts=3), tmp_path / "out"
    algorithm = {"name": "symerge", "steps": 2}
    run_fusion(algorithm=algorithm, model_pool=pool, task_pool=turned_tasks, output=out)
    model, weights = build_for_task(out, "b", pool=pool), load_for_task(out, "b")
    assert all(torch.equal(tensor, weights.tensor(n)) for n, tensor in model.state_dict().items())


def test_an_untrained_adapter_changes_nothing(make_pool: Make, turned_tasks: Any) -> None:
    pools: dict[str, Any] = {"model_pool": make_pool("mlp"), "task_pool": turned_tasks}
    algorithm = ["task-arithmetic", {"name": "surgery", "steps": 0}]
    adapted, plain = (
        run_fusion(algorithm=stages, **pools) for stages in (algorithm, algorithm[:1])
    )
    assert adapted.report.tasks == plain.report.tasks


def test_tasks_that_an_adapter_cannot_serve_are_refused(
    make_pool: Make, tasks: Any, turned_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "algorithm": ["task-arithmetic", "surgery"],
        "model_pool": make_pool("mlp"),
    }
    with pytest.raises(RecipeError, match="task 'a' has no features apart from its head"):
        run_fusion(**sections, task_pool=tasks)
    features = turned_tasks.kind.features
    monkeypatch.setattr(turned_tasks.kind, "features", lambda *args: 2 * features(*args))
    with pytest.raises(
        RecipeError, match="no module of the model returns the features of"
    ) as caught:
        run_fusion(**sections, task_pool=turned_tasks)
    assert "mark_features" in str(caught.value.hint)


def test_marked_features_of_several_modules_are_adapted(
    make_pool: Make, turned_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(_task: Any, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        halves = [model(inputs), model(inputs.flip(3))]
        return mark_features(model, torch.stack(halves).mean(0))

    monkeypatch.setattr(turned_tasks.kind, "features", features)
    pools: dict[str, Any] = {"model_pool": make_pool("mlp", experts=3), "task_pool": turned_tasks}
    stages = ["task-arithmetic", {"name": "surgery", "steps": 40, "examples": 32, "lr": 0.02}]
    out = tmp_path / "out"
    result = run_fusion(algorithm=stages, **pools, output=out)
    model = pools["model_pool"].build(result.weights)
    stored = CheckpointSource(out / "task_adapters.safetensors")
    for task in turned_tasks:
        inputs = task.batch(0, size=8, split=Split.TEST, seed=0).inputs
        adapted = build_for_task(out, task.name, pool=pools["model_pool"])
        adapter = [stored.tensor(f"{task.name}/{name}") for name in ("down", "up")]
        plain = task.features(model, inputs)
        torch.testing.assert_close(task.features(adapted, inputs), apply_adapter(plain, *adapter))
        assert result.report.tasks[task.name] == task.evaluate(adapted)
        assert adapted.state_dict().keys() == model.state_dict().keys()


def test_two_stages_with_task_specific_results_are_refused(
    make_pool: Make, turned_tasks: Any
) -> None:
    stages = [{"name": "symerge", "steps": 1}, {"name": "surgery", "steps": 1}]
    with pytest.raises(RecipeError, match="symerge and surgery each make a different model"):
        run_fusion(algorithm=stages, model_pool=make_pool("mlp", experts=3), task_pool=turned_tasks)


def run_surgery(pool: Any, tasks: Any, **options: Any) -> RunContext:
    context = RunContext(tasks=tasks)
    merged = context.merge(pool, Linear((0.3,) * len(pool.experts)))
    Surgery(examples=16, **{"steps": 20, **options}).calibrate(merged, pool, context)
    return context


@pytest.mark.parametrize("owner", ["merge", "expert"])
def test_features_that_are_not_finite_are_refused(
    owner: str, make_pool: Make, turned_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = turned_tasks.kind
    original, calls = kind.features, []

    def features(self: Any, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        values = original(self, model, inputs)
        if self.name == "b":
            calls.append(model)
            is_merge = model is calls[0]
            values[3] *= torch.nan if is_merge == (owner == "merge") else 1
        return values

    monkeypatch.setattr(kind, "features", features)
    with pytest.raises(FusionError, match=f"the {owner}'s features are NaN .* on task 'b'"):
        run_surgery(make_pool("mlp", experts=3), turned_tasks)


def test_an_adapter_that_diverges_is_refused(make_pool: Make, turned_tasks: Any) -> None:
    with pytest.raises(FusionError, match=r"adapter of task 'a' diverged: .* is (nan|inf) after"):
        run_surgery(make_pool("mlp", experts=3), turned_tasks, lr=1e20)
    with pytest.raises(RecipeError, match=r"less than or equal to 10{30}$"):
        Surgery(lr=1e38)


def test_adapters_that_end_farther_than_they_start_are_named(
    make_pool: Make, turned_tasks: Any
) -> None:
    pool = make_pool("mlp", experts=3)
    assert not run_surgery(pool, turned_tasks, lr=0.01).warnings
    (warning,) = run_surgery(pool, turned_tasks, lr=100.0).warnings
    assert "farther from their expert's features than they start: b (" in warning
