"""Torch devices by name."""

from __future__ import annotations

import platform
import re
from pathlib import Path

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


def name_processor(device: torch.device | None = None) -> str:
    """Return the model name of the CPU, or of a device that is a GPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return model[1] if model else platform.machine()
