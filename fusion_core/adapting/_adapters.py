"""Adapters that change the features of a live model: of a low rank, with one nonlinearity."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.features import MARKED_FEATURES, marking_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.task_pool import FeatureTask


def through_adapter(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return features - up relu(down features), of shape (..., width).

    `down` has the shape (rank, width), `up` (width, rank).
    """
    return features - (features @ down.mT).relu() @ up.mT


def put_adapter(model: nn.Module, module: str, down: Tensor, up: Tensor) -> None:
    """Have what a module of a live model returns go through an adapter, from now on."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return through_adapter(output, down.to(output), up.to(output))

    is_marked = module == MARKED_FEATURES
    place = marking_module(model) if is_marked else model.get_submodule(module)
    place.register_forward_hook(hook)


@torch.no_grad()
def module_of_features(model: nn.Module, task: FeatureTask, batch: Batch) -> str | None:
    """Return the name of the module that returns a task's features, None if there is none.

    The module is called once per batch, and the features are what it returns, unchanged. That may
    be the module of `mark_features`.
    """
    calls: Counter[str] = Counter()
    returned: dict[str, Any] = {}

    def see(name: str, output: object) -> None:
        calls[name] += 1
        returned[name] = output

    modules = {**dict(model.named_modules()), MARKED_FEATURES: marking_module(model)}
    handles = [
        each.register_forward_hook(lambda _, __, output, name=name: see(name, output))
        for name, each in modules.items()
    ]
    features = task.features(model, batch.inputs)
    for handle in handles:
        handle.remove()
    once = (name for name, each in returned.items() if each is features and calls[name] == 1)
    return next(once, None)
