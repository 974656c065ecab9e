"""`fuse check`, runs and the provenance name tensors that a method does not apply to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_adamerging.adamerging import AdaMerging
from fusion_core import TensorInfo
from fusion_core.commands import read_provenance
from fusion_core.planning.plan import plan
from fusion_core.planning.run_options import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.plugins

SHAPES = {"relative.table": (4, 6, 5), "q.weight": (30, 20), "norm.weight": (5,), "steps": ()}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "x", "y"):
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
        save_file(tensors | {"steps": torch.tensor(1)}, tmp_path / f"{name}.safetensors")
    experts = {name: str(tmp_path / f"{name}.safetensors") for name in ("x", "y")}
    return {"name": "checkpoints", "base": str(tmp_path / "base.safetensors"), "models": experts}


@pytest.mark.parametrize(
    "name",
    ["tsv-m", "iso-c", "iso-cts", "star", "ace", "cart", "doge", "knots", "orthomerge", "resmerge"],
)
def test_methods_for_matrices_report_other_tensors(name: str, models: Any) -> None:
    planned = plan({"algorithm": name, "model_pool": models}, RunOptions())
    (fallback,) = planned.fallbacks
    assert (fallback.stage, fallback.tensors, fallback.example) == (name, 2, "relative.table")
    assert fallback.share == pytest.approx(125 / 725)
    assert [warning for warning in planned.warnings if f"{name} does not apply" in warning]


def test_methods_for_entries_apply_to_every_tensor(models: Any) -> None:
    assert plan({"algorithm": "ties", "model_pool": models}, RunOptions()).fallbacks == ()


def test_fallbacks_are_reported_per_stage(
    models: Any, run_fuse: Callable[..., Any], tmp_path: Path
) -> None:
    stages = [{"name": "orthogonalise", "skip": "relative.*"}, "task-arithmetic", "svc"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"algorithm": stages, "model_pool": models}))
    process = run_fuse("run", str(recipe), "-o", str(tmp_path / "out"))
    fallbacks = read_provenance(tmp_path / "out").fallbacks
    assert [(entry["stage"], entry["tensors"]) for entry in fallbacks] == [
        ("orthogonalise", 1),
        ("svc", 2),
    ]
    assert "orthogonalise does not apply to 1 tensor (0.69 % of the parameters" in process.stderr
    assert "warning: svc does not apply to 2 tensors (17 % of the parameters" in process.stderr


@pytest.mark.parametrize(
    ("granularity", "without"),
    [
        ("layer", []),
        ("row", ["norm"]),
        ("row+column", ["packed", "norm"]),
        ("rank", ["packed", "norm"]),
    ],
)
def test_finer_coefficients_report_tensors_without_them(
    granularity: Any, without: list[str]
) -> None:
    shapes = {"packed": (4, 6, 5), "matrix": (6, 5), "norm": (5,)}
    infos = [TensorInfo(name, shape, torch.float32) for name, shape in shapes.items()]
    method = AdaMerging(granularity=granularity)
    assert [info.name for info in infos if method.fallback(info) is not None] == without
