"""Named points in the writer at which a test can stop a run.

A test sets `listener` and, for example, kills the process at the k-th point, for every k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Called with the name of every fault point, on the thread that reaches it. Only tests set it.
listener: Callable[[str], object] | None = None


def fault_point(name: str) -> None:
    """Report that the writer has reached a fault point."""
    if listener is not None:
        listener(name)
