"""The weights of a repository whose only weights file is a pickle, `pytorch_model.bin`.

Only plain tensors are unpickled, from a memory map. No tensor may be larger than the file, because
a few kilobytes can otherwise claim terabytes. The caller decides which repositories may be read.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import hub
from fusion_core.errors import CheckpointError
from fusion_core.weights import Origin, TensorInfo, WeightSource, stamp_of

if TYPE_CHECKING:
    from pathlib import Path

PICKLE = "pytorch_model.bin"
#: In earlier versions, `weights_only` could be made to write outside its memory (CVE-2026-24747).
_SAFE_VERSION = (2, 10)


class PickleSource(WeightSource):
    """The tensors of a commit's `pytorch_model.bin`, which is downloaded at once.

    Raises `CheckpointError` for a file with anything but tensors, or with tensors larger than the
    file, and the errors of `hub.download_paths`.
    """

    def __init__(self, pinned: hub.Reference) -> None:
        self._pinned = pinned
        path = hub.download_paths(pinned, [PICKLE]) / PICKLE
        status = path.stat()
        how = "torch.load(weights_only=True, mmap=True)"
        self._origin = Origin(
            files={PICKLE: {"bytes": status.st_size, "pickle": how}},
            stamps={path: stamp_of(status)},
        )
        self._tensors = _load(path, self.describe())
        self.infos = {
            name: TensorInfo(name, tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return a view into the memory map."""
        return self._tensors[name].reshape(-1)[start:stop]

    def describe(self) -> str:
        """Return the repository at its commit, and the file."""
        return f"{self._pinned}: {PICKLE}"

    @property
    def origin(self) -> Origin:
        """The file, and how it is read. The download checked its digest against the hub's."""
        return self._origin

    def __getstate__(self) -> dict[str, Any]:
        return {"_pinned": self._pinned}  # a worker opens the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_pinned"])  # type: ignore[misc]


def _load(path: Path, label: str) -> dict[str, torch.Tensor]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_VERSION:
        raise CheckpointError(
            f"{label} is a pickle, which torch {torch.__version__} cannot read safely",
            hint="Upgrade torch to 2.10 or later.",
        )
    try:
        content = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.PickleError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{label} cannot be read as plain tensors: {reason}",
            hint="Convert it with transformers: from_pretrained, then save_pretrained(DIRECTORY).",
        ) from error
    return _check(content, path.stat().st_size, label)


def _check(content: object, size: int, label: str) -> dict[str, torch.Tensor]:
    """Return an unpickled state dict that fits into its file; raise `CheckpointError` otherwise."""
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{label} contains no state dict")
    for name, tensor in content.items():
        is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
        if not isinstance(name, str) or not is_plain:
            raise CheckpointError(f"{label}: expected a plain tensor: {name!r}")
        if not tensor.is_contiguous() or tensor.nbytes > size:
            raise CheckpointError(f"{label}: {name!r} claims more bytes than the file has")
    if sum(tensor.nbytes for tensor in content.values()) > 2 * size:  # tied weights count twice
        raise CheckpointError(f"{label} claims more bytes than the file has")
    return content
