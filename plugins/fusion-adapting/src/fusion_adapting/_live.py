"""Live models of a pool, and their parameters under the names of the pool's sources."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.linear_kernels import use_fast_linear_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource


def build_live(
    pool: ModelPool[Any],
    weights: WeightSource,
    device: torch.device | str,
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return a live model with these weights, by default in `live_dtype`."""
    model = pool.build(weights, dtype=dtype or live_dtype(pool), device=device)
    return use_fast_linear_layers(model)


def live_dtype(pool: ModelPool[Any]) -> torch.dtype:
    """Return fp64 if the pool's base, or its first expert without one, has fp64, else fp32.

    Experts do not count: some adapters have differences in fp64, so that a merge rounds once.
    """
    infos = pool.reference.infos.values()
    has_fp64 = any(info.dtype is torch.float64 for info in infos)
    return torch.float64 if has_fp64 else torch.float32


def group_tied_names(parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, list[str]]:
    """Return the names of each floating-point parameter; tied parameters have several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in parameters.items():
        if parameter.is_floating_point():
            names.setdefault(parameter, []).append(name)
    return names


def merged_parameters(pool: ModelPool[Any], model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a live model that the pool's sources contain, by source name.

    A parameter that holds several of the sources' tensors has its name in `pool.live_layout`.
    """
    parameters = pool.parameters(model)
    known = set(pool.reference.infos)
    if not parameters.keys() <= known:
        known |= pool.live_layout.slots.keys()
    return {name: parameter for name, parameter in parameters.items() if name in known}


def separate_tensors(pool: ModelPool[Any], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values of parameters by the sources' names.

    A parameter that holds several of the sources' tensors is replaced by views of these.
    """
    slots = pool.live_layout.slots if values.keys() - pool.reference.infos.keys() else {}
    separate: dict[str, Tensor] = {}
    for name, tensor in values.items():
        if name in pool.reference.infos or name not in slots:
            separate[name] = tensor
            continue
        flat = tensor.view(-1)
        separate |= {slot.name: slot.view(flat[slot.start : slot.stop]) for slot in slots[name]}
    return separate


@contextmanager
def replace_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Replace parameters of a model for a while; `parameters` has each name of a tied parameter."""
    before = {name: model.get_parameter(name) for name in parameters}
    try:
        _set_parameters(model, parameters)
        yield
    finally:
        _set_parameters(model, before)


def _set_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, parameter)
