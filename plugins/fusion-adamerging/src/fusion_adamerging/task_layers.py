"""Layers of each task's own, learned together with the coefficients of a live merge."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_adamerging.learnable import LearnableCoefficients
from fusion_adapting import group_tied_names, input_dim
from fusion_core.errors import RecipeError
from fusion_core.weights import select_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import SyMergeConfig
    from fusion_adapting import Leaf, LiveMerge
    from fusion_core import AdaptiveTask, Batch
    from fusion_core.weights import WeightSource


class TaskLayers(LearnableCoefficients):
    """Coefficients, and tensors of each task that replace some of the merge's."""

    def __init__(  # noqa: PLR0913 - the arguments of coefficients, and two more
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: SyMergeConfig,
        *,
        leaves: Sequence[Leaf],
        start: Mapping[str, WeightSource],
    ) -> None:
        """`leaves` are the replaced leaves, `start` each task's initial weights."""
        super().__init__(live, experts, device, config)
        self._layers = {
            task: [
                (
                    leaf,
                    nn.Parameter(weights.tensor(leaf.tensors[0]).to(leaf.collected, copy=True)),
                )
                for leaf in leaves
            ]
            for task, weights in start.items()
        }
        paths: dict[nn.Parameter, list[str]] = {}
        for path, parameter in live.model.named_parameters(remove_duplicate=False):
            paths.setdefault(parameter, []).append(path)
        self.task_parameters = {
            task: {path: tensor for leaf, tensor in layers for path in paths[leaf.parameter]}
            for task, layers in self._layers.items()
        }
        named = {
            f"{task}/{leaf.tensors[0]}": tensor
            for task, layers in self._layers.items()
            for leaf, tensor in layers
        }
        self.tensors = {**self.tensors, **named}
        rate_factor = config.own_lr / config.lr
        self.rate_factors = {**self.rate_factors, **dict.fromkeys(named, rate_factor)}
        self._task_tensors = list(named.values())

    def write_weights(self) -> None:
        """Merge, and reset the gradients of the tasks' tensors to zero."""
        super().write_weights()
        for tensor in self._task_tensors:
            tensor.grad = torch.zeros_like(tensor)

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Project the gradient onto the task vectors, and add up the tasks' tensors' gradients."""
        super().collect(summed)
        for tensor in self._task_tensors:
            if tensor.grad is not None:
                tensor.grad = summed(tensor.grad)

    def by_task(self) -> dict[str, dict[str, Tensor]]:
        """Return every task's tensors by all their names."""
        return {
            task: {name: tensor.detach().cpu() for leaf, tensor in layers for name in leaf.tensors}
            for task, layers in self._layers.items()
        }


def choose_leaves(
    live: LiveMerge, patterns: Sequence[str] | None, task: AdaptiveTask, batch: Batch
) -> list[Leaf]:
    """Return the leaves that each task has for itself.

    These are the leaves that `patterns` name. Without patterns, they are the weight and the bias of
    one linear layer: of the layers that experts changed, the one that a pass of the batch first
    calls last. Raises `RecipeError` if there is none.
    """
    by_parameter: dict[nn.Parameter, Leaf] = {}
    for leaf in live.leaves:  # one leaf represents a parameter that holds several matrices
        by_parameter.setdefault(leaf.parameter, leaf)
    leaves = {name: leaf for leaf in by_parameter.values() for name in leaf.tensors}
    if patterns is not None:
        names = select_names(patterns, leaves, "algorithm.own")
    else:
        parameters = {name: leaf.parameter for name, leaf in leaves.items()}
        names = _last_linear_layer(live.model, parameters, task, batch)
    return [leaf for leaf in by_parameter.values() if names & {*leaf.tensors}]


def _last_linear_layer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], task: AdaptiveTask, batch: Batch
) -> set[str]:
    names = group_tied_names(parameters)
    called: dict[nn.Parameter, None] = {}
    linear: list[Any] = [layer for layer in model.modules() if input_dim(layer) is not None]
    with torch.no_grad(), ExitStack() as hooks:
        for layer in linear:
            if layer.weight in names:
                note = layer.register_forward_pre_hook(
                    lambda layer, _: called.setdefault(layer.weight)
                )
                hooks.callback(note.remove)
        task.logits(model, batch.to(next(model.parameters()).device))
    if not called:
        raise RecipeError(
            f"no linear layer that experts changed takes part in task {task.name!r}, so there is "
            "none to learn per task",
            hint="Name the tensors to learn per task: --set algorithm.own=...",
        )
    weight = names[list(called)[-1]][-1]
    return {weight, weight.removesuffix("weight") + "bias"}
