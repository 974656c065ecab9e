"""Live models whose parameters and layers have the names of the pool's sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adapting import (
    Batches,
    PackedLayer,
    PackedWeights,
    build_live,
    group_tied_names,
    input_dim,
    merged_parameters,
    observe_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, RunContext, WeightSource

    #: called with a layer, the name of its weight, and its inputs, of shape (positions, width)
    Observer = Callable[[nn.Module | PackedLayer, str, Tensor], None]

#: Examples that pass through a model together.
BATCH_SIZE = 32


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is an `nn.Linear` or transformers' `Conv1D`."""
    return input_dim(module) is not None


class LiveModel:
    """A live model in evaluation mode, and the layers that a method observes."""

    def __init__(
        self,
        pool: ModelPool[Any],
        weights: WeightSource,
        context: RunContext,
        *,
        is_layer: Callable[[nn.Module], bool] = is_linear,
        with_packed: bool = True,
    ) -> None:
        """Observe the modules that `is_layer` accepts, and packed experts if `with_packed`."""
        self.model = build_live(pool, weights, context.device)
        self.parameters = merged_parameters(pool, self.model)
        self._names = group_tied_names(self.parameters)
        layers: list[Any] = [module for module in self.model.modules() if is_layer(module)]
        #: the first name of each layer's weight; without layers whose weight is not merged
        self.layers: dict[nn.Module, str] = {
            layer: self._names[layer.weight][0] for layer in layers if layer.weight in self._names
        }
        layout = pool.live_layout
        self.packed = PackedWeights(self.parameters if with_packed else {}, layout)
        self._tied = self.packed.tied_names
        self._packed_names = {
            name: [slot.name for slot in layout.slots[name]]
            for parameter in self.packed.parameters
            for name in self._names[parameter]
        }
        #: what `put` sets: parameters, and views of the matrices in packed ones, by name
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach()
            for name, parameter in self.parameters.items()
            if name not in self._packed_names
        } | self.packed.matrices

    def tied_names(self, name: str) -> list[str]:
        """Return all names of a tensor's parameter, always in the same order."""
        return self._tied.get(name) or self._names[self.parameters[name]]

    def with_tied_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under all names of their parameters."""
        return {twin: values for name, values in tensors.items() for twin in self.tied_names(name)}

    def name_of(self, parameter: nn.Parameter | None) -> str | None:
        """Return a parameter's first name, or None for one that is not merged."""
        return None if parameter is None else self._names.get(parameter, [None])[0]

    def observe(self, task: AdaptiveTask, batch: Batch, observer: Observer) -> None:
        """Pass a batch through the model, and call `observer` for every call of a layer."""
        observe_inputs(
            self.model,
            self.layers,
            task,
            batch,
            lambda layer, inputs: observer(layer, self._name_of_layer(layer), inputs),
            packed=self.packed,
        )

    def _name_of_layer(self, layer: nn.Module | PackedLayer) -> str:
        return layer.name if isinstance(layer, PackedLayer) else self.layers[layer]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set some parameters, or matrices in packed ones."""
        for name, values in tensors.items():
            target = self.tensors[name]
            target.copy_(values.view(target.shape))

    def parameters_of(self, names: AbstractSet[str]) -> dict[str, nn.Parameter]:
        """Return the parameters that are, or hold, tensors with these names."""
        return {
            name: parameter
            for name, parameter in self.parameters.items()
            if not names.isdisjoint(self._packed_names.get(name, [name]))
        }


def examples(task: AdaptiveTask, samples: int, context: RunContext) -> Iterator[Batch]:
    """Yield a task's first unlabeled batches, the same on which `moments` gathers."""
    return Batches(min(BATCH_SIZE, samples), context.seed).first(task, samples)
