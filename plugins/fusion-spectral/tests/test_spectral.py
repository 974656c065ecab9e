"""The spectral methods against independent dense computations in fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import ComponentConfig, TensorwiseAlgorithm, merge
from fusion_spectral.orthogonalise import Orthogonalise
from fusion_spectral.svc import Svc

if TYPE_CHECKING:
    from fusion_core import Piece
    from fusion_core.weights import WeightSource

SHAPES = [(12, 12), (24, 9), (7, 20)]


class MagMax(TensorwiseAlgorithm[ComponentConfig]):
    """The entry of largest magnitude."""

    config_class = ComponentConfig

    def merge(self, piece: Piece) -> torch.Tensor:
        rows = piece.task_vectors
        return piece.base + rows.gather(0, rows.abs().argmax(0, keepdim=True))[0]


def make_models(shape: tuple[int, ...], *, experts: int = 3, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    states = {
        name: {"w": torch.randn(shape, generator=draw), "b": torch.randn(5, generator=draw)}
        for name in ("base", *(f"e{n}" for n in range(experts)))
    }
    return {"base": states.pop("base"), "models": states}


def vectors(pool: dict[str, Any], name: str) -> list[torch.Tensor]:
    return [model[name].double() - pool["base"][name].double() for model in pool["models"].values()]


def inverse_root(gram: torch.Tensor) -> torch.Tensor:
    values, basis = torch.linalg.eigh(gram)
    return basis @ torch.diag(values.rsqrt()) @ basis.T


def tsv_m(tasks: list[torch.Tensor], count: int) -> torch.Tensor:
    """Return TSV-M's task vector, with polar factors from Gram matrices."""
    parts = [torch.linalg.svd(task, full_matrices=False) for task in tasks]
    left = torch.cat([u[:, :count] for u, _, _ in parts], dim=1)
    right = torch.cat([v[:count].T for _, _, v in parts], dim=1)
    values = torch.cat([s[:count] for _, s, _ in parts])
    left, right = left @ inverse_root(left.T @ left), right @ inverse_root(right.T @ right)
    return left @ torch.diag(values) @ right.T


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_after_orthogonalise_is_tsv_m(shape: tuple[int, int], seed: int) -> None:
    pool = make_models(shape, seed=seed)
    merged: WeightSource = merge([Orthogonalise(), {"name": "task-arithmetic", "scale": 1.0}], pool)
    expected = pool["base"]["w"] + tsv_m(vectors(pool, "w"), min(shape) // 3)
    torch.testing.assert_close(merged.tensor("w").double(), expected, rtol=1e-4, atol=1e-4)
    mean = pool["base"]["b"] + sum(vectors(pool, "b")) / 3
    torch.testing.assert_close(merged.tensor("b"), mean.float())


def test_orthogonalised_task_vectors_are_orthogonal_across_experts() -> None:
    pool = make_models((20, 16))
    sources = [
        merge([Orthogonalise(), {"name": "task-arithmetic", "weights": weights, "scale": 1}], pool)
        for weights in ([1, 0, 0], [0, 1, 0])
    ]
    one, two = (source.tensor("w") - pool["base"]["w"] for source in sources)
    assert torch.linalg.matrix_rank(one, rtol=1e-4) == 16 // 3
    for product in (one.T @ two, one @ two.T):
        torch.testing.assert_close(product, torch.zeros_like(product), rtol=0, atol=1e-4)


def test_a_matrix_with_fewer_rows_than_experts_keeps_one_component_each() -> None:
    pool = make_models((2, 6), experts=4)
    merged = merge([Orthogonalise(), "task-arithmetic"], pool)
    assert merged.tensor("w").isfinite().all()
    assert not torch.equal(merged.tensor("w"), pool["base"]["w"])


def calibrate(merged: torch.Tensor, tasks: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """Return the result of SVC, by loops over directions."""
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
    pool = make_models(shape)
    merged: WeightSource = merge(
        [{"name": "task-arithmetic", "scale": 0.5}, Svc(alpha=alpha)], pool
    )
    tasks = vectors(pool, "w")
    expected = pool["base"]["w"] + calibrate(0.5 * sum(tasks), tasks, alpha or 1 / 3)
    torch.testing.assert_close(merged.tensor("w").double(), expected, rtol=1e-4, atol=1e-4)
    plain = merge({"name": "task-arithmetic", "scale": 0.5}, pool)
    assert torch.equal(merged.tensor("b"), plain.tensor("b"))


def test_svc_reduces_the_sum_of_equal_experts_to_one() -> None:
    """The sum contains every direction K times."""
    pool = make_models((8, 8), experts=1)
    pool["models"] = dict.fromkeys(("a", "b", "c"), pool["models"]["e0"])
    merged = merge([{"name": "task-arithmetic", "scale": 1.0}, Svc()], pool)
    torch.testing.assert_close(merged.tensor("w"), pool["models"]["a"]["w"], rtol=1e-4, atol=1e-4)


# --- coordinates ----------------------------------------------------------------------------------


def adapters(shape: tuple[int, int], *, rank: int, experts: int = 3) -> dict[str, Any]:
    """Return models whose task vectors have this rank."""
    pool, draw = make_models(shape, experts=experts), torch.Generator().manual_seed(7)
    for model in pool["models"].values():
        down, up = (torch.randn(size, rank, generator=draw) for size in shape)
        model["w"] = pool["base"]["w"] + down @ up.T
    return pool


def largest_in_coordinates(tasks: list[torch.Tensor], *, right: bool) -> torch.Tensor:
    """Take the largest coordinates of all experts, in bases from plain SVDs."""
    u, s, _ = torch.linalg.svd(torch.cat(tasks, dim=1), full_matrices=False)
    left = u[:, s > 1e-6 * s[0]]
    _, s, v = torch.linalg.svd(torch.cat(tasks, dim=0), full_matrices=False)
    right_basis = (
        v[s > 1e-6 * s[0]].T if right else torch.eye(tasks[0].shape[1], dtype=torch.float64)
    )
    coordinates = torch.stack([left.T @ task @ right_basis for task in tasks])
    chosen = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))[0]
    return left @ chosen @ right_basis.T


