"""Results that several merges of the same weights have in common, cached between them.

A sweep merges the same models with many options, and most of its cost depends on few of them:
passes over the weights and singular components of matrices. Methods need not say which. The cache
identifies a result by everything it was computed from, and returns a copy.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from blake3 import blake3

from fusion_core.weights.source import view_bytes
from fusion_core.weights.state_dict import find_in_memory_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights.merging.piece import Operands

ResultT = TypeVar("ResultT")
Tensors = tuple[torch.Tensor, ...]

#: Larger results of passes, in bytes, are not cached. Thresholds and norms are smaller; samples are
#: larger.
_LARGEST_RESULT = 2**16


class ResultCache:
    """A cache of results that the merges within its `with` block share.

    It takes at most `limit` bytes of memory. Merges are the same with and without it. A process
    uses one at a time, and the other processes of an executor share nothing.
    """

    def __init__(self, limit: int) -> None:
        self._bytes_left = limit
        self._results: dict[bytes, object] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.remove(self)

    def get(self, key: bytes) -> object | None:
        """Return a cached result, or None."""
        return self._results.get(key)

    def add(self, key: bytes, result: object, size: int) -> None:
        """Cache a result of `size` bytes if it fits.

        Nothing is evicted for it: merges ask for all results in turns.
        """
        with self._lock:
            if key not in self._results and size <= self._bytes_left:
                self._bytes_left -= size
                self._results[key] = result


#: The caches whose `with` block runs; the last one is used. They belong to the process, since
#: workers are other threads.
_active: list[ResultCache] = []


def shared_pass(
    operands: Operands, function: tuple[object, ...], compute: Callable[[], ResultT]
) -> ResultT:
    """Return the result of a pass over operands, which `function` describes completely."""
    if not _active or any(map(find_in_memory_source, operands.sources)):
        return compute()
    cache = _active[-1]
    try:
        key = blake3(pickle.dumps((operands, function))).digest()
    except (pickle.PicklingError, TypeError, AttributeError):  # a lambda, say
        return compute()
    cached = cache.get(key)
    if isinstance(cached, bytes):
        copy: ResultT = pickle.loads(cached)  # noqa: S301 - our own
        return copy
    result = compute()
    pickled = pickle.dumps(result)
    if len(pickled) <= _LARGEST_RESULT:
        cache.add(key, pickled, len(pickled))
    return result


def shared_tensors(
    matrix: torch.Tensor, name: str, compute: Callable[[torch.Tensor], Tensors]
) -> Tensors:
    """Return what the function of this name computes of a matrix, identified by its values."""
    if not _active:
        return compute(matrix)
    cache = _active[-1]
    values = matrix.detach().cpu().contiguous()
    description = f"{name} {matrix.dtype} {[*matrix.shape]} {matrix.device}"
    key = blake3(view_bytes(values)).update(description.encode()).digest()
    cached = cache.get(key)
    if isinstance(cached, tuple):
        return tuple(tensor.to(matrix.device, copy=True) for tensor in cached)
    result = compute(matrix)
    copies = tuple(tensor.to("cpu", copy=True) for tensor in result)
    cache.add(key, copies, sum(tensor.nbytes for tensor in copies))
    return result
