"""Named places in the writer at which a test can stop the world.

Nothing listens in production. A test replaces `listener` and, say, kills the process at the k-th
place, for every k: crashes are then tried one by one and not by luck.
"""

from __future__ import annotations


def nobody(place: str) -> None:
    """Listen to nothing."""
    del place


#: Called with the name of every place that is reached, on whichever thread reaches it.
listener = nobody


def fault_point(place: str) -> None:
    """Tell whoever listens that the writer has come to a place."""
    listener(place)
