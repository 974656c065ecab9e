"""Fine-tune the vision tower on one task with a frozen head."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from model import State, autocast, image_features, tower_state
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from tasks import Task
    from transformers import CLIPModel


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning; ``scale`` is the head's temperature, shipped in the base."""

    rate: float = 6e-4
    epochs: int = 4
    batch: int = 64
    scale: float = 20.0
    decay: float = 0.0
    tuned: str = "matrices"


def is_tuned(name: str, weight: Tensor, which: str) -> bool:
    """Tell whether a parameter is trained: ``matrices``, ``linear`` (with biases) or ``all``."""
    inside = name.startswith("encoder.") and "layer_norm" not in name
    return which == "all" or (inside and (which == "linear" or weight.ndim == 2))


def finetune(base: CLIPModel, head: Tensor, task: Task, recipe: Recipe, seed: int) -> State:
    """Return the vision tower's parameters after training on a task's images."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base).train()
    for name, weight in model.vision_model.named_parameters():
        weight.requires_grad_(is_tuned(name, weight, recipe.tuned))
    weights = [weight for weight in model.vision_model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    total, step = recipe.epochs * (len(task.train) // recipe.batch), 0
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(task.train)).split(recipe.batch):
            if len(rows) == recipe.batch:
                _set_rate(optimiser, recipe.rate, step, total)
                _step(model, head, task, rows, optimiser, weights)
                step += 1
    return tower_state(model)


def _step(
    model: CLIPModel,
    head: Tensor,
    task: Task,
    rows: Tensor,
    optimiser: torch.optim.Optimizer,
    weights: list[nn.Parameter],
) -> None:
    shift = torch.randint(-2, 3, (2,)).tolist()
    with autocast():
        features = image_features(model, torch.roll(task.train.images[rows], shift, (1, 2)))
    loss = functional.cross_entropy(features @ head.T, task.train.labels[rows])
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def _set_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, total: int) -> None:
    """Set the learning rate: warm-up in a tenth of the steps of a cosine."""
    warm, cosine = (
        min(1.0, (step + 1) / (0.1 * total)),
        0.5 * (1 + math.cos(math.pi * step / total)),
    )
    for group in optimiser.param_groups:
        group["lr"] = rate * warm * cosine
