"""SMILE: routers of low-rank experts, saved next to the weights and added to live models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion_core import RunOptions, build_for_task, load_for_task, plan, run_fusion
from fusion_core.errors import CheckpointError, FusionError, RecipeError, WeightsError
from fusion_core.weights import CheckpointSource
from fusion_moe.routers import FILE, add_routers
from fusion_moe.smile import Smile
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import RunResult

State = dict[str, torch.Tensor]


def random_models(*names: str) -> dict[str, nn.Sequential]:
    """Return models of two linear layers, the first without a bias, and a norm."""
    models = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        layers = (nn.Linear(6, 5, bias=False), nn.LayerNorm(5), nn.Linear(5, 4))
        models[name] = nn.Sequential(*layers).double().requires_grad_(False)
        nn.init.normal_(models[name][1].weight)
    return models


def merged(models: Mapping[str, nn.Module], **options: Any) -> RunResult:
    base, *experts = models
    pool = {"base": models[base], "models": {name: models[name] for name in experts}}
    return run_fusion(algorithm=Smile(**options), model_pool=pool)


def routed(
    layer: nn.Linear, experts: list[nn.Linear], numbers: tuple[int, int, int], row: torch.Tensor
) -> torch.Tensor:
    """Return a layer's output for one input by the paper's formulas, with LAPACK's SVD."""
    rank, gates, top = numbers
    parts, scores = [], []
    for expert in experts:
        left, values, right = torch.linalg.svd(expert.weight - layer.weight, full_matrices=False)
        parts.append((left[:, :rank] * values[:rank]) @ (right[:rank] @ row))
        if layer.bias is not None:
            parts[-1] = parts[-1] + expert.bias - layer.bias
        scores.append((right[:gates] @ row).norm())
    weights = torch.stack(scores).softmax(0)
    chosen = weights.argsort(descending=True)[:top]
    shares = weights[chosen] / weights[chosen].sum()
    return layer(row) + sum(share * parts[n] for share, n in zip(shares, chosen, strict=True))


@pytest.mark.parametrize(("rank", "gates", "top"), [(2, 1, 1), (3, 3, 2), (4, None, 3)])
def test_live_merge_computes_the_formulas(rank: int, gates: int | None, top: int) -> None:
    base, *experts = (models := random_models("base", "a", "b", "c")).values()
    options = {"rank": rank, "gate_rank": gates, "experts_per_token": top}
    live = merged(models, **options).model
    inputs = torch.randn(7, 2, 6, dtype=torch.float64)
    norm = nn.LayerNorm(5, dtype=torch.float64)
    for name in ("weight", "bias"):
        mean = torch.stack([getattr(expert[1], name) for expert in experts]).mean(0)
        getattr(norm, name).data.copy_(mean)
    numbers = (rank, rank if gates is None else gates, top)
    for row, output in zip(inputs.flatten(0, 1), live(inputs).flatten(0, 1), strict=True):
        hidden = norm(routed(base[0], [one[0] for one in experts], numbers, row))
        expected = routed(base[2], [one[2] for one in experts], numbers, hidden)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


