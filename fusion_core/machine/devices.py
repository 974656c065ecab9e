"""Torch devices by name."""

from __future__ import annotations

import torch

from fusion_core.errors import RecipeError
from fusion_core.machine.ranks import local_gpu


def resolve_device(name: str) -> torch.device:
    """Return the torch device of a name; raise `RecipeError` if this machine lacks it.

    In a process that torchrun started, `cuda` is the GPU that torchrun assigned to it.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type == "cuda":
        if device.index is None and local_gpu() is not None:
            device = torch.device("cuda", local_gpu())
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if 0 <= (device.index or 0) < count:  # torch wraps large indices to negative ones
            return device
        problem = f"torch finds {count or 'no'} CUDA device{'s' if count > 1 else ''} here"
        raise RecipeError(f"device {name!r}: {problem}", hint="Use cpu.")
    is_usable = device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())
    if device.index or not is_usable:  # others, such as `meta`, hold no values
        raise RecipeError(f"device {name!r}: unknown device", hint="Use cpu, cuda or cuda:1.")
    return device
