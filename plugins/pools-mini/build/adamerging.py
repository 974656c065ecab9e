"""AdaMerging (Yang et al., arXiv:2310.02575): coefficients of least entropy on unlabeled images.

``W_l = W0_l + sum_k lambda_kl tv_kl`` for every parameter tensor ``l``; task-wise, ``lambda_kl``
is the same for all ``l``. The gradient is exact: ``dL/dlambda_kl = <dL/dW_l, tv_kl>``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from model import State, image_features
from tasks import Split, Task
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import CLIPModel


@dataclass(frozen=True)
class Recipe:
    """The framework's defaults. ``labels`` trains on labels and gives an upper bound."""

    layerwise: bool = True
    initial: float = 0.3
    rate: float = 0.01
    steps: int = 100
    batch: int = 16
    labels: bool = False


def adamerge(
    model: CLIPModel,
    heads: Mapping[str, Tensor],
    base: State,
    vectors: Sequence[State],
    tasks: Sequence[Task],
    recipe: Recipe,
    seed: int = 0,
) -> tuple[State, Tensor]:
    """Return the merged weights and the coefficients ``[tasks, tensors]``."""
    stacked = {name: torch.stack([vector[name].flatten() for vector in vectors]) for name in base}
    columns = len(base) if recipe.layerwise else 1
    coefficients = torch.full((len(vectors), columns), recipe.initial)
    optimiser = torch.optim.Adam([coefficients], lr=recipe.rate)
    generator = torch.Generator().manual_seed(seed)
    streams = [
        _batches(task.train if recipe.labels else task.validation, recipe.batch, generator)
        for task in tasks
    ]
    for step in range(recipe.steps):
        weights = _merge(base, stacked, coefficients)
        for weight in weights.values():
            weight.requires_grad_()
        loss = _loss(
            model, heads, weights, tasks, [next(stream) for stream in streams], labels=recipe.labels
        )
        slopes = torch.autograd.grad(loss, list(weights.values()))
        factors = torch.stack(
            [stacked[name] @ slope.flatten() for name, slope in zip(base, slopes, strict=True)], 1
        )
        coefficients.grad = factors if recipe.layerwise else factors.sum(1, keepdim=True)
        optimiser.param_groups[0]["lr"] = (
            recipe.rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        )
        optimiser.step()
    return _merge(base, stacked, coefficients), coefficients.expand(len(vectors), len(base))


def _merge(base: State, stacked: State, coefficients: Tensor) -> State:
    every = coefficients.expand(-1, len(base))
    return {
        name: weight + (every[:, column] @ stacked[name]).view_as(weight)
        for column, (name, weight) in enumerate(base.items())
    }


def _loss(
    model: CLIPModel,
    heads: Mapping[str, Tensor],
    weights: State,
    tasks: Sequence[Task],
    batches: list[Split],
    *,
    labels: bool,
) -> Tensor:
    """Return the sum over tasks of the mean entropy, or of the cross-entropy for the bound."""
    features = image_features(model, torch.cat([batch.images for batch in batches]), weights)
    total = features.new_zeros(())
    for task, part, batch in zip(
        tasks, features.split([len(batch) for batch in batches]), batches, strict=True
    ):
        logs = functional.log_softmax(part @ heads[task.name].T, 1)
        total = total + (
            functional.nll_loss(logs, batch.labels)
            if labels
            else -(logs.exp() * logs).sum(1).mean()
        )
    return total


def _batches(split: Split, size: int, generator: torch.Generator) -> Iterator[Split]:
    """Yield batches of shuffled epochs forever; a short last batch is dropped."""
    while True:
        for rows in torch.randperm(len(split), generator=generator).split(size):
            if len(rows) == size:
                yield Split(split.images[rows], split.labels[rows])