def test_routers_move_with_the_model_and_are_no_part_of_its_state() -> None:
    models = random_models("base", "a", "b")
    result = merged(models, rank=2)
    live = result.model.to(torch.bfloat16)
    assert live(torch.randn(5, 6, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert live.state_dict().keys() == models["base"].state_dict().keys()


def test_copies_of_one_expert_compute_what_it_computes() -> None:
    models = random_models("base", "a")
    result = merged({**models, "b": models["a"]}, rank=6)
    inputs = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(result.model(inputs), models["a"](inputs), rtol=1e-9, atol=1e-9)


def test_layers_that_no_expert_changes_have_no_router() -> None:
    models = random_models("base", "a", "b")
    for name in ("a", "b"):
        models[name][2].load_state_dict(models["base"][2].state_dict())
    stored: Any = merged(models).side_files[FILE]
    assert {key.rpartition("/")[0] for key in stored.infos if "/" in key} == {"0"}


def test_layers_that_are_not_called_are_averaged() -> None:
    models = {}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        models[name] = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0).eval()
    result = merged(models, rank=8)
    stored: Any = result.side_files[FILE]
    assert {key.rpartition("/")[0] for key in stored.infos if "/" in key} == {"linear1", "linear2"}
    mean = (models["a"].self_attn.out_proj.weight + models["b"].self_attn.out_proj.weight) / 2
    torch.testing.assert_close(result.model.self_attn.out_proj.weight, mean)
    with torch.no_grad():
        inputs = torch.randn(5, 1, 8)
        assert not torch.allclose(result.model(inputs), result.pool.build(result.weights)(inputs))


def test_output_is_measured_and_loaded_with_its_routers(tmp_path: Path) -> None:
    pool, out = tiny_pool("mlp", experts=2), tmp_path / "out"
    options = {"model_pool": pool, "task_pool": TinyTasks(("a", "b"))}
    in_memory = run_fusion(algorithm=Smile(rank=3), **options)
    result = run_fusion(algorithm=Smile(rank=3), **options, output=out)
    assert result.report.tasks == in_memory.report.tasks
    assert not result.report.needs_task
    bare = pool.build(CheckpointSource(out))
    inputs = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        plain = bare(inputs)
        expected = result.model(inputs)
        assert not torch.allclose(expected, plain)
        torch.testing.assert_close(build_for_task(out, pool=pool)(inputs), expected)
        torch.testing.assert_close(add_routers(bare, out)(inputs), expected)
    assert result.report.tasks["a"] == options["task_pool"]["a"].evaluate(result.model)
    with pytest.raises(RecipeError, match="which weights alone cannot express"):
        load_for_task(out, "a")


def change(stored: State, name: str) -> State:
    changed = {
        "a missing tensor": {key: value for key, value in stored.items() if key != "1/up"},
        "another width": {**stored, "1/down": stored["1/down"][:, :, :-1].contiguous()},
        "another rank": {**stored, "1/up": stored["1/up"][:, :, :-1].contiguous()},
        "an unknown module": {key.replace("1/", "head/"): value for key, value in stored.items()},
        "no experts": {**stored, "experts_per_token": torch.tensor(0)},
        "nothing": {"x": torch.ones(1)},
    }
    return changed[name]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a missing tensor", "expected the tensors down, up, bias"),
        ("another width", "the router for 1 does not fit the module's weight"),
        ("another rank", "the shapes of 1 do not fit each other"),
        ("an unknown module", "a router for head, a module that the model lacks"),
        ("no experts", "the shapes of .* do not fit each other"),
        ("nothing", "expected the tensors down, up, bias"),
    ],
)
def test_other_routers_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    pool, out = tiny_pool("mlp", experts=2), tmp_path / "out"
    run_fusion(algorithm=Smile(rank=3), model_pool=pool, output=out)
    save_file(change(load_file(out / FILE), kind), out / FILE)
    with pytest.raises(CheckpointError, match=message):
        add_routers(pool.build(CheckpointSource(out)), out)


def test_models_that_are_not_finite_are_named() -> None:
    models = random_models("base", "a", "b")
    models["b"][2].bias[1] = torch.nan
    with pytest.raises(
        WeightsError, match=r"expert b: NaN or infinity in '2\.weight' or '2\.bias'"
    ):
        merged(models)


def test_more_experts_per_token_than_experts_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.experts_per_token: 3 of 2 experts"):
        merged(random_models("base", "a", "b"), experts_per_token=3)
    with pytest.raises(RecipeError, match="expected a gate_rank of at most rank, 2"):
        Smile(rank=2, gate_rank=3)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"algorithm": ["smile", "svc"]}, "smile adds modules to live models, and svc sees only"),
        ({"algorithm": ["core-space", "smile"]}, "core-space changes coordinates"),
        (
            {"algorithm": {"name": "smile", "overrides": {"match": "*", "rank": 8}}},
            "algorithm.overrides: smile makes one file for the whole model",
        ),
        ({"algorithm": "smile", "output": {"adapter": 4}}, "output.adapter: smile adds modules"),
    ],
)
def test_plans_that_lose_the_routers_are_refused(recipe: dict[str, Any], message: str) -> None:
    models = random_models("base", "a", "b")
    pool = {"base": models.pop("base"), "models": models}
    with pytest.raises(RecipeError, match=message):
        plan({"model_pool": pool, **recipe}, RunOptions())


def test_a_pool_that_builds_no_models_is_refused() -> None:
    states = {name: model.state_dict() for name, model in random_models("base", "a", "b").items()}
    pool = {"base": states.pop("base"), "models": states}
    with pytest.raises(FusionError, match="does not know the class of its models"):
        plan({"model_pool": pool, "algorithm": "smile"}, RunOptions())


def test_a_result_with_routers_is_no_model_of_another_merge(tmp_path: Path) -> None:
    paths = {}
    for name, model in random_models("base", "a", "b").items():
        paths[name] = str(tmp_path / f"{name}.safetensors")
        save_file(model.state_dict(), paths[name])
    base = paths.pop("base")
    inner = {"algorithm": "smile", "model_pool": {"base": base, "models": paths}}
    recipe = {
        "algorithm": "ties",
        "model_pool": {"name": "checkpoints", "base": base, "models": {"c": inner}},
    }
    with pytest.raises(RecipeError, match="its result cannot be merged again"):
        plan(recipe, RunOptions())
