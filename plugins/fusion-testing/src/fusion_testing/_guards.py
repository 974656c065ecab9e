"""What a component must leave alone: the process's global state, its inputs, the network."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.weights.source import view_bytes
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn


@contextmanager
def untouched_globals(what: str) -> Iterator[None]:
    """Fail if what runs inside changes the state that it shares with the rest of the process."""
    _draw()
    before = _global_state()
    yield
    after = _global_state()
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        fail(
            f"{what} changed global state of the process: {', '.join(changed)}.",
            "Draw random numbers from piece.uniform or from a torch.Generator of your own that is "
            "seeded with context.seed; put back whatever else you set.",
        )


def _draw() -> None:
    """Take every generator to where no seed puts it, so that one that is set anew is seen."""
    torch.rand(1)
    random.random()  # noqa: S311 - no secret
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.random()


def _global_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "Python's random numbers": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "the working directory": Path.cwd(),
        "environment variables": dict(os.environ),
        "the module search path": list(sys.path),
    }
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy's random numbers"] = (kind, keys.tobytes(), *rest)
    return state


@contextmanager
def untouched_modules(what: str, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Fail if what runs inside changes live models: values, gradients or modes."""
    before = {name: _fingerprint(each) for name, each in modules.items()}
    yield
    for name, module in modules.items():
        after = _fingerprint(module)
        changed = [part for part, value in before[name].items() if after.get(part) != value]
        if changed:
            fail(
                f"{what} changed the model {name!r}: {', '.join(changed[:3])}.",
                "Work on copies: what pool.build returns is yours, tensors that a source returns "
                "are not (they may share memory with the user's model).",
            )


def _fingerprint(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"the values of {name}": digest(tensor) for name, tensor in module.state_dict().items()
    }
    for name, parameter in module.named_parameters():
        found[f"requires_grad of {name}"] = parameter.requires_grad
        gradient = parameter.grad
        found[f"the gradient of {name}"] = None if gradient is None else digest(gradient)
    for name, part in module.named_modules():
        found[f"the training mode of {name or 'the model'}"] = part.training
    return found


def digest(*tensors: Tensor) -> str:
    """Hash the dtypes, shapes and values of tensors of any layout."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        state.update(view_bytes(tensor.detach().cpu().contiguous().reshape(-1)))
    return state.hexdigest()


@contextmanager
def no_network(what: str) -> Iterator[None]:
    """Fail if what runs inside opens a connection: its spec says that it works offline."""

    def refuse(*_: object, **__: object) -> None:
        fail(
            f"{what} opened a network connection, and its spec says offline=True.",
            "Bring the data along, or leave `offline` out of the spec.",
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        yield
