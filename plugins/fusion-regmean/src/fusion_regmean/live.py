"""Live models whose parameters and layers go by the names that the pool's sources use."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_adapting import (
    Batches,
    build_live,
    input_dim,
    merged_parameters,
    names_of,
    show_inputs,
)
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import Tensor

    from fusion_core import AdaptiveTask, Batch, ModelPool, RunContext, WeightSource

    #: called with a layer, the name of its weight, and its inputs, of shape (positions, width)
    See = Callable[[nn.Module, str, Tensor], None]

#: Examples in a pass.
_SIZE = 32


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is an `nn.Linear` or transformers' `Conv1D`."""
    return input_dim(module) is not None


class Live:
    """A live model, in evaluation mode, with the layers that a method looks at."""

    def __init__(
        self,
        pool: ModelPool[Any],
        weights: WeightSource,
        context: RunContext,
        *,
        is_layer: Callable[[nn.Module], bool] = is_linear,
    ) -> None:
        self.model = build_live(pool, weights, context.device)
        self.parameters = merged_parameters(pool, self.model)
        self._names = names_of(self.parameters)
        layers: list[Any] = [module for module in self.model.modules() if is_layer(module)]
        #: by the first name of its weight; no layer whose weight is not merged
        self.layers: dict[nn.Module, str] = {
            layer: self._names[layer.weight][0] for layer in layers if layer.weight in self._names
        }

    def tied(self, name: str) -> list[str]:
        """Return all names of a tensor's parameter, always in the same order."""
        return self._names[self.parameters[name]]

    def name_of(self, parameter: nn.Parameter | None) -> str | None:
        """Return a parameter's first name, None for one that is not merged."""
        return None if parameter is None else self._names.get(parameter, [None])[0]

    def show(self, task: AdaptiveTask, batch: Batch, see: See) -> None:
        """Pass a batch through, and show every call of a layer."""
        show_inputs(
            self.model, self.layers, task, batch, lambda each, x: see(each, self.layers[each], x)
        )

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set some parameters."""
        for name, values in tensors.items():
            self.parameters[name].copy_(values)


class Pair:
    """A live merge and a live expert: what some of their layers are given of the same examples."""

    def __init__(self, live: Live, expert: nn.Module, names: Collection[str]) -> None:
        """`names` are the layers' weights."""
        self._models = live.model, expert
        self._own = {each: name for each, name in live.layers.items() if name in names}
        twins = dict(expert.named_modules())
        self._theirs = {
            twins[path]: self._own[each]
            for path, each in live.model.named_modules()
            if each in self._own
        }

    def show(
        self, task: AdaptiveTask, batch: Batch, see: Callable[[str, Tensor, Tensor], None]
    ) -> None:
        """Pass a batch through both; call `see(name, in the merge, in the expert)` a call."""
        live, expert = self._models
        in_expert: deque[tuple[str, Tensor]] = deque()
        show_inputs(
            expert,
            self._theirs,
            task,
            batch,
            lambda layer, inputs: in_expert.append((self._theirs[layer], inputs)),
        )

        def compare(layer: nn.Module, inputs: Tensor) -> None:
            name = self._own[layer]
            called, theirs = in_expert.popleft() if in_expert else ("nothing", inputs)
            if (called, theirs.shape) != (name, inputs.shape):
                raise _called_otherwise(task, name)
            see(name, inputs, theirs)

        show_inputs(live, self._own, task, batch, compare)
        if in_expert:
            raise _called_otherwise(task, in_expert[0][0])


def _called_otherwise(task: AdaptiveTask, name: str) -> FusionError:
    return FusionError(
        f"task {task.name!r} calls the layer of {name!r} differently in the merge and in the "
        "expert: their inputs cannot be compared",
        hint="`logits` has to call every model in the same way for the same batch, each time that "
        "it is called. Keep no results of an earlier call.",
    )


def examples(task: AdaptiveTask, samples: int, context: RunContext) -> Iterator[Batch]:
    """Yield a task's first unlabeled batches: those that `moments` of the core gathers on."""
    return Batches(min(_SIZE, samples), context.seed).first(task, samples)
