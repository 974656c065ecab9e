"""Second moments of the inputs of linear layers, as RegMean and its kin need them.

Sums are kept in the layer's dtype, at least fp32: what 256 examples say of a moment is uncertain by
per cents, rounding by less than a millionth of its norm, and float64 would take twice the memory
and is missing on some devices. A model in float64 has sums in float64.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core.adapting._live import build_live, merged_parameters, names_of
from fusion_core.adapting._passes import Batches
from fusion_core.adapting._predictions import widened
from fusion_core.errors import FusionError
from fusion_core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import AdaptiveTask, TaskPool


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
    batches = Batches(min(batch_size, samples), seed)
    own = {expert: tasks.adaptive(pool.task_of(expert)) for expert in pool.experts}
    for expert, task in own.items():
        yield expert, _moments_of(pool, expert, task, batches.first(task, samples), device)


def _moments_of(
    pool: ModelPool[Any],
    expert: str,
    task: AdaptiveTask,
    batches: Iterable[Batch],
    device: torch.device | str,
) -> dict[str, Moments]:
    model = build_live(pool, pool.experts[expert], device)
    return moments_of(model, merged_parameters(pool, model), task, batches)


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
    the same object. A layer that is never called is absent: a method treats its weight as it treats
    tensors of other kinds. Padding is left out, by the batch's mask; raises `FusionError` where
    that says nothing of a layer's inputs. The model, in evaluation mode, stays as it was.
    """
    gathering = _Gathering(names_of(parameters))
    device, seen = next(model.parameters()).device, 0
    with gathering.hooked(model), torch.no_grad():
        for batch in batches:
            here = batch.to(device)
            gathering.mask = _padding(here)
            task.logits(model, here)
            seen += len(batch)
            note(f"{task.name}: {seen:,} examples")
    return gathering.by_name()


def _padding(batch: Batch) -> Tensor | None:
    """Return what is not padding, shape (examples, length); None where all is."""
    mask = None if batch.mask is None else batch.mask.bool()
    return None if mask is None or bool(mask.all()) else mask


class _Gathering:
    """Moments that grow with every call of a layer."""

    def __init__(self, names: Mapping[nn.Parameter, list[str]]) -> None:
        self.names = names
        self.mask: Tensor | None = None
        self.found: dict[nn.Parameter, Moments] = {}

    def by_name(self) -> dict[str, Moments]:
        return {name: each for key, each in self.found.items() for name in self.names[key]}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Look at the inputs of every linear layer whose weight has a name, and then no more."""
        layers = [each for each in model.modules() if _input_dim(each) is not None]
        handles = [
            each.register_forward_pre_hook(self._see, with_kwargs=True)
            for each in layers
            if each.weight in self.names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        inputs = widened((args or tuple(kwargs.values()))[0].detach())
        if layer.weight not in self.found:
            dim = _input_dim(layer)
            total = inputs.new_zeros((inputs.shape[-1],) * 2)
            self.found[layer.weight] = Moments(total, 1 if dim is None else dim)
        self.found[layer.weight].add(self._unpadded(inputs, self.names[layer.weight][0]))

    def _unpadded(self, inputs: Tensor, name: str) -> Tensor:
        """Return what is not padding, of shape (positions, inputs)."""
        leading, width = inputs.shape[:-1], inputs.shape[-1]
        if self.mask is None:
            return inputs.reshape(-1, width)
        if leading[:2] == self.mask.shape:
            return inputs[self.mask].reshape(-1, width)
        if leading == (self.mask.numel(),):  # positions of all examples in one row
            return inputs[self.mask.flatten()]
        if leading == self.mask.shape[:1]:  # one input an example
            return inputs
        raise FusionError(
            f"the layer of {name!r} gets inputs of shape {tuple(inputs.shape)}: a mask of shape "
            f"{tuple(self.mask.shape)} does not say which of them are padding",
            hint=f"Give batches without padding, or leave the tensor out: algorithm.skip={name}",
        )


def _input_dim(module: nn.Module) -> int | None:
    """Return the dimension of a linear layer's weight that inputs run along, None for others."""
    if isinstance(module, nn.Linear):
        return 1
    kinds = {f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__}
    return 0 if "transformers.pytorch_utils.Conv1D" in kinds else None
