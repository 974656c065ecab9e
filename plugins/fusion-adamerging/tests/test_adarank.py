"""Runs of AdaRank as a user sees them; the search itself: `test_search.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.adarank import AdaRank
from fusion_adamerging.config import AdaRankConfig
from fusion_core import RunContext, run_fusion
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


Make = "Callable[..., CheckpointsPool]"
MATRICES = ("embedding.weight", "encoder.layers.0.linear1.weight")


def _write_side_files(context: RunContext, folder: Path) -> str:
    for name, content in context.side_files.items():
        (folder / name).write_bytes(content)
    return str(folder / "coefficients.json")


@pytest.mark.parametrize("task_vectors", ["fp32", "bf16", "disk"])
def test_saved_components_give_the_merge_and_load_again(
    make_pool: Make, tasks: Any, task_vectors: str, tmp_path: Path
) -> None:
    pool = make_pool("transformer", experts=3, dtype=torch.float64)
    context = RunContext(tasks=tasks)
    source = AdaRank(task_vectors=task_vectors, lr=0.07, steps=3).run(pool, context)
    exact = load(context.side_files["coefficients.safetensors"])
    for name in MATRICES:
        base = pool.base.tensor(name)
        expected = base.clone()
        for expert, weights in pool.experts.items():
            left, values, right = torch.linalg.svd(weights.tensor(name) - base, full_matrices=False)
            factors = exact[f"{expert}/{name}"]
            switched, scale = factors[:-1], factors[-1]
            assert set(switched.tolist()) == {0.0, float(scale)}, "both, after three steps of 0.07"
            expected += left @ torch.diag(values * switched) @ right
        torch.testing.assert_close(source.tensor(name), expected, rtol=0, atol=1e-9)
    again = AdaRank(coefficients=_write_side_files(context, tmp_path)).run(pool, RunContext())
    for name, merged in source.state_dict().items():
        assert torch.equal(again.tensor(name), merged)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("objective", ["entropy", "teacher"])
@pytest.mark.parametrize("rank", [1.0, 0.3])
def test_search_lowers_the_objective(
    make_pool: Make, tasks: Any, rank: float, objective: str
) -> None:
    context = RunContext(tasks=tasks)
    pool = make_pool("mlp", trained=True)
    AdaRank(rank=rank, steps=30, lr=0.02, objective=objective).run(pool, context)
    logged = [context.metrics.steps[step] for step in range(30)]
    values = [metrics[objective] for metrics in logged]
    assert sum(values[-5:]) < 0.95 * sum(values[:5])
    assert logged[0]["on/a"] == pytest.approx(5 / 20 if rank == 0.3 else 1)
    assert logged[-1]["on/a"] != logged[0]["on/a"]


def test_without_steps_it_is_task_arithmetic_of_the_largest_components(
    make_pool: Make, tasks: Any
) -> None:
    pool = make_pool("transformer", dtype=torch.float64)
    for rank in (1.0, 0.5, 0.0):
        source = AdaRank(rank=rank, init=0.3, steps=0).run(pool, RunContext(tasks=tasks))
        for name, merged in source.state_dict().items():
            base = pool.base.tensor(name)
            expected = base.clone()
            for weights in pool.experts.values():
                row = weights.tensor(name) - base
                if row.dim() == 2:
                    left, values, right = torch.linalg.svd(row, full_matrices=False)
                    values[int(rank * len(values)) :] = 0
                    row = left @ torch.diag(values) @ right
                expected += 0.3 * row
            torch.testing.assert_close(merged, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changed", [("1.bias", "3.bias"), ()])
def test_experts_that_changed_no_matrix_have_no_components(
    make_pool: Make, tasks: Any, changed: tuple[str, ...]
) -> None:
    pool = make_pool("mlp")
    base = pool.config.base.state_dict()
    for module in pool.config.models.values():
        state = module.state_dict()
        module.load_state_dict({name: (state if name in changed else base)[name] for name in base})
    context = RunContext(tasks=tasks)
    source = AdaRank(steps=2, lr=0.07).run(type(pool)(pool.config), context)
    assert torch.equal(source.tensor("1.weight"), base["1.weight"])
    assert "coefficients.safetensors" not in context.side_files
    assert all(step["on/a"] == 0 for step in context.metrics.steps.values())


def test_an_expert_that_changed_nothing_does_not_affect_the_others(
    make_pool: Make, tasks: Any
) -> None:
    pool = make_pool("mlp", experts=3)
    pool.config.models["c"].load_state_dict(pool.config.base.state_dict())
    source = AdaRank(steps=3, lr=0.07).run(type(pool)(pool.config), RunContext(tasks=tasks))
    assert all(tensor.isfinite().all() for tensor in source.state_dict().values())
    assert not torch.equal(source.tensor("1.weight"), pool.base.tensor("1.weight"))


def test_coefficients_of_trimmed_task_vectors_are_refused(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    pool, context = make_pool("mlp"), RunContext(tasks=tasks)
    AdaMerging(trim=True, steps=1).run(pool, context)
    path = _write_side_files(context, tmp_path)
    with pytest.raises(RecipeError, match="was learned with trim: True") as caught:
        AdaRank(coefficients=path).run(pool, RunContext())
    assert "method that learned it" in str(caught.value.hint)


def test_a_preset_sets_the_papers_options() -> None:
    paper = AdaRankConfig(preset="paper")
    assert (paper.lr, paper.steps, paper.init, paper.rank) == (1e-3, 10_000, 0.3, 1.0)


def test_the_picture_shows_the_share_of_components_that_are_on(tasks: Any, make_pool: Make) -> None:
    algorithm = {"name": "adarank", "steps": 3, "lr": 0.07}
    result = run_fusion(algorithm=algorithm, model_pool=make_pool("mlp"), task_pool=tasks)
    drawn = ET.fromstring(result.side_files["coefficients.svg"])
    titles = [element.text for element in drawn.findall(".//{*}text")]
    assert "share of components that are on, over 3 steps" in titles
    assert len(drawn.findall(".//{*}polyline")) == 6, "two tasks, two experts twice"
