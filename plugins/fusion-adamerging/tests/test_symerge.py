"""SyMerge: coefficients and one layer per task against autograd, and the files of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fusion_adamerging.config import SyMergeConfig
from fusion_adamerging.symerge import SyMerge
from fusion_core import RunContext, Split, load_for_task, run_fusion
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pools_checkpoints import CheckpointsPool

    Make = Callable[..., CheckpointsPool]

TENSORS = "task_tensors.safetensors"
#: the tensors of each task by default, by all their names
LAST = {
    "mlp": {"3.weight", "3.bias"},
    "convolution": {"4.weight", "4.bias"},
    "transformer": {"embedding.weight", "output.weight"},
    "recurrent": {"output.weight", "output.bias"},
}


class Substituted(nn.Module):
    """A model with other weights, which autograd reaches."""

    def __init__(self, inner: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.weights = inner, weights
        self.dtype_of = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def parameters(self, *_: Any) -> Any:
        return iter([self.dtype_of])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(self.inner, dict(self.weights), (inputs,))


def search(
    pool: CheckpointsPool, tasks: Any, state: Path | None = None, **options: Any
) -> tuple[dict[str, dict[str, float]], dict[str, torch.Tensor], RunContext]:
    context = RunContext(tasks=tasks, seed=1, state=state)
    SyMerge(SyMergeConfig(**options)).run(pool, context)
    coefficients = json.loads(context.side_files["coefficients.json"])["coefficients"]
    tensors: Any = context.side_files[TENSORS]
    return coefficients, tensors.state_dict(), context


@pytest.mark.sampled(3)
@pytest.mark.parametrize("patterns", [None, ["*weight", "*weight*l0"]])
@pytest.mark.parametrize("kind", LAST)
def test_a_whole_search_equals_autograd_and_adam(
    kind: str, patterns: list[str] | None, make_pool: Make, tasks: Any
) -> None:
    pool = make_pool(kind, experts=2, dtype=torch.float64)
    if patterns and kind != "recurrent":
        patterns = patterns[:1]
    options: dict[str, Any] = {"lr": 0.1, "own_lr": 0.03, "steps": 5, "batch_size": 8, "init": 0.3}
    coefficients, tensors, _ = search(pool, tasks, own=patterns, **options)

    model, base = pool.build(pool.base, dtype=torch.float64), pool.base.state_dict()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
    names = [name for name, _ in model.named_parameters()]
    factors = {name: torch.full((2,), 0.3, dtype=torch.float64) for name in names}
    chosen = {name for name in names if "weight" in name} if patterns else LAST[kind] & {*names}
    layers = {
        task: {name: weights.tensor(name).clone() for name in chosen}
        for task, weights in pool.experts.items()
    }
    learned = [factors.values(), (tensor for layer in layers.values() for tensor in layer.values())]
    groups = [
        {"params": [tensor.requires_grad_() for tensor in some], "lr": lr}
        for some, lr in zip(learned, (0.1, 0.03), strict=True)
    ]
    optimiser = torch.optim.Adam(groups)
    for step in range(5):
        merged: dict[str, torch.Tensor] = {}
        for name, pair in factors.items():
            rows = [weights.tensor(name) - base[name] for weights in pool.experts.values()]
            merged[name] = base[name] + pair[0] * rows[0] + pair[1] * rows[1]
        running = {
            n: base[n] + 0.3 * sum(weights.tensor(n) - base[n] for weights in pool.experts.values())
            for n, buffer in model.named_buffers()
            if buffer.is_floating_point()
        }
        optimiser.zero_grad()
        for task in tasks:
            batch = task.batch(step, size=8, split=Split.UNLABELED, seed=1)
            expert = pool.build(pool.experts[task.name], dtype=torch.float64)
            wanted = task.logits(expert, batch).detach().log_softmax(-1)
            substituted = Substituted(model, {**running, **merged, **layers[task.name]})
            logs = task.logits(substituted, batch).log_softmax(-1)
            nn.functional.kl_div(logs, wanted, log_target=True, reduction="batchmean").backward(
                retain_graph=True
            )
        optimiser.step()
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-12}
    for number, expert in enumerate(("a", "b")):
        ours = [coefficients[expert][name] for name in names]
        theirs = torch.stack([factors[name][number].detach() for name in names])
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, **close)
    for task, own_tensors in layers.items():
        for name, values in own_tensors.items():
            torch.testing.assert_close(tensors[f"{task}/{name}"], values.detach(), **close)
            moved = (values.detach() - pool.experts[task].tensor(name)).abs().max()
            assert moved > 0.01 or "idle" in name
    if patterns is None:
        assert {key.partition("/")[2] for key in tensors} == LAST[kind]
        assert all(coefficients["a"][name] == 0.3 for name in chosen), "no task uses the merge's"


@pytest.mark.parametrize("changed", [{"task_vectors": "disk"}, {"precision": "bf16"}])
def test_other_storage_and_precision_find_nearly_the_same(
    make_pool: Make, turned_tasks: Any, changed: dict[str, Any]
) -> None:
    pool = make_pool("mlp", experts=3, trained=True)
    plain, other = (search(pool, turned_tasks, steps=4, **options)[1] for options in ({}, changed))
    for name, values in plain.items():
        torch.testing.assert_close(other[name], values, rtol=0, atol=0.008)


def test_a_search_that_was_killed_resumes_to_the_same_bits(
    make_pool: Make, turned_tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("mlp", experts=3, trained=True)
    options: dict[str, Any] = {"steps": 6, "save_every": 2, "own_lr": 0.01}
    coefficients, tensors, _ = search(pool, turned_tasks, **options)

    def die(step: int, _: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    context = RunContext(tasks=turned_tasks, seed=1, state=tmp_path, on_metrics=die)
    with pytest.raises(KeyboardInterrupt):
        SyMerge(SyMergeConfig(**options)).run(pool, context)
    again, resumed, context = search(pool, turned_tasks, tmp_path, **options)
    assert list(context.metrics.steps) == [2, 3, 4, 5]
    assert again == coefficients
    assert all(torch.equal(resumed[name], values) for name, values in tensors.items())


def test_the_report_measures_the_weights_of_load_for_task(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    pool, out = make_pool("mlp", trained=True), tmp_path / "out"
    options = {"name": "symerge", "steps": 20, "own_lr": 0.02}
    result = run_fusion(algorithm=options, model_pool=pool, task_pool=tasks, output=out)
    live = run_fusion(algorithm=options, model_pool=pool, task_pool=tasks)
    plain = {}
    for task in tasks:
        weights = load_for_task(out, task.name)
        assert torch.equal(weights.tensor("1.weight"), result.weights.tensor("1.weight"))
        expected = task.evaluate(pool.build(weights))
        assert result.report.tasks[task.name] == live.report.tasks[task.name] == expected
        plain[task.name] = task.evaluate(result.model)["accuracy"]
    assert result.report.needs_task
    assert sum(metrics["accuracy"] for metrics in result.report.tasks.values()) > sum(
        plain.values()
    )


def test_other_tasks_are_measured_with_the_merge(
    make_pool: Make, turned_tasks: Any, tmp_path: Path
) -> None:
    pool, out = make_pool("mlp", experts=3), tmp_path / "out"
    options = {"name": "symerge", "steps": 2, "tasks": ["c", "a"]}
    result = run_fusion(algorithm=options, model_pool=pool, task_pool=turned_tasks, output=out)
    assert result.report.tasks["b"] == turned_tasks["b"].evaluate(result.model)
    with pytest.raises(RecipeError, match="nothing of its own for task 'b'") as caught:
        load_for_task(out, "b")
    assert caught.value.hint == "Expected one of: c, a."


def test_experts_that_equal_the_base_give_one_model_for_all_tasks(
    make_pool: Make, tasks: Any
) -> None:
    pool = make_pool("mlp")
    same = type(pool)(pool.config.model_copy(update={"models": {"a": pool.config.base}}))
    options = {"name": "symerge", "steps": 1, "tasks": ["a"]}
    result = run_fusion(algorithm=options, model_pool=same, task_pool=tasks)
    assert TENSORS not in result.side_files
    assert not result.report.needs_task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["a", "c"]}, "no expert was fine-tuned for task 'c'"),
        ({"own": ["4.*"]}, r"algorithm.own: no tensor matches '4.\*'"),
        ({"only": "*.bias"}, r"no linear layer that experts changed takes part in task 'a'"),
    ],
)
def test_impossible_requests_are_refused(
    make_pool: Make, turned_tasks: Any, options: dict[str, Any], message: str
) -> None:
    algorithm = {"name": "symerge", **options}
    with pytest.raises(RecipeError, match=message):
        run_fusion(algorithm=algorithm, model_pool=make_pool("mlp"), task_pool=turned_tasks)
