"""Torch devices by name."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from fusion_core.errors import RecipeError
from fusion_core.machine.ranks import local_gpu

#: Environment variables that choose the kernels of MKL and oneDNN.
_LIMITS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


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
    """Name the CPU, or a device that is a GPU.

    Which kernels torch and its libraries choose depends on the CPU, and matrix products round
    differently in each. Virtual machines give all CPUs of a maker one name. So the family, the
    model, torch's instructions and the variables that limit the libraries follow.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    parts = [*_name_cpu(), torch.backends.cpu.get_cpu_capability()]
    parts += [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return ", ".join(parts)


def _name_cpu() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return [platform.processor() or platform.machine()]
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", text, re.MULTILINE))
    name = fields.pop("model name", platform.machine())
    return [name, *(f"{field.removeprefix('cpu ')} {fields[field]}" for field in sorted(fields))]
