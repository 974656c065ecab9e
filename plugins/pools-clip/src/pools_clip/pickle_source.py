"""The weights of a repository that has nothing but a pickle, `pytorch_model.bin`.

Only plain tensors are unpickled, from a memory map, and none may claim more than the file holds:
a few kilobytes can otherwise stand for terabytes. Which repositories may be read so is decided by
who calls.
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
#: Before this, `weights_only` could be made to write outside its memory (CVE-2026-24747).
_SAFE = (2, 10)


class PickledSource(WeightSource):
    """The tensors of a commit's `pytorch_model.bin`; downloaded at once, for it has no header.

    Raises `CheckpointError` for a file that holds anything but tensors, or tensors that are larger
    than it, and what `hub.files` raises.
    """

    def __init__(self, pinned: hub.Reference) -> None:
        self._pinned = pinned
        path = hub.files(pinned, [PICKLE]) / PICKLE
        status = path.stat()
        how = "torch.load(weights_only=True, mmap=True)"
        self._origin = Origin(
            files={PICKLE: {"bytes": status.st_size, "pickle": how}},
            stamps={path: stamp_of(status)},
        )
        self._tensors = _loaded(path, self.describe())
        self.infos = {
            name: TensorInfo(name, tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return a view into the memory map."""
        return self._tensors[name].reshape(-1)[start:stop]

    def describe(self) -> str:
        """Return the repository at its commit, and that it is a pickle."""
        return f"{self._pinned}: {PICKLE}"

    @property
    def origin(self) -> Origin:
        """The file, and how it is read; its hash was the hub's when it arrived."""
        return self._origin

    def __getstate__(self) -> dict[str, Any]:
        return {"_pinned": self._pinned}  # a worker opens the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_pinned"])  # type: ignore[misc]


def _loaded(path: Path, label: str) -> dict[str, torch.Tensor]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE:
        raise CheckpointError(
            f"{label} is a pickle, which torch {torch.__version__} does not read safely",
            hint="Upgrade torch to 2.10 or later.",
        )
    try:
        found = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.PickleError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{label} cannot be read as plain tensors: {reason}",
            hint="Convert it with transformers: from_pretrained, then save_pretrained(DIRECTORY).",
        ) from error
    return _checked(found, path.stat().st_size, label)


def _checked(found: object, size: int, label: str) -> dict[str, torch.Tensor]:
    """Return what was unpickled if it is a state dict that fits into the file."""
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{label} holds no state dict")
    for name, tensor in found.items():
        plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise CheckpointError(f"{label}: {name!r} is not a plain tensor")
        if not tensor.is_contiguous() or tensor.nbytes > size:
            raise CheckpointError(f"{label}: {name!r} claims more than the file holds")
    if sum(tensor.nbytes for tensor in found.values()) > 2 * size:  # tied weights count twice
        raise CheckpointError(f"{label} claims more than the file holds")
    return found
