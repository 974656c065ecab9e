"""Live models of a pool, and their parameters under the names that the pool's sources use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.products import with_fast_products

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource


def build_live(
    pool: ModelPool[Any],
    weights: WeightSource,
    device: torch.device | str,
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return a live model to pass batches through, by default in fp32, in fp64 if weights are."""
    wide = any(info.dtype is torch.float64 for info in weights.infos.values())
    dtype = dtype or (torch.float64 if wide else torch.float32)
    return with_fast_products(pool.build(weights, dtype=dtype, device=device))


def names_of(parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, list[str]]:
    """Return the names of each parameter that holds floating-point numbers: several if tied."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in parameters.items():
        if parameter.is_floating_point():
            names.setdefault(parameter, []).append(name)
    return names


def merged_parameters(pool: ModelPool[Any], model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a live model that the pool's sources have, by their names."""
    known = pool.reference.infos
    return {name: each for name, each in pool.parameters(model).items() if name in known}


@contextmanager
def standing_in(model: nn.Module, own: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let parameters stand in a model's own ones' places, by all names that these have in it."""
    before = {name: model.get_parameter(name) for name in own}
    try:
        _put(model, own)
        yield
    finally:
        _put(model, before)


def _put(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, each in parameters.items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, each)
