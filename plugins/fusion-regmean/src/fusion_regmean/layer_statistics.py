"""Statistics of the inputs of an expert's layers, on its own task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.functional import layer_norm, rms_norm

from fusion_adapting import Moments, PackedLayer, input_dim
from fusion_regmean.live_model import LiveModel, examples
from fusion_regmean.sources import tasks_of, track_experts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_core import ModelPool, RunContext


@dataclass
class Energy:
    """Sums of squares of the values that a normalisation's weight multiplies."""

    #: shape (features,)
    total: Tensor
    count: int = 0

    def add(self, normalised: Tensor) -> None:
        """Add normalised inputs of shape (positions, features)."""
        self.total += normalised.square().sum(0)
        self.count += len(normalised)

    @property
    def mean(self) -> Tensor:
        """The mean over positions, in fp64."""
        return self.total.cpu().double() / max(self.count, 1)


@dataclass
class LayerStatistics:
    """Moments of linear layers and energies of normalisations, by the first names of weights."""

    moments: dict[str, Moments] = field(default_factory=dict)
    energies: dict[str, Energy] = field(default_factory=dict)
    #: all names of a weight's parameter
    tied: dict[str, list[str]] = field(default_factory=dict)
    #: the names of all parameters, also of those that belong to no observed layer
    parameters: set[str] = field(default_factory=set)

    def add(self, layer: Any, name: str, inputs: Tensor) -> None:  # noqa: ANN401 - of either kind
        """Add one call of a layer."""
        width = inputs.shape[-1]
        dim = layer.dim if isinstance(layer, PackedLayer) else input_dim(layer)
        if dim is None:
            energy = self.energies.setdefault(name, Energy(inputs.new_zeros(width)))
            energy.add(_normalise(layer, inputs))
            return
        if name not in self.moments:
            self.moments[name] = Moments(inputs.new_zeros(width, width), dim)
        self.moments[name].add(inputs)


def expert_statistics(
    pool: ModelPool[Any], samples: int, context: RunContext
) -> Iterator[tuple[str, LayerStatistics]]:
    """Yield every expert's name and its statistics; only one expert is live at a time."""
    gathered = ((expert, _gather(pool, expert, samples, context)) for expert in pool.experts)
    return track_experts("gather statistics", gathered, pool, context)


def _gather(
    pool: ModelPool[Any], expert: str, samples: int, context: RunContext
) -> LayerStatistics:
    live = LiveModel(pool, pool.experts[expert], context, is_layer=_is_observed)
    task, statistics = tasks_of(context).adaptive(pool.task_of(expert)), LayerStatistics()
    for batch in examples(task, samples, context):
        live.observe(task, batch, statistics.add)
    for name in live.packed.not_understood:
        statistics.moments.pop(name, None)
    names = {*live.layers.values(), *statistics.moments}
    statistics.tied = {name: live.tied_names(name) for name in names}
    slots = {**pool.layout.slots, **pool.live_layout.slots}
    matrices = {slot.name for name in live.parameters for slot in slots.get(name, ())}
    statistics.parameters = {*live.parameters, *matrices}
    return statistics


def _is_observed(module: nn.Module) -> bool:
    """Return whether a module is linear or normalises its last dimension (torch, transformers)."""
    normalises = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    weight = getattr(module, "weight", None)
    return input_dim(module) is not None or (normalises and getattr(weight, "ndim", 0) == 1)


def _normalise(layer: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401 - of either kind
    shape = inputs.shape[-1:]
    if isinstance(layer, nn.LayerNorm):
        return layer_norm(inputs, shape, eps=layer.eps)
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))  # transformers', torch's
    return rms_norm(inputs, shape, eps=eps)
