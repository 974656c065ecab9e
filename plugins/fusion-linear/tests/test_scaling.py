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


def pool(*, experts: int = 3, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def state(spread: float) -> State:
        return {
            name: spread * torch.randn(shape, generator=draw, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }

    base = state(1.0)
    moves = [state(0.1 * (number + 1)) for number in range(experts)]
    models = {f"e{n}": {k: base[k] + move[k] for k in base} for n, move in enumerate(moves)}
    return {"base": base, "models": models}


def tasks(models: dict[str, Any], name: str) -> list[torch.Tensor]:
    base = models["base"][name].double()
    return [each[name].double() - base for each in models["models"].values()]


def moved(merged: WeightSource, models: dict[str, Any], name: str) -> torch.Tensor:
    return merged.tensor(name).double() - models["base"][name].double()


def whole(vectors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([vector.ravel() for vector in vectors])


def by_scope(scope: str) -> list[list[str]]:
    return [list(SHAPES)] if scope == "model" else [[name] for name in SHAPES]


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_normalise_gives_all_experts_the_mean_norm(scope: str, seed: int) -> None:
    models = pool(seed=seed)
    found = merge([{"name": "normalise", "scope": scope}, SUM], models)
    for names in by_scope(scope):
        norms = [whole([tasks(models, name)[k] for name in names]).norm() for k in range(3)]
        for name in names:
            vectors = zip(tasks(models, name), norms, strict=True)
            expected = sum(vector * sum(norms) / 3 / norm for vector, norm in vectors)
            check_close(moved(found, models, name), expected)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_rescale_norm_gives_a_merge_the_experts_mean_norm(scope: str, seed: int) -> None:
    models = pool(seed=seed)
    found = merge(["simple-average", {"name": "rescale-norm", "scope": scope}], models)
    for names in by_scope(scope):
        experts = [whole([tasks(models, name)[k] for name in names]) for k in range(3)]
        mean = sum(experts) / 3
        expected = mean * sum(expert.norm() for expert in experts) / 3 / mean.norm()
        check_close(whole([moved(found, models, name) for name in names]), expected)


def test_experts_that_did_not_move_stay_where_they_are() -> None:
    models = pool()
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
    models = pool()
    found = merge([{"name": "depth-scale", **options}, SUM], models)
    named = {f"layers.{number}.w": factor for number, factor in enumerate(factors)}
    for name in SHAPES:
        check_close(moved(found, models, name), named.get(name, 1.0) * sum(tasks(models, name)))


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_lines_begins_with_the_share_of_the_mean(seed: int, scale: float) -> None:
    """Whatever a sum was scaled by: alpha times it is the mean in the first layer."""
    models = pool(seed=seed)
    found = merge([{**SUM, "scale": scale}, {"name": "lines", "beta": 0.7}], models)
    for name in SHAPES:
        depth = int(name.split(".")[1]) / 5 if name.startswith("layers") else 0.0
        factor = 1 / 3 / scale + 0.7 * depth
        check_close(moved(found, models, name), factor * scale * sum(tasks(models, name)))


def test_lines_measures_the_merge_that_there_is() -> None:
    models = pool()
    thinned = merge(["depth-scale", SUM], models)
    total = sum(float(sum(tasks(models, name)).abs().sum()) for name in SHAPES)
    left = sum(float(moved(thinned, models, name).abs().sum()) for name in SHAPES)
    found = merge(["depth-scale", SUM, {"name": "lines", "beta": 0}], models)
    for name in SHAPES:
        expected = total / left / 3 * moved(thinned, models, name)
        check_close(moved(found, models, name), expected)


def test_lines_edits_one_expert_with_an_alpha() -> None:
    models = pool(experts=1)
    found = merge([SUM, {"name": "lines", "alpha": 0.2, "beta": 0.8}], models)
    check_close(moved(found, models, "layers.5.w"), tasks(models, "layers.5.w")[0])
    check_close(moved(found, models, "head"), 0.2 * tasks(models, "head")[0])
