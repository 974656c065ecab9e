"""What merges take from the factors of adapters without reading tensors."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import (
    ComponentConfig,
    RunOptions,
    Transform,
    check,
    merge,
    plan,
    run_fusion,
)
from fusion_core.errors import RecipeError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.weights import Piece

pytestmark = pytest.mark.plugins

SHAPES = {"embed.weight": (9, 6), "layer.weight": (8, 6), "layer.bias": (8,)}
SUM = {"name": "task-arithmetic", "scale": 1.0}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_base(path: Path, seed: int) -> str:
    path.mkdir()
    tensors = {name: draw(seed, *shape) for name, shape in SHAPES.items()}
    save_file(tensors, path / "model.safetensors")
    return str(path)


def write_adapter(path: Path, seed: int, module: str = "layer") -> str:
    """Write an adapter of rank 2 that changes the weight of one module."""
    path.mkdir()
    factors = {"lora_A": draw(seed, 2, 6), "lora_B": draw(seed + 1, 8, 2)}
    named = {f"base_model.model.{module}.{part}.weight": value for part, value in factors.items()}
    save_file(named, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Any]:
    """Return a pool of a base and two adapters."""
    models = {name: write_adapter(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 3))}
    return {"base": write_base(tmp_path / "base", 5), "models": models}


@pytest.fixture
def nested(pool: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return the pool with a recipe in place of `a`: its adapter on another base."""
    inner = {"base": write_base(tmp_path / "other", 7), "models": {"a": pool["models"]["a"]}}
    recipe = {"algorithm": SUM, "model_pool": inner}
    return {**pool, "models": {**pool["models"], "a": recipe}}


@pytest.mark.parametrize(
    "algorithm", ["tsv-m", ["core-space", SUM], ["orthogonalise", SUM]], ids=str
)
def test_a_recipe_among_the_experts_may_have_another_base(
    algorithm: Any, nested: dict[str, Any], tmp_path: Path
) -> None:
    run_fusion(nested["models"]["a"], output=tmp_path / "inner")
    written = {**nested, "models": {**nested["models"], "a": str(tmp_path / "inner")}}
    expected = merge(algorithm, written).state_dict()
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert not torch.equal(expected["embed.weight"], base["embed.weight"])
    for name, values in merge(algorithm, nested).state_dict().items():
        torch.testing.assert_close(values, expected[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_of_a_recipe_with_another_base_needs_a_rank(
    nested: dict[str, Any], tmp_path: Path
) -> None:
    output = {"path": str(tmp_path / "out"), "adapter": {}}
    with pytest.raises(
        RecipeError, match="rank: required, because a is a full model, without factors"
    ):
        run_fusion(algorithm=SUM, model_pool=nested, output=output)


class Counted(Transform[ComponentConfig]):
    """Returns task vectors, and counts the elements that it was asked for."""

    config_class = ComponentConfig
    asked: ClassVar[Counter[str]] = Counter()

    def rows(self, piece: Piece) -> torch.Tensor:
        self.asked[piece.info.name] += piece.base.numel()
        return piece.task_vectors


@pytest.mark.parametrize("algorithm", [SUM, "magmax"], ids=str)
def test_transforms_are_not_asked_for_what_no_adapter_changes(
    algorithm: Any, pool: dict[str, Any], tmp_path: Path
) -> None:
    Counted.asked.clear()
    merged = merge([Counted(), algorithm], pool).state_dict()
    assert Counted.asked == {"layer.weight": 48}
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name, values in merged.items():
        assert torch.equal(values, base[name]) == (name != "layer.weight")


@pytest.mark.parametrize(("algorithm", "largest"), [("tsv-m", "layer"), ("magmax", "embed")])
def test_a_check_does_not_count_transforms_of_what_no_adapter_changes(
    algorithm: str, largest: str, pool: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {"algorithm": algorithm, "model_pool": pool, "output": {"path": str(tmp_path / "out")}}
    memory = check(plan(recipe, RunOptions())).memory
    assert f"elements of '{largest}.weight'" in memory.how


def test_a_stack_of_adapters_has_names_that_they_lack(tmp_path: Path) -> None:
    base = {f"model.layers.{layer}.layer.weight": draw(layer, 8, 6) for layer in range(2)}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    adapter = write_adapter(tmp_path / "a", 1, module="model.layers.1.layer")
    slices = [{"model": "a", "layers": [0, 2]}, {"model": "a", "layers": [1, 2]}]
    recipe = {
        "algorithm": {"name": "stack", "slices": slices},
        "model_pool": {"base": str(tmp_path / "base"), "models": {"a": adapter}},
        "output": {"path": str(tmp_path / "out")},
    }
    assert check(plan(recipe, RunOptions())).memory.merge > 0
    merged = run_fusion(recipe).weights
    added = merged.tensor("model.layers.2.layer.weight")
    assert torch.equal(added, merged.tensor("model.layers.1.layer.weight"))
    assert not torch.equal(added, base["model.layers.1.layer.weight"])


@pytest.mark.parametrize("algorithm", [SUM, "magmax"], ids=str)
def test_what_is_copied_from_the_base_is_checked(
    algorithm: Any, pool: dict[str, Any], tmp_path: Path
) -> None:
    base = load_file(tmp_path / "base" / "model.safetensors")
    base["layer.bias"][3] = torch.nan
    save_file(base, tmp_path / "base" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"base: tensor 'layer\.bias' holds 1 values that are"):
        run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
