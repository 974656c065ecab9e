"""The stages that scale task vectors, against loops over tensors in fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import merge

if TYPE_CHECKING:
    from fusion_core.weights import WeightSource

State = dict[str, torch.Tensor]

SHAPES = {"embedding": (7, 3), **{f"layers.{n}.w": (3, 4 + n) for n in range(6)}, "head": (5,)}
SUM = {"name": "task-arithmetic", "scale": 1.0}


def make_models(*, experts: int = 3, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def state(spread: float) -> State:
        return {
            name: spread * torch.randn(shape, generator=draw, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }

    base = state(1.0)
    changes = [state(0.1 * (number + 1)) for number in range(experts)]
    models = {f"e{n}": {k: base[k] + change[k] for k in base} for n, change in enumerate(changes)}
    return {"base": base, "models": models}


def task_vectors(models: dict[str, Any], name: str) -> list[torch.Tensor]:
    base = models["base"][name].double()
    return [model[name].double() - base for model in models["models"].values()]


def merged_vector(merged: WeightSource, models: dict[str, Any], name: str) -> torch.Tensor:
    return merged.tensor(name).double() - models["base"][name].double()


def concatenate(vectors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([vector.ravel() for vector in vectors])


def groups_of(scope: str) -> list[list[str]]:
    return [list(SHAPES)] if scope == "model" else [[name] for name in SHAPES]


def check_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_normalise_gives_all_experts_the_mean_norm(scope: str, seed: int) -> None:
    models = make_models(seed=seed)
    merged = merge([{"name": "normalise", "scope": scope}, SUM], models)
    for names in groups_of(scope):
        norms = [
            concatenate([task_vectors(models, name)[k] for name in names]).norm() for k in range(3)
        ]
        for name in names:
            vectors = zip(task_vectors(models, name), norms, strict=True)
            expected = sum(vector * sum(norms) / 3 / norm for vector, norm in vectors)
            check_close(merged_vector(merged, models, name), expected)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_rescale_norm_gives_a_merge_the_experts_mean_norm(scope: str, seed: int) -> None:
    models = make_models(seed=seed)
    merged = merge(["simple-average", {"name": "rescale-norm", "scope": scope}], models)
    for names in groups_of(scope):
        experts = [concatenate([task_vectors(models, name)[k] for name in names]) for k in range(3)]
        mean = sum(experts) / 3
        expected = mean * sum(expert.norm() for expert in experts) / 3 / mean.norm()
        check_close(concatenate([merged_vector(merged, models, name) for name in names]), expected)


def test_experts_that_did_not_move_stay_where_they_are() -> None:
    models = make_models()
    models["models"]["e0"] = models["base"]
    merged = merge(["normalise", "simple-average", "rescale-norm"], models)
    assert all(merged.tensor(name).isfinite().all() for name in SHAPES)
    models["models"] = {"e0": models["base"], "e1": models["base"]}
    for stages in (["normalise", SUM], [SUM, "rescale-norm"], [SUM, "lines"], ["metagpt"]):
        merged = merge(stages, models)
        assert all(torch.equal(merged.tensor(name), models["base"][name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [0.5, 0.5, 1, 1, 1.5, 1.5]),
        ({"scales": [0.2, 2]}, [0.2, 0.2, 0.2, 2, 2, 2]),
        ({"scales": [3]}, [3] * 6),
        ({"scales": [0, 1], "mode": "curve"}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ({"mode": "curve"}, [0.5, 0.7, 0.9, 1.1, 1.3, 1.5]),
    ],
)
def test_depth_scale_is_by_tiers_or_along_a_curve(
    options: dict[str, Any], factors: list[float]
) -> None:
    models = make_models()
    merged = merge([{"name": "depth-scale", **options}, SUM], models)
    named = {f"layers.{number}.w": factor for number, factor in enumerate(factors)}
    for name in SHAPES:
        check_close(
            merged_vector(merged, models, name),
            named.get(name, 1.0) * sum(task_vectors(models, name)),
        )


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_lines_starts_at_the_size_of_the_mean(seed: int, scale: float) -> None:
    """Alpha cancels the scale of a sum: the first layer gets the mean."""
    models = make_models(seed=seed)
    merged = merge([{**SUM, "scale": scale}, {"name": "lines", "beta": 0.7}], models)
    for name in SHAPES:
        depth = int(name.split(".")[1]) / 5 if name.startswith("layers") else 0.0
        factor = 1 / 3 / scale + 0.7 * depth
        check_close(
            merged_vector(merged, models, name), factor * scale * sum(task_vectors(models, name))
        )


def test_lines_measures_the_actual_merge() -> None:
    models = make_models()
    scaled = merge(["depth-scale", SUM], models)
    total = sum(float(sum(task_vectors(models, name)).abs().sum()) for name in SHAPES)
    left = sum(float(merged_vector(scaled, models, name).abs().sum()) for name in SHAPES)
    merged = merge(["depth-scale", SUM, {"name": "lines", "beta": 0}], models)
    for name in SHAPES:
        expected = total / left / 3 * merged_vector(scaled, models, name)
        check_close(merged_vector(merged, models, name), expected)


def test_lines_scales_one_expert_with_an_alpha() -> None:
    models = make_models(experts=1)
    merged = merge([SUM, {"name": "lines", "alpha": 0.2, "beta": 0.8}], models)
    check_close(merged_vector(merged, models, "layers.5.w"), task_vectors(models, "layers.5.w")[0])
    check_close(merged_vector(merged, models, "head"), 0.2 * task_vectors(models, "head")[0])
