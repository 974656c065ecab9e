"""The memory that is available for a whole model."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

#: Linux's report of its memory, and the memory limit of a container.
_MEMINFO, _LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def available_bytes(device: torch.device) -> int:
    """Return the number of bytes available on a device, as far as the system reports it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if _MEMINFO.is_file() and (
        match := re.search(r"MemAvailable: +(\d+) kB", _MEMINFO.read_text())
    ):
        limits.append(int(match[1]) * 1024)
    if _LIMIT.is_file() and (text := _LIMIT.read_text().strip()) != "max":
        limits.append(int(text))
    return min(limits)
