"""Search for the module of a live model that returns a task's features."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.feature_adapters import MARKED_FEATURES, get_marking_module

if TYPE_CHECKING:
    from torch import nn

    from fusion_core import Batch, FeatureTask


@torch.no_grad()
def find_feature_module(model: nn.Module, task: FeatureTask, batch: Batch) -> str | None:
    """Return the name of the module that returns a task's features, or None if there is none.

    The features must be the module's unchanged output, and the module must be called once per
    batch. It may be the module of `mark_features`.
    """
    calls: Counter[str] = Counter()
    outputs: dict[str, Any] = {}

    def record(name: str, output: object) -> None:
        calls[name] += 1
        outputs[name] = output

    modules = {**dict(model.named_modules()), MARKED_FEATURES: get_marking_module(model)}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, module in modules.items()
    ]
    features = task.features(model, batch.inputs)
    for handle in handles:
        handle.remove()
    names = (name for name, output in outputs.items() if output is features and calls[name] == 1)
    return next(names, None)
