"""A stranger's method: built as a wheel, installed with pip, and used like the ones in the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable

FUSE = Path(sys.executable).with_name("fuse")

FILES = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-drop"
version = "1.2.3"
description = "Dropping small changes"
dependencies = ["fusion-core>=0.1,<0.2"]

[project.entry-points."fusion_core.plugins"]
acme = "acme_drop.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/acme_drop"]
""",
    "src/acme_drop/__init__.py": "",
    "src/acme_drop/plugin.py": """
from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms():
    yield AlgorithmSpec(
        name="drop-and-average",
        summary="Average of the task vectors' entries above a magnitude.",
        target="acme_drop.algorithm:DropAndAverage",
        config="acme_drop.config:DropConfig",
        needs_base=True,
    )
""",
    "src/acme_drop/config.py": """
from fusion_core import ComponentConfig


class DropConfig(ComponentConfig):
    floor: float = 0.05
    \"\"\"Entries of a task vector that are smaller than this are dropped.\"\"\"
""",
    "src/acme_drop/algorithm.py": """
from acme_drop.config import DropConfig
from fusion_core import TensorwiseAlgorithm


class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
    config_class = DropConfig

    def merge(self, piece):
        deltas = piece.task_vectors
        return piece.base + deltas.where(deltas.abs() > self.config.floor, 0).mean(dim=0)
""",
}


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory,
    build_wheels: Callable[..., Path],
    install_wheels: Callable[..., None],
) -> Path:
    """A directory that pip installed the plugin's wheel into."""
    root = tmp_path_factory.mktemp("acme")
    (wheel,) = build_wheels(root, files=FILES).iterdir()
    install_wheels(root / "site", wheel)
    return root / "site"


@pytest.fixture
def fuse(installed: Path, tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [FUSE, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_is_listed_with_its_version(fuse: Callable[..., str]) -> None:
    rows = {row["name"]: row for row in json.loads(fuse("list-plugins", "--json"))}
    assert rows["acme-drop"]["status"] == "loaded"
    assert rows["acme-drop"]["version"] == "1.2.3"
    assert rows["acme-drop"]["components"] == [{"kind": "algorithm", "name": "drop-and-average"}]


def test_its_options_are_described(fuse: Callable[..., str]) -> None:
    assert "floor" in fuse("info", "drop-and-average")
    assert "floor" in fuse("run", "--algo", "acme-drop/drop-and-average", "--help")


def test_it_merges_and_is_recorded(fuse: Callable[..., str], tmp_path: Path) -> None:
    base = {"weight": torch.zeros(2, 2)}
    save_file(base, tmp_path / "base.safetensors")
    for name, values in {"x": [0.1, 0.2, 0.01, 0.0], "y": [0.3, -0.01, 0.02, 0.0]}.items():
        save_file({"weight": torch.tensor(values).reshape(2, 2)}, tmp_path / f"{name}.safetensors")
    models = ("--set", "model_pool.models=[x.safetensors, y.safetensors]")
    where = ("--pool", "checkpoints", "--set", "model_pool.base=base.safetensors", *models)
    fuse("run", "--algo", "drop-and-average", *where, "-o", "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["weight"]
    torch.testing.assert_close(merged, torch.tensor([[0.2, 0.1], [0.0, 0.0]]))
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert provenance["plugins"]["acme-drop"] == "1.2.3"
