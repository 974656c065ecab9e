"""Second moments of the inputs of linear layers, as RegMean and its kin need them.

Sums are kept in the layer's dtype, at least fp32: what 256 examples say of a moment is uncertain by
per cents, rounding by less than a millionth of its norm, and float64 would take twice the memory
and is missing on some devices. A model in float64 has sums in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fusion_adapting._experts import over_experts
from fusion_adapting._inputs import input_dim, show_inputs
from fusion_adapting._live import names_of
from fusion_core import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, TaskPool


@dataclass
class Moments:
    """The second moment of a linear layer's inputs x, one x an example and position."""

    #: the sum of x x^T, shape (inputs, inputs)
    total: Tensor
    #: the weight's dimension that inputs run along: 1 in `nn.Linear`, 0 in transformers' `Conv1D`
    dim: int
    #: how many x there were
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """E[x x^T]; zeros where there was no x."""
        return self.total / max(self.count, 1)

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape (positions, inputs)."""
        rows = inputs.to(self.total.dtype)
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)


def moments(  # noqa: PLR0913 - which examples, and where they are passed through
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    *,
    samples: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, dict[str, Moments]]]:
    """Yield every expert's name and the moments of its layers on examples of its own task.

    One expert is live at a time, and gone when its moments are yielded; nothing of them is kept
    here. A loop's variable still holds them while the next ones are gathered: `del` it where that
    matters. Which layers have moments, and under which names: see `moments_of`. Raises
    `RecipeError` for an expert whose task is not there, before anything is loaded.
    """
    places: Any = {"batch_size": batch_size, "seed": seed, "device": device}
    return over_experts(moments_of, pool, tasks, samples=samples, **places)


def moments_of(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    task: AdaptiveTask,
    batches: Iterable[Batch],
) -> dict[str, Moments]:
    """Return by tensor name the moments of what a live model's linear layers get from batches.

    `parameters` are those to look at, by tensor name. Layers are `nn.Linear`s and transformers'
    `Conv1D`s; convolutions and the projections inside `nn.MultiheadAttention` are not. One that is
    called several times, and a parameter that several layers share, has the sum; tied names have
    the same object. They come in the order in which layers are first called; a layer that never is
    is absent: a method treats its weight as it treats tensors of other kinds. Padding is left out,
    by the batch's mask; raises `FusionError` where that says nothing of a layer's inputs. The
    model, in evaluation mode, stays as it was.
    """
    names, seen = names_of(parameters), 0
    linear: list[Any] = [module for module in model.modules() if input_dim(module) is not None]
    layers = {each: names[each.weight][0] for each in linear if each.weight in names}
    found: dict[nn.Parameter, Moments] = {}

    def see(layer: Any, inputs: Tensor) -> None:  # noqa: ANN401 - linear, of whatever class
        if layer.weight not in found:
            total = inputs.new_zeros((inputs.shape[-1],) * 2)
            found[layer.weight] = Moments(total, cast("int", input_dim(layer)))
        found[layer.weight].add(inputs)

    for batch in batches:
        show_inputs(model, layers, task, batch, see)
        seen += len(batch)
        note(f"{task.name}: {seen:,} examples")
    return {name: each for key, each in found.items() for name in names[key]}
