"""Gradient checkpointing: layers keep their inputs, and run again in the backward pass.

A model's activations then take the memory of one layer, and a step about a third more time.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def checkpoint_layers(model: nn.Module) -> int:
    """Let the repeated layers of a model keep their inputs alone; return how many these are.

    Repeated layers are the members of an `nn.ModuleList` or `nn.Sequential` that are all of one
    class. Where such lists are nested, these are the members of the outer one. A list of one counts
    if there are no longer ones. Outputs and gradients are the same up to rounding: layers get no
    cache of keys and values, and the gradients of a tensor that several layers share are added in
    another order.
    """
    layers = list(_find_layers(model, fewest=2)) or list(_find_layers(model, fewest=1))
    for layer in layers:
        layer.forward = _checkpointed(layer)
    return len(layers)


def _find_layers(module: nn.Module, *, fewest: int) -> Iterator[nn.Module]:
    children = list(module.children())
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    if is_list and len(children) >= fewest and len({type(child) for child in children}) == 1:
        yield from children
        return
    for child in children:
        yield from _find_layers(child, fewest=fewest)


def _checkpointed(layer: nn.Module) -> Callable[..., Any]:
    forward = layer.forward
    only_reads_cache = getattr(layer, "_can_checkpoint_with_cache", False)  # of transformers

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the layer takes
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if not only_reads_cache:
            args = tuple(map(_unless_cache, args))
            kwargs = {name: _unless_cache(value) for name, value in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _unless_cache(argument: Any) -> Any:  # noqa: ANN401 - any argument of a layer
    """Return None for a cache of keys and values: a layer that runs twice would add them twice."""
    return None if hasattr(argument, "get_seq_length") else argument
