"""What several merges of the same weights compute alike, kept in memory from one to the next.

A sweep merges the same models at many options, and most of what it costs depends on few of them:
what a pass over the weights finds, the singular components of a matrix. No method has to say on
which. A result is known by what it was computed from, and returned as a copy.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from blake3 import blake3

from fusion_core.weights.source import memory_of
from fusion_core.weights.state_dict import held_in_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights.merging.piece import Operands

FoundT = TypeVar("FoundT")
Tensors = tuple[torch.Tensor, ...]

#: Bytes of what a pass may find to be kept; thresholds and norms are smaller, samples larger.
_SMALL = 2**16


class Shared:
    """What merges within a `with` of it keep of the weights for one another, and for the next one.

    It takes `limit` bytes of memory at most. Merges are the same with and without it. One at a time
    is in use in a process, and executors' other processes share nothing.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._found: dict[bytes, object] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        _in_use.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _in_use.remove(self)

    def get(self, key: bytes) -> object | None:
        """Return a result that was kept."""
        return self._found.get(key)

    def keep(self, key: bytes, found: object, size: int) -> None:
        """Keep a result; what no longer fits is not kept, since all are asked for in turns."""
        with self._lock:
            if key not in self._found and size <= self._left:
                self._left -= size
                self._found[key] = found


#: The last one counts; of the whole process, since workers are other threads.
_in_use: list[Shared] = []


def shared_pass(
    operands: Operands, function: tuple[object, ...], compute: Callable[[], FoundT]
) -> FoundT:
    """Return what a pass over operands finds, which `function` and they say in full."""
    if not _in_use or any(map(held_in_memory, operands.sources)):
        return compute()
    shared = _in_use[-1]
    try:
        key = blake3(pickle.dumps((operands, function))).digest()
    except (pickle.PicklingError, TypeError, AttributeError):  # a lambda, say
        return compute()
    known = shared.get(key)
    if isinstance(known, bytes):
        found: FoundT = pickle.loads(known)  # noqa: S301 - our own
        return found
    found = compute()
    pickled = pickle.dumps(found)
    if len(pickled) <= _SMALL:
        shared.keep(key, pickled, len(pickled))
    return found


def shared_tensors(
    matrix: torch.Tensor, name: str, compute: Callable[[torch.Tensor], Tensors]
) -> Tensors:
    """Return what a function of this name makes of a matrix, known by its values."""
    if not _in_use:
        return compute(matrix)
    shared = _in_use[-1]
    values = matrix.detach().cpu().contiguous()
    about = f"{name} {matrix.dtype} {[*matrix.shape]} {matrix.device}"
    key = blake3(memory_of(values)).update(about.encode()).digest()
    known = shared.get(key)
    if isinstance(known, tuple):
        return tuple(each.to(matrix.device, copy=True) for each in known)
    found = compute(matrix)
    kept = tuple(each.to("cpu", copy=True) for each in found)
    shared.keep(key, kept, sum(each.nbytes for each in kept))
    return found
