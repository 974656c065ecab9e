"""The rank of this process among those that torchrun started.

An algorithm that shares out its work runs in all of them. Only the first writes the model,
evaluates it and prints. The module reads environment variables and needs no torch.
"""

import os


def is_helper_process() -> bool:
    """Tell whether this process is a helper: one of several, and not the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def local_gpu() -> int | None:
    """Return the number of the GPU that torchrun assigned to this process, None without one."""
    local_rank = os.environ.get("LOCAL_RANK")
    is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(local_rank) if local_rank and is_one_of_several else None
