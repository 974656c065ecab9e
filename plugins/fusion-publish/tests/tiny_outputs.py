"""Tiny models and merges, and their provenance as anybody can write it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from fusion_core import RunOptions, run_fusion

if TYPE_CHECKING:
    from pathlib import Path

BLANK = "0" * 64


def write_model(directory: Path, seed: int) -> Path:
    """Write a model with two equally shaped tensors."""
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir(parents=True)
    names = ("one.weight", "two.weight")
    tensors = {name: torch.randn(8, 4, generator=generator) for name in names}
    tensors["norm.bias"] = torch.randn(6, generator=generator)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text('{"model_type": "tiny", "layers": 2}')
    return directory


def write_statement(directory: Path, statement: dict[str, Any]) -> None:
    """Write a provenance with a valid checksum, as anybody can compute it."""
    statement["predicate"]["run"].pop("checksum", None)
    statement["predicate"]["run"]["checksum"] = BLANK
    text = json.dumps(statement, indent=2) + "\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    before, _, after = text.rpartition(BLANK)
    (directory / "provenance.json").write_text(before + checksum + after)


def read_statement(directory: Path) -> dict[str, Any]:
    """Read a provenance."""
    statement: dict[str, Any] = json.loads((directory / "provenance.json").read_text())
    return statement


def merge(models: dict[str, str], output: Path, **recipe: Any) -> Path:
    """Merge models into a directory with one tensor per file."""
    run_fusion(
        {"algorithm": "task-arithmetic", **recipe},
        model_pool={
            "name": "checkpoints",
            "base": models["base"],
            "models": {name: models[name] for name in ("a", "b")},
        },
        output={"path": str(output), "shard_size": 128},
        options=RunOptions(workers=1),
    )
    return output
