"""Marked features of a live model, and adapters that change features for one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

#: The name of the module that marked features pass through.
MARKED_FEATURES = "fusion_marked_features"


def mark_features(model: nn.Module, features: Tensor) -> Tensor:
    """Return the features unchanged, passed through a module that adapters can attach to.

    Call it in `FeatureTask.features` if no module of the model outputs the features, for example
    because they are a mean over tokens. Methods that train an adapter of a task's features
    (`surgery`) attach it to that module, and the task then receives adapted features. `model` is
    the live model that the task was given. The module has no parameters, and no checkpoint
    contains it.
    """
    marked: Tensor = get_marking_module(model)(features)
    return marked


def get_marking_module(model: nn.Module) -> nn.Module:
    """Return the module that marked features pass through; create it if the model has none.

    It is a plain attribute, not a submodule: containers such as `nn.Sequential` call submodules.
    """
    module: nn.Module = vars(model).setdefault(MARKED_FEATURES, nn.Identity())
    return module


def apply_adapter(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return features - up relu(down features), of shape (..., width).

    `down` has shape (rank, width), `up` has shape (width, rank).
    """
    return features - (features @ down.mT).relu() @ up.mT


def attach_adapter(model: nn.Module, module: str, down: Tensor, up: Tensor) -> None:
    """Attach an adapter to a module of a live model: it changes the module's output for good."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return apply_adapter(output, down.to(output), up.to(output))

    is_marked = module == MARKED_FEATURES
    adapted = get_marking_module(model) if is_marked else model.get_submodule(module)
    adapted.register_forward_hook(hook)
