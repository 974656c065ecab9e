"""Makes the module `dense_models` importable, and saves its models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

sys.path.append(str(Path(__file__).parent))

from dense_models import make_model


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that saves a base and experts, and returns the pool's options."""

    def save_models(kind: str, experts: Sequence[int] = (1, 2)) -> dict[str, Any]:
        for seed in {0, *experts}:
            make_model(kind, seed).save_pretrained(tmp_path / f"{kind}-{seed}")
        models = {
            chr(ord("a") + n): str(tmp_path / f"{kind}-{seed}") for n, seed in enumerate(experts)
        }
        return {"name": "checkpoints", "base": str(tmp_path / f"{kind}-0"), "models": models}

    return save_models
