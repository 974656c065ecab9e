"""Guards that fail if a component changes global state or its inputs, or uses the network."""

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
    """Fail if the block changes global state of the process."""
    # Move every generator away from freshly seeded states, so that seeding one is noticed.
    torch.rand(1)
    random.random()  # noqa: S311 - not a secret
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.random()
    before = _global_state()
    yield
    after = _global_state()
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        fail(
            f"{what} changed global state: {', '.join(changed)}.",
            "Draw random numbers from piece.uniform, or from a new torch.Generator seeded with "
            "context.seed. Restore all other global settings after use.",
        )


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
    """Fail if the block changes values, gradients or modes of live models."""
    before = {name: _fingerprint(module) for name, module in modules.items()}
    yield
    for name, module in modules.items():
        after = _fingerprint(module)
        changed = [part for part, value in before[name].items() if after.get(part) != value]
        if changed:
            fail(
                f"{what} changed the model {name!r}: {', '.join(changed[:3])}.",
                "Change only copies. Models that pool.build returns are copies; tensors of a "
                "source may share memory with the user's model.",
            )


def _fingerprint(module: nn.Module) -> dict[str, Any]:
    fingerprint: dict[str, Any] = {
        f"the values of {name}": digest(tensor) for name, tensor in module.state_dict().items()
    }
    for name, parameter in module.named_parameters():
        fingerprint[f"requires_grad of {name}"] = parameter.requires_grad
        gradient = parameter.grad
        fingerprint[f"the gradient of {name}"] = None if gradient is None else digest(gradient)
    for name, part in module.named_modules():
        fingerprint[f"the training mode of {name or 'the model'}"] = part.training
    return fingerprint


def digest(*tensors: Tensor) -> str:
    """Hash the dtypes, shapes and values of tensors of any layout."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        state.update(view_bytes(tensor.detach().cpu().contiguous().reshape(-1)))
    return state.hexdigest()


@contextmanager
def no_network(what: str) -> Iterator[None]:
    """Fail if the block opens a network connection, for components declared `offline`."""

    def refuse(*_: object, **__: object) -> None:
        fail(
            f"{what} opened a network connection, but its spec says offline=True.",
            "Ship the data with the package, or remove `offline` from the spec.",
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        yield
