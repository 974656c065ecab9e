"""State of long work on disk, in two generations so that one is always intact."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from fusion_core.files import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_TENSOR = "tensor as safetensors"


@dataclass(frozen=True)
class StateStore:
    """Saves and recalls the state of one piece of work; does nothing without a directory.

    A state that was saved under another `identity` is not recalled.
    """

    #: `RunContext.state`
    directory: Path | None
    #: the files are `<name>-a.json` and `<name>-b.json`
    name: str
    #: what the state depends on, as JSON: options, seed, names of experts and tasks
    identity: Mapping[str, Any]

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a state durably over the older generation; floats and tensors keep every bit.

        `state` is JSON that may hold tensors. `recall` returns these on the CPU.
        """
        if self.directory is None:
            return
        states = {name: self._read(name) for name in self._generations}
        steps = {
            name: -1 if saved is None else int(saved["step"]) for name, saved in states.items()
        }
        text = json.dumps({"identity": self.identity, "step": step, **state}, default=_encode)
        digest = hashlib.sha256(text.encode()).hexdigest()
        older = self.directory / min(steps, key=steps.__getitem__)
        write_durably(older, f"{digest}\n{text}".encode(), parents=True)

    def recall(self) -> dict[str, Any] | None:
        """Return the latest intact state of this work, or None."""
        states = [state for name in self._generations if (state := self._read(name)) is not None]
        return max(states, key=lambda state: int(state["step"]), default=None)

    @property
    def _generations(self) -> tuple[str, str]:
        return f"{self.name}-a.json", f"{self.name}-b.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read one generation; return None if it is missing, damaged or of other work."""
        path = None if self.directory is None else self.directory / name
        if path is None or not path.is_file():
            return None
        digest, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            return None
        state: dict[str, Any] = json.loads(text, object_hook=_decode)
        return state if state["identity"] == json.loads(json.dumps(self.identity)) else None


def _encode(value: torch.Tensor) -> dict[str, str]:
    content = save({"": value.detach().cpu().contiguous()})
    return {_TENSOR: base64.b64encode(content).decode()}


def _decode(value: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON, or a tensor
    return load(base64.b64decode(value[_TENSOR]))[""] if value.keys() == {_TENSOR} else value
