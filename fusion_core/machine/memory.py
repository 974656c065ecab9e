"""How much memory this process takes."""

from __future__ import annotations

import sys


def peak_memory() -> int:
    """Return the most that this process has taken so far, in bytes, a GPU's memory left out."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts kilobytes
    return peak if sys.platform == "darwin" else 1024 * peak
