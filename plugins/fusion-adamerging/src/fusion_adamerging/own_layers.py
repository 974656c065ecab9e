"""Layers that every task has for itself, learned along with the coefficients of a live merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fusion_adamerging.learned import LearnedCoefficients
from fusion_adapting import moments_of
from fusion_core.errors import RecipeError
from fusion_core.weights import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import SyMergeConfig
    from fusion_adapting import Leaf, LiveMerge
    from fusion_core import AdaptiveTask, Batch
    from fusion_core.weights import WeightSource


class OwnLayers(LearnedCoefficients):
    """Coefficients, and each task's own tensors in the places of some of the merge's."""

    def __init__(  # noqa: PLR0913 - what coefficients have, and two things more
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: SyMergeConfig,
        *,
        leaves: Sequence[Leaf],
        start: Mapping[str, WeightSource],
    ) -> None:
        """`leaves` are what tasks have for themselves, `start` the weights they begin with."""
        super().__init__(live, experts, device, config)
        self._own = {
            task: [(leaf, _begun(leaf, weights)) for leaf in leaves]
            for task, weights in start.items()
        }
        places = _places(live.model)
        self.own = {
            task: {place: each for leaf, each in pairs for place in places[leaf.parameter]}
            for task, pairs in self._own.items()
        }
        named = {
            f"{task}/{leaf.tensors[0]}": each
            for task, pairs in self._own.items()
            for leaf, each in pairs
        }
        self.tensors = {**self.tensors, **named}
        self.paces = {**self.paces, **dict.fromkeys(named, config.own_lr / config.lr)}
        self._learned = list(named.values())

    def place(self) -> None:
        """Merge, and let gradients of the tasks' own tensors be summed from zero."""
        super().place()
        for each in self._learned:
            each.grad = torch.zeros_like(each)

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Project the gradient onto the task vectors; the own tensors have theirs already."""
        super().collect(summed)
        for each in self._learned:
            if each.grad is not None:
                each.grad = summed(each.grad)

    def by_task(self) -> dict[str, dict[str, Tensor]]:
        """Return every task's own tensors, by all their names."""
        return {
            task: {name: each.detach().cpu() for leaf, each in pairs for name in leaf.tensors}
            for task, pairs in self._own.items()
        }


def own_leaves(
    live: LiveMerge, patterns: Sequence[str] | None, task: AdaptiveTask, batch: Batch
) -> list[Leaf]:
    """Return the leaves that patterns name or, without any, those of the last linear layer.

    That is the one which, of those that experts changed, the model first calls last in a pass of
    the batch. Raises `RecipeError` where there is none.
    """
    firsts: dict[nn.Parameter, Leaf] = {}
    for leaf in live.leaves:  # of a parameter that holds several matrices, one stands for all
        firsts.setdefault(leaf.parameter, leaf)
    leaves = {name: leaf for leaf in firsts.values() for name in leaf.tensors}
    if patterns is not None:
        names = matching(patterns, leaves, "algorithm.own")
    else:
        names = _last_layer(live.model, {k: v.parameter for k, v in leaves.items()}, task, batch)
    return [leaf for leaf in firsts.values() if names & {*leaf.tensors}]


def _last_layer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], task: AdaptiveTask, batch: Batch
) -> set[str]:
    called = list(moments_of(model, parameters, task, [batch]))
    if not called:
        raise RecipeError(
            f"task {task.name!r} uses no linear layer that experts changed, to be each task's own",
            hint="Name the tensors that each task is to have for itself: --set algorithm.own=...",
        )
    weight = called[-1]
    return {weight, weight.removesuffix("weight") + "bias"}


def _begun(leaf: Leaf, weights: WeightSource) -> nn.Parameter:
    return nn.Parameter(weights.tensor(leaf.tensors[0]).to(leaf.parameter, copy=True))


def _places(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return all names that each parameter has in a model."""
    places: dict[nn.Parameter, list[str]] = {}
    for place, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(place)
    return places
