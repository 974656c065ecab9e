"""Whether this process is one of several that torchrun started, and which.

An algorithm that shares its work out runs in all of them; the first one alone writes the model,
evaluates it and prints. Knows environment variables, no torch.
"""

import os


def helps() -> bool:
    """Tell whether this process only helps the first of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def own_gpu() -> int | None:
    """Return the number of the GPU that is this process's own, None where torchrun gave none."""
    given = os.environ.get("LOCAL_RANK")
    return int(given) if given and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
