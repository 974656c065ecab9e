"""Second moments of the inputs of linear layers, for RegMean and related methods.

Sums are accumulated in the layer's dtype, at least fp32, and fp64 for models in fp64. The sampling
error of a moment from 256 examples is some per cent, and rounding adds less than a millionth of its
norm. Accumulating in fp64 would double the memory, and some devices lack it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fusion_adapting._experts import measure_experts
from fusion_adapting._inputs import input_dim, observe_inputs
from fusion_adapting._live import group_tied_names
from fusion_adapting._packed import PackedLayer, PackedWeights
from fusion_core import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, TaskPool
    from fusion_core.weights import Layout


@dataclass
class Moments:
    """The second moment of a linear layer's inputs x, one x per example and position."""

    #: the sum of x x^T, shape (inputs, inputs)
    total: Tensor
    #: the input dimension of the weight: 1 in `nn.Linear`, 0 in transformers' `Conv1D`; of a
    #: matrix in a packed parameter, as the pool declares it
    dim: int
    #: the number of x
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """E[x x^T], or zeros if there was no x."""
        return self.total / max(self.count, 1)

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (positions, inputs)."""
        rows = inputs.to(self.total.dtype)
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)


def moments(  # noqa: PLR0913 - which examples, and where to pass them
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    *,
    samples: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, dict[str, Moments]]]:
    """Yield every expert's name and the moments of its layers on examples of its own task.

    `compute_moments` with the pool's `live_layout` says which layers have moments, and under which
    names. One expert is live at a time, and released before its moments are yielded. The iterator
    keeps no moments, but the loop variable of the caller does while the next ones are collected:
    `del` it if memory is short.
    Raises `RecipeError` for an expert without a task, before loading any model.
    """
    where: Any = {"batch_size": batch_size, "seed": seed, "device": device}
    measure = partial(compute_moments, layout=pool.live_layout)
    return measure_experts(measure, pool, tasks, samples=samples, **where)


def compute_moments(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    task: AdaptiveTask,
    batches: Iterable[Batch],
    *,
    layout: Layout | None = None,
) -> dict[str, Moments]:
    """Return the moments of a live model's linear layers over batches, by tensor name.

    Only the weights in `parameters` are considered. Linear layers are `nn.Linear` and transformers'
    `Conv1D`, but not convolutions or the projections inside `nn.MultiheadAttention`. Several calls
    of a layer, and several layers that share a parameter, are summed. Tied names have the same
    object. The order is that in which layers are first called. A layer that is never called is
    absent: a method treats its weight like tensors of other kinds. Padding is left out by the
    batch's mask. Raises `FusionError` if that mask does not fit a layer's inputs. The model, in
    evaluation mode, does not change.

    With a pool's `live_layout`, the layers include packed experts, each under its matrix's name.
    Their inputs are the positions routed to them. An expert that gets none is absent, like one of a
    parameter that the model uses otherwise than in products with its matrices.
    """
    names: dict[Any, list[str]] = {**group_tied_names(parameters)}
    count = 0
    packed = None if layout is None else PackedWeights(parameters, layout)
    linear: list[Any] = [module for module in model.modules() if input_dim(module) is not None]
    layers = {layer: names[layer.weight][0] for layer in linear if layer.weight in names}
    collected: dict[nn.Parameter | str, Moments] = {}

    def collect(layer: Any, inputs: Tensor) -> None:  # noqa: ANN401 - of any class
        if isinstance(layer, PackedLayer):
            key, dim = layer.name, layer.dim
        else:
            key, dim = layer.weight, cast("int", input_dim(layer))
        if key not in collected:
            collected[key] = Moments(inputs.new_zeros((inputs.shape[-1],) * 2), dim)
        collected[key].add(inputs)

    for batch in batches:
        observe_inputs(model, layers, task, batch, collect, packed=packed)
        count += len(batch)
        note(f"{task.name}: {count:,} examples")
    if packed is not None:
        for name in packed.not_understood:
            collected.pop(name, None)
        names |= packed.tied_names
    return {name: result for key, result in collected.items() for name in names[key]}
