"""Fisher merging against loops over examples and classes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fusion_core.errors import RecipeError
from fusion_regmean.fisher import Fisher
from fusion_testing import TinyTasks


def information(
    weights: dict[str, Tensor], images: Tensor, task: str, stacks: Any
) -> dict[str, Tensor]:
    """Return the mean squared gradient over examples and predicted labels."""
    leaves = {name: values.clone().requires_grad_(True) for name, values in weights.items()}
    head = TinyTasks()[task]._head.double()  # noqa: SLF001 - the oracle needs the head
    sums = {name: torch.zeros_like(values) for name, values in weights.items()}
    for image in images:
        logs = (stacks.inputs(leaves, image[None])["logits"] @ head).log_softmax(1)[0]
        for label in range(len(logs)):
            gradients = torch.autograd.grad(logs[label], list(leaves.values()), retain_graph=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                sums[name] += logs[label].detach().exp() * gradient.square()
    return {name: total / len(images) for name, total in sums.items()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"floor": 1e-9}, (1, 1, 1)),
        ({"floor": 1e-3, "normalize": False}, (1, 1, 1)),
        ({"floor": 1e-4, "weights": {"a": 0.5, "c": 3}}, (0.5, 1, 3)),
    ],
)
def test_parameters_are_averaged_by_their_information(
    options: dict[str, Any], factors: tuple[float, ...], seed: int, stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge(Fisher(samples=6, **options), pool, seed=seed)
    experts = stacks.experts(pool)
    above, below = {}, {}
    for factor, (expert, weights) in zip(factors, experts.items(), strict=True):
        images = stacks.images(expert, samples=6, seed=seed)
        fisher = information(weights, images, expert, stacks)
        norm = torch.cat([values.flatten() for values in fisher.values()]).norm()
        share = factor / (norm if options.get("normalize", True) else 1)
        for name, values in fisher.items():
            weighted = share * values.clamp_min(options["floor"])
            above[name] = above.get(name, 0) + weighted * weights[name]
            below[name] = below.get(name, 0) + weighted
    for name, total in below.items():
        torch.testing.assert_close(merged[name], above[name] / total, rtol=1e-6, atol=1e-8)


def test_one_expert_is_that_expert(stacks: Any) -> None:
    pool = stacks.pool(experts=1)
    merged = stacks.merge(Fisher(samples=2), pool)
    for name, values in pool.experts["a"].state_dict().items():
        torch.testing.assert_close(merged[name], values)


def test_without_information_it_is_the_mean(stacks: Any) -> None:
    pool = stacks.pool()
    merged = stacks.merge(Fisher(samples=2, floor=1e6, normalize=False), pool)
    mean = stacks.mean(pool)
    for name, values in merged.items():
        torch.testing.assert_close(values, mean[name])


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, -0.5, 1]])
def test_factors_that_give_no_average_are_errors(weights: list[float], stacks: Any) -> None:
    with pytest.raises(
        RecipeError, match="expected no negative factor, and at least one above zero"
    ):
        stacks.merge(Fisher(samples=1, weights=weights), stacks.pool())


def test_sampled_labels_are_unbiased(stacks: Any) -> None:
    pool = stacks.pool()
    name = "layers.0.up.weight"

    def merge(samples: int, labels: str, seed: int = 0) -> torch.Tensor:
        method = Fisher(samples=samples, labels=labels)
        merged: torch.Tensor = stacks.merge(method, pool, seed=seed)[name]
        return merged

    def error(samples: int) -> float:
        exact = merge(samples, "exact")
        draws = [merge(samples, "sampled", seed) for seed in range(4)]
        return sum((draw - exact).norm().item() for draw in draws) / len(draws)

    assert torch.equal(merge(24, "sampled"), merge(24, "sampled")), "draws depend on the seed only"
    # Errors of independent draws shrink with the root of their number: 16 times as many, 4 times
    # smaller.
    assert 0 < error(24 * 16) < error(24) / 2
