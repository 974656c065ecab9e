"""LOT and CAT against dense computations over stacked inputs, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fusion_core import RunOptions, run_fusion
from fusion_regmean.cat import Cat
from fusion_regmean.layer_statistics import LayerStatistics
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.lot import Lot
from fusion_testing import TinyTasks, tiny_pool

State = dict[str, Tensor]


def vectors_of(pool: Any, stacks: Any) -> dict[str, State]:
    base = pool.base.state_dict()
    return {
        expert: {name: values - base[name] for name, values in state.items()}
        for expert, state in stacks.experts(pool).items()
    }


def inputs_of(pool: Any, stacks: Any, *, samples: int, seed: int) -> dict[str, State]:
    return {
        expert: stacks.inputs(state, stacks.images(expert, samples=samples, seed=seed))
        for expert, state in stacks.experts(pool).items()
    }


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_lot_is_the_least_drift_of_every_layer(seed: int, scale: float, stacks: Any) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge(Lot(samples=40, scale=scale), pool, seed=seed)
    vectors = vectors_of(pool, stacks)
    inputs = inputs_of(pool, stacks, samples=40, seed=seed)
    for name, base in pool.base.state_dict().items():
        layer_vectors = [vector[name] for vector in vectors.values()]
        rows = [layers.get(name) for layers in inputs.values()]
        if name.endswith("norm.weight"):
            weights = torch.stack([row.square().sum(0) for row in rows])
            vector = (weights * torch.stack(layer_vectors)).sum(0) / weights.sum(0)
        elif name.endswith(".weight"):
            sides = [row @ v.T for row, v in zip(rows, layer_vectors, strict=True)]
            vector = torch.linalg.lstsq(torch.cat(rows), torch.cat(sides)).solution.T
        else:
            vector = sum(layer_vectors) / 3
        torch.testing.assert_close(merged[name], base + scale * vector, rtol=1e-6, atol=1e-8)


def test_lot_changes_nothing_for_inputs_that_no_expert_gets() -> None:
    sums = LeastSquares(torch.zeros(1, 3), 1)
    sums.add(torch.tensor([[1.0, 2.0, 3.0]]), torch.diag(torch.tensor([2.0, 0.0, 1.0])).double())
    sums.add(torch.tensor([[4.0, 5.0, 6.0]]), torch.diag(torch.tensor([1.0, 0.0, 0.0])).double())
    torch.testing.assert_close(sums.solve_smallest(), torch.tensor([[2.0, 0.0, 3.0]]))


def test_one_expert_is_that_expert_to_lot(stacks: Any) -> None:
    pool = stacks.pool(experts=1)
    merged = stacks.merge(Lot(samples=40, scale=1.0), pool)
    for name, values in pool.experts["a"].state_dict().items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, LlamaRMSNorm])
def test_energy_is_the_mean_square_of_a_plain_normalisation(kind: Any) -> None:
    layer, statistics = kind(5).double(), LayerStatistics()
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics.add(layer, "norm", inputs)
    expected = layer(inputs).detach().square().mean(0)  # weight one, bias zero
    # Llama's normalisation is in fp32. A mean of five squares, its root and a product are each
    # rounded by 6e-8: at most 4e-7 of an entry, and twice as much of its square.
    torch.testing.assert_close(statistics.energies["norm"].mean, expected, rtol=1e-6, atol=0)


def largest(scores: Tensor, count: int) -> list[int]:
    """Return the indices of the largest positive scores."""
    ranked = sorted(range(len(scores)), key=lambda index: -float(scores[index]))
    return [index for index in ranked[:count] if scores[index] > 0]


def trim(
    name: str, vectors: dict[str, State], inputs: dict[str, State], *, count: int, penalty: float
) -> dict[str, Tensor]:
    layer_vectors = {expert: vector[name] for expert, vector in vectors.items()}
    trimmed = dict(layer_vectors)
    for k in vectors:
        others = [i for i in vectors if i != k]
        if not name.endswith(".weight"):
            protected = largest(sum(layer_vectors[i].square() for i in others), count)
        elif name.endswith("norm.weight"):
            size = {e: layers[name].square().mean(0) for e, layers in inputs.items()}
            gains = (layer_vectors[i].square() * (size[k] - penalty * size[i]) for i in others)
            protected = largest(sum(gains), count)
        else:
            form = torch.zeros(*layer_vectors[k].shape[:1] * 2, dtype=torch.float64)
            for i in others:
                disturbed = inputs[k][name] @ layer_vectors[i].T
                lost = inputs[i][name] @ layer_vectors[i].T
                form += disturbed.T @ disturbed / len(disturbed)
                form -= penalty * lost.T @ lost / len(lost)
            values, columns = torch.linalg.eigh(form)
            protected = columns[:, largest(values, count)]
        for i in others:
            if isinstance(protected, Tensor):
                for column in protected.T:
                    trimmed[i] = trimmed[i] - torch.outer(column, column @ trimmed[i])
            else:
                trimmed[i] = trimmed[i].index_fill(
                    0, torch.tensor(protected, dtype=torch.long), 0.0
                )
    return trimmed


@pytest.mark.parametrize(
    "options",
    [
        {"directions": 1, "penalty": 0.0},
        {"directions": 2, "penalty": 0.3},
        {"directions": 3, "penalty": 5.0},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_cat_trims_the_parts_that_disturb_other_tasks(
    seed: int, options: dict[str, Any], stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge(Cat(samples=20, scale=0.5, **options), pool, seed=seed)
    vectors = vectors_of(pool, stacks)
    inputs = inputs_of(pool, stacks, samples=20, seed=seed)
    for name, base in pool.base.state_dict().items():
        parts = trim(name, vectors, inputs, count=options["directions"], penalty=options["penalty"])
        torch.testing.assert_close(
            merged[name], base + 0.5 * sum(parts.values()), rtol=1e-6, atol=1e-8
        )


def test_without_directions_cat_is_task_arithmetic(stacks: Any) -> None:
    pool = stacks.pool()
    merged = stacks.merge(Cat(samples=2, directions=0), pool)
    vectors = vectors_of(pool, stacks)
    for name, base in pool.base.state_dict().items():
        summed = sum(vector[name] for vector in vectors.values())
        torch.testing.assert_close(merged[name], base + 0.4 * summed)


def test_cat_without_penalty_removes_all_disturbances(stacks: Any) -> None:
    """Two experts disturb each other in all four outputs of the head."""
    pool = stacks.pool(experts=2)
    vectors = vectors_of(pool, stacks)
    merged = stacks.merge(Cat(samples=20, scale=1.0, directions=4, penalty=0.0), pool)
    change = merged["head.weight"] - pool.base.state_dict()["head.weight"]
    torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-9)
    assert vectors["a"]["head.weight"].any()


def test_cat_averages_running_statistics() -> None:
    pool = tiny_pool("convolution", dtype=torch.float64)
    options = {"samples": 4, "directions": 1}
    algorithm = {"name": "cat", **options}
    merged = run_fusion(
        algorithm=algorithm, model_pool=pool, task_pool=TinyTasks(),
        options=RunOptions(evaluate=False),
    ).weights.state_dict()  # fmt: skip
    names = [name for name, buffer in pool.config.base.named_buffers() if buffer.dim()]
    assert len(names) == 2
    for name in names:
        mean = torch.stack([expert.tensor(name) for expert in pool.experts.values()]).mean(0)
        torch.testing.assert_close(merged[name], mean, rtol=1e-12, atol=0)
