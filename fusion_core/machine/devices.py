"""Devices by name, as torch finds them here."""

from __future__ import annotations

import torch

from fusion_core.errors import RecipeError
from fusion_core.machine.ranks import own_gpu


def device_of(name: str) -> torch.device:
    """Return the torch device of a name; raises `RecipeError` if there is none here.

    `cuda` is, of several processes that torchrun started, each one's own.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.index is None and device.type == "cuda" and own_gpu() is not None:
        device = torch.device("cuda", own_gpu())
    index = device.index or 0
    if device.type == "cuda":
        if index < torch.cuda.device_count() and torch.cuda.is_available():
            return device
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        problem = f"torch finds {found or 'no'} CUDA device{'s' if found > 1 else ''} here"
        raise RecipeError(f"device {name!r}: {problem}", hint="Use cpu.")
    usable = device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())
    if index or not usable:  # `meta`, say, holds no values
        raise RecipeError(f"device {name!r}: no such device", hint="Use cpu, cuda or cuda:1.")
    return device
