"""What an expert's layers are given: moments of linear ones, energies of normalisations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.functional import layer_norm, rms_norm

from fusion_adapting import Moments, input_dim
from fusion_regmean.experts import tasks_of, tracked
from fusion_regmean.live import Live, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_core import ModelPool, RunContext


@dataclass
class Energy:
    """Squares of what a normalisation multiplies by its weight."""

    #: shape (features,)
    total: Tensor
    count: int = 0

    def add(self, plain: Tensor) -> None:
        """Add normalised inputs of shape (positions, features)."""
        self.total += plain.square().sum(0)
        self.count += len(plain)

    @property
    def mean(self) -> Tensor:
        """The mean over positions, in fp64."""
        return self.total.cpu().double() / max(self.count, 1)


@dataclass
class Seen:
    """One expert's statistics, by the first names of weights."""

    moments: dict[str, Moments] = field(default_factory=dict)
    energies: dict[str, Energy] = field(default_factory=dict)
    #: all names of a tensor that are one parameter
    tied: dict[str, list[str]] = field(default_factory=dict)

    def add(self, layer: Any, name: str, given: Tensor) -> None:  # noqa: ANN401 - of either kind
        """Add one call of a layer."""
        dim, width = input_dim(layer), given.shape[-1]
        if dim is None:
            energy = self.energies.setdefault(name, Energy(given.new_zeros(width)))
            energy.add(_normalised(layer, given))
            return
        if name not in self.moments:
            self.moments[name] = Moments(given.new_zeros(width, width), dim)
        self.moments[name].add(given)


def seen_by_experts(
    pool: ModelPool[Any], samples: int, context: RunContext
) -> Iterator[tuple[str, Seen]]:
    """Yield every expert's name and what was seen of it on its own task; one is live at a time."""
    found = ((expert, _seen(pool, expert, samples, context)) for expert in pool.experts)
    return tracked("look at experts", found, pool, context)


def _seen(pool: ModelPool[Any], expert: str, samples: int, context: RunContext) -> Seen:
    live = Live(pool, pool.experts[expert], context, is_layer=_is_seen)
    task, found = tasks_of(context).adaptive(pool.task_of(expert)), Seen()
    for batch in examples(task, samples, context):
        live.show(task, batch, found.add)
    found.tied = {name: live.tied(name) for name in live.layers.values()}
    return found


def _is_seen(module: nn.Module) -> bool:
    """Tell linear layers and normalisations over the last dimension, of torch or transformers."""
    normalises = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    weight = getattr(module, "weight", None)
    return input_dim(module) is not None or (normalises and getattr(weight, "ndim", 0) == 1)


def _normalised(layer: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401 - of either kind
    shape = inputs.shape[-1:]
    if isinstance(layer, nn.LayerNorm):
        return layer_norm(inputs, shape, eps=layer.eps)
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))  # transformers', torch's
    return rms_norm(inputs, shape, eps=eps)
