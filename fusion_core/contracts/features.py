"""The place in a live model where a task's features can be changed, and adapters that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

#: The name of the module that marked features pass through.
MARKED_FEATURES = "fusion_marked_features"


def mark_features(model: nn.Module, features: Tensor) -> Tensor:
    """Pass features through a module of the live model that returns them as they are.

    A task whose features no module of the model returns, such as a mean over tokens, returns
    `mark_features(model, features)` from `FeatureTask.features`. Methods that train an adapter of a
    task's features (`surgery`) then have a module to attach it to, and the task sees features that
    went through the adapter. `model` is the live model that the task is given. The module has no
    parameters, and no checkpoint holds it.
    """
    marked: Tensor = marking_module(model)(features)
    return marked


def marking_module(model: nn.Module) -> nn.Module:
    """Return the module that marked features pass through; add it where the model has none.

    It is an attribute and no submodule: a container such as `nn.Sequential` calls its submodules.
    """
    module: nn.Module = vars(model).setdefault(MARKED_FEATURES, nn.Identity())
    return module


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
