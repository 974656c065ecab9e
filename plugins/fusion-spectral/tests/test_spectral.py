"""The spectral methods against dense computations in fp64, written another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import merge
from fusion_spectral.orthogonalise import Orthogonalise
from fusion_spectral.svc import Svc

if TYPE_CHECKING:
    from fusion_core.weights import WeightSource

SHAPES = [(12, 12), (24, 9), (7, 20)]


def models(shape: tuple[int, ...], *, experts: int = 3, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    make = {
        name: {"w": torch.randn(shape, generator=draw), "b": torch.randn(5, generator=draw)}
        for name in ("base", *(f"e{n}" for n in range(experts)))
    }
    return {"base": make.pop("base"), "models": make}


def vectors(pool: dict[str, Any], name: str) -> list[torch.Tensor]:
    return [each[name].double() - pool["base"][name].double() for each in pool["models"].values()]


def inverse_root(gram: torch.Tensor) -> torch.Tensor:
    values, basis = torch.linalg.eigh(gram)
    return basis @ torch.diag(values.rsqrt()) @ basis.T


def tsv_merged(tasks: list[torch.Tensor], kept: int) -> torch.Tensor:
    """TSV-M's task vector, its polar factors from Gram matrices."""
    parts = [torch.linalg.svd(task, full_matrices=False) for task in tasks]
    left = torch.cat([u[:, :kept] for u, _, _ in parts], dim=1)
    right = torch.cat([v[:kept].T for _, _, v in parts], dim=1)
    values = torch.cat([s[:kept] for _, s, _ in parts])
    left, right = left @ inverse_root(left.T @ left), right @ inverse_root(right.T @ right)
    return left @ torch.diag(values) @ right.T


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_after_orthogonalise_is_tsv_m(shape: tuple[int, int], seed: int) -> None:
    pool = models(shape, seed=seed)
    found: WeightSource = merge([Orthogonalise(), {"name": "task-arithmetic", "scale": 1.0}], pool)
    expected = pool["base"]["w"] + tsv_merged(vectors(pool, "w"), min(shape) // 3)
    torch.testing.assert_close(found.tensor("w").double(), expected, rtol=1e-4, atol=1e-4)
    mean = pool["base"]["b"] + sum(vectors(pool, "b")) / 3
    torch.testing.assert_close(found.tensor("b"), mean.float())


def test_what_comes_out_is_orthogonal_across_experts() -> None:
    pool = models((20, 16))
    moved = [
        merge([Orthogonalise(), {"name": "task-arithmetic", "weights": weights, "scale": 1}], pool)
        for weights in ([1, 0, 0], [0, 1, 0])
    ]
    one, two = (each.tensor("w") - pool["base"]["w"] for each in moved)
    assert torch.linalg.matrix_rank(one, rtol=1e-4) == 16 // 3
    for product in (one.T @ two, one @ two.T):
        torch.testing.assert_close(product, torch.zeros_like(product), rtol=0, atol=1e-4)


def test_a_matrix_with_fewer_rows_than_experts_keeps_one_component_each() -> None:
    pool = models((2, 6), experts=4)
    found = merge([Orthogonalise(), "task-arithmetic"], pool)
    assert found.tensor("w").isfinite().all()
    assert not torch.equal(found.tensor("w"), pool["base"]["w"])


def calibrated(merged: torch.Tensor, tasks: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """SVC by loops over directions."""
    left, values, right = torch.linalg.svd(merged, full_matrices=False)
    result = torch.zeros_like(merged)
    for u, value, v in zip(left.T, values, right, strict=True):
        total = 0.0
        for task in tasks:
            response = u @ task
            total += max(alpha, float(value * v @ response / response.square().sum()))
        result += len(tasks) / total * value * torch.outer(u, v)
    return result


@pytest.mark.parametrize("alpha", [None, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_svc_scales_every_direction(shape: tuple[int, int], alpha: float | None) -> None:
    pool = models(shape)
    found: WeightSource = merge([{"name": "task-arithmetic", "scale": 0.5}, Svc(alpha=alpha)], pool)
    tasks = vectors(pool, "w")
    expected = pool["base"]["w"] + calibrated(0.5 * sum(tasks), tasks, alpha or 1 / 3)
    torch.testing.assert_close(found.tensor("w").double(), expected, rtol=1e-4, atol=1e-4)
    plain = merge({"name": "task-arithmetic", "scale": 0.5}, pool)
    assert torch.equal(found.tensor("b"), plain.tensor("b"))


def test_svc_brings_equal_experts_back_to_one() -> None:
    """Their sum holds everything K times, which is what SVC undoes."""
    pool = models((8, 8), experts=1)
    pool["models"] = dict.fromkeys(("a", "b", "c"), pool["models"]["e0"])
    found = merge([{"name": "task-arithmetic", "scale": 1.0}, Svc()], pool)
    torch.testing.assert_close(found.tensor("w"), pool["models"]["a"]["w"], rtol=1e-4, atol=1e-4)
