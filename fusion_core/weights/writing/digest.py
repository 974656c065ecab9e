"""Digests of tensors, which identify a merge however it is stored.

BLAKE3 takes a fifth of the time of SHA-256, which would take as long as a whole linear merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from fusion_core.weights.reading.format import DTYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core.weights.source import TensorInfo


def bytes_digest(chunks: Iterable[memoryview]) -> str:
    """Return the BLAKE3 of the concatenated chunks."""
    digest = blake3()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, tuple[TensorInfo, str]]) -> str:
    """Return one BLAKE3 of all tensors, whatever files hold them.

    It covers one line per tensor, sorted by name: `name dtype shape blake3` and a newline, for
    example `head.bias F32 [10] 9f86…`.
    """
    digest = blake3()
    for name in sorted(tensors):
        info, tensor_digest = tensors[name]
        shape = ",".join(map(str, info.shape))
        digest.update(f"{name} {DTYPE_NAMES[info.dtype]} [{shape}] {tensor_digest}\n".encode())
    return digest.hexdigest()
