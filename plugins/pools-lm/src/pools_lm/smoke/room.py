"""How large a model may be here: a merge is streamed, and what is asked has to be in memory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The system's own account of its memory, and the limit of a container.
_MEMINFO, _LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def room_on(device: torch.device) -> int:
    """Return how many bytes are to be had on a device, as far as can be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits()])


def _limits() -> Iterator[int]:
    if _MEMINFO.is_file() and (
        found := re.search(r"MemAvailable: +(\d+) kB", _MEMINFO.read_text())
    ):
        yield int(found[1]) * 1024
    if _LIMIT.is_file() and (text := _LIMIT.read_text().strip()) != "max":
        yield int(text)
