"""The module of a live model that returns a task's features."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.features import MARKED_FEATURES, marking_module

if TYPE_CHECKING:
    from torch import nn

    from fusion_core import Batch, FeatureTask


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
