"""Digests of tensors: what a merge is recognised by, however it is stored.

BLAKE3 takes a fifth of the time of SHA-256, which is that of the whole of a linear merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from fusion_core.weights.reading.format import DTYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core.weights.source import TensorInfo


def bytes_digest(chunks: Iterable[memoryview]) -> str:
    """Hash what comes in chunks, however it is cut."""
    digest = blake3()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, tuple[TensorInfo, str]]) -> str:
    """Return one BLAKE3 for all tensors: of a line each, in order, whatever file each lies in.

    A line is `name dtype shape blake3`, e.g. `head.bias F32 [10] 9f86…`, and ends with a newline.
    """
    digest = blake3()
    for name in sorted(tensors):
        info, of_tensor = tensors[name]
        shape = ",".join(map(str, info.shape))
        digest.update(f"{name} {DTYPE_NAMES[info.dtype]} [{shape}] {of_tensor}\n".encode())
    return digest.hexdigest()