@pytest.mark.parametrize("bases", ["both", "left"])
@pytest.mark.parametrize("rank", [2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_merges_of_coordinates(shape: tuple[int, int], rank: int, bases: str) -> None:
    pool = adapters(shape, rank=rank)
    merged: WeightSource = merge([{"name": "core-space", "bases": bases}, MagMax()], pool)
    expected = largest_in_coordinates(vectors(pool, "w"), right=bases == "both")
    moved = merged.tensor("w").double() - pool["base"]["w"].double()
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
    plain = merge([MagMax()], pool)
    assert not torch.allclose(merged.tensor("w"), plain.tensor("w"), atol=1e-2)
    assert torch.equal(merged.tensor("b"), plain.tensor("b"))


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_coordinates_are_sums(shape: tuple[int, int]) -> None:
    pool = adapters(shape, rank=2)
    doubled = {
        "name": "weighted-average",
        "normalize": False,
    }  # of whole models, it would double the base
    expected = pool["base"]["w"] + sum(vectors(pool, "w"))
    for algorithm in ({"name": "task-arithmetic", "scale": 1.0}, doubled):
        merged = merge(["core-space", algorithm], pool)
        torch.testing.assert_close(merged.tensor("w").double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "merge_by",
    [
        ["core-space", {"name": "ties", "density": 1.0}],
        [{"name": "core-space", "bases": "left"}, {"name": "ties", "density": 1.0}],
        [{"name": "knots", "density": 1.0}],
    ],
    ids=["both", "left", "knots"],
)
def test_experts_in_directions_of_their_own_have_no_say_in_others(
    shape: tuple[int, int], merge_by: list[Any]
) -> None:
    """Rounding would agree with an expert's sign by chance, and count in the mean."""
    pool = adapters(shape, rank=2)
    expected = merge(["orthogonalise", {"name": "task-arithmetic", "scale": 1.0}], pool)
    merged = merge(["orthogonalise", *merge_by], pool)
    torch.testing.assert_close(merged.tensor("w"), expected.tensor("w"), rtol=1e-4, atol=1e-4)


def test_knots_is_ties_of_coordinates_where_the_basis_is_whole() -> None:
    pool = make_models((12, 20))
    for state in (pool["base"], *pool["models"].values()):
        del state["b"]
    merged = merge(
        [{"name": "core-space", "bases": "left"}, {"name": "ties", "density": 0.3}], pool
    )
    knots = merge({"name": "knots", "density": 0.3}, pool)
    torch.testing.assert_close(merged.tensor("w"), knots.tensor("w"), rtol=1e-5, atol=1e-5)


def test_coordinates_of_some_tensors() -> None:
    pool = adapters((12, 12), rank=2)
    for state in (pool["base"], *pool["models"].values()):
        state["v"] = state["w"].clone()
    merged = merge([{"name": "core-space", "only": "w"}, MagMax()], pool)
    assert torch.equal(merged.tensor("w"), merge(["core-space", MagMax()], pool).tensor("w"))
    assert torch.equal(merged.tensor("v"), merge(MagMax(), pool).tensor("v"))
