"""Merges by descent, and KnOTS, against autograd, plain SVDs and sorting, in fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fusion_core import merge
from fusion_spectral.config import DogeConfig
from fusion_spectral.doge import Doge
from fusion_spectral.knots import Knots
from fusion_spectral.wudi import Wudi

if TYPE_CHECKING:
    from fusion_core.weights import WeightSource

SHAPES = {"square": (12, 12), "tall": (24, 9), "wide": (7, 20)}


def pool_of(experts: int, seed: int, sizes: tuple[float, ...] = (0.3,)) -> dict[str, Any]:
    """Make matrices of three shapes and a vector; task vectors have these sizes in turns."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, "vector": (5,)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    models = {
        f"e{n}": {
            name: values + sizes[n % len(sizes)] * torch.randn(values.shape, generator=draw)
            for name, values in base.items()
        }
        for n in range(experts)
    }
    return {"base": base, "models": models}


def tasks_of(pool: dict[str, Any], name: str) -> list[Tensor]:
    return [each[name].double() - pool["base"][name].double() for each in pool["models"].values()]


def moved(algorithm: object, pool: dict[str, Any]) -> dict[str, Tensor]:
    found: WeightSource = merge(algorithm, pool)
    return {name: found.tensor(name).double() - pool["base"][name].double() for name in found.infos}


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def low_rank(matrix: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :kept], values[:kept], right[:kept]


def wudi(tasks: list[Tensor], steps: int, lr: float) -> Tensor:
    """By autograd, with two products an expert and step."""
    merged = sum(tasks).clone().requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = (((merged - task) @ task.T).square().sum() / task.square().sum() for task in tasks)
        sum(terms).backward()
        optimizer.step()
    return merged.detach()


def thresholds(rows: list[list[Tensor]], density: float) -> list[Tensor]:
    """Return each expert's smallest kept magnitude over all its tensors, by sorting."""
    flat = [torch.cat([each.abs().flatten() for each in row]).sort().values for row in rows]
    return [each[-max(1, int(density * len(each)))] for each in flat]


def knots(layers: list[list[Tensor]], density: float) -> list[Tensor]:
    """Merge several matrices, whose thresholds are common."""
    bases, coordinates = [], [[] for _ in layers[0]]
    for tasks in layers:
        u, s, v = torch.linalg.svd(torch.cat(tasks, dim=1), full_matrices=False)
        supported = s > 1e-6 * s[0]
        bases.append(u[:, supported])
        split = (torch.diag(s) @ v)[supported].split(tasks[0].shape[1], dim=1)
        for rows, each in zip(coordinates, split, strict=True):
            rows.append(each)
    limits = thresholds(coordinates, density)
    kept = [
        [each * (each.abs() >= limit) for each in rows]
        for rows, limit in zip(coordinates, limits, strict=True)
    ]
    merged = []
    for basis, *rows in zip(bases, *kept, strict=True):
        sign = torch.stack(rows).sum(0).sign()
        agree = torch.stack([row * (row * sign > 0) for row in rows])
        merged.append(basis @ (agree.sum(0) / (agree != 0).sum(0).clamp(min=1)))
    return merged


def doge(layers: list[list[Tensor]], options: DogeConfig) -> list[Tensor]:
    """Merge several matrices, whose thresholds are common; the descent by autograd."""
    limits = thresholds([list(row) for row in zip(*layers, strict=True)], options.density)
    return [_doge(tasks, limits, options) for tasks in layers]


def _doge(tasks: list[Tensor], limits: list[Tensor], options: DogeConfig) -> Tensor:
    rank, count = min(tasks[0].shape), len(tasks)
    joined = torch.cat([low_rank(task, max(1, rank // count))[0] for task in tasks], dim=1)
    shared = low_rank(joined, rank // options.subspace)[0]
    shares = [options.scale / task.norm() for task in tasks]
    delta = torch.zeros_like(tasks[0]).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=options.lr)
    for _ in range(options.steps):
        optimizer.zero_grad()
        merged = sum(share * (task + delta) for share, task in zip(shares, tasks, strict=True))
        sum((task * task - task * merged).sum(1).square().sum() for task in tasks).backward()
        delta.grad -= shared @ shared.T @ delta.grad
        optimizer.step()
    parts = zip(tasks, shares, limits, strict=True)
    return sum(
        share * (task + delta.detach()) * (task.abs() >= least) for task, share, least in parts
    )


experts_and_seed = pytest.mark.parametrize(("experts", "seed"), [(1, 0), (2, 1), (4, 2)])


def in_fp64(pool: dict[str, Any]) -> dict[str, Any]:
    for part in (pool["base"], *pool["models"].values()):
        part.update({name: values.double() for name, values in part.items()})
    return pool


@experts_and_seed
@pytest.mark.parametrize(("steps", "lr"), [(300, 1e-5), (60, 1e-3), (0, 1.0)])
def test_wudi(experts: int, seed: int, steps: int, lr: float) -> None:
    pool = pool_of(experts, seed)
    found = moved(Wudi(steps=steps, lr=lr), pool)
    for name in SHAPES:
        assert_close(found[name], wudi(tasks_of(pool, name), steps, lr))
    assert_close(found["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_wudi_has_the_same_iterates_as_with_all_products() -> None:
    pool = in_fp64(pool_of(3, 3))
    found = moved(Wudi(steps=50, lr=1e-2), pool)
    for name in SHAPES:
        assert_close(found[name], wudi(tasks_of(pool, name), 50, 1e-2), 1e-9)


def test_wudi_without_a_task_vector_is_without_that_expert() -> None:
    pool = pool_of(2, 0)
    alone = moved(Wudi(lr=1e-3), {**pool, "models": dict(pool["models"])})
    pool["models"]["still"] = pool["base"]
    found = moved(Wudi(lr=1e-3), pool)
    for name in SHAPES:
        assert_close(found[name], alone[name], 1e-6)


@experts_and_seed
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_knots(experts: int, seed: int, density: float) -> None:
    pool = pool_of(experts, seed)
    found = moved(Knots(density=density, scale=0.6), pool)
    expected = knots([tasks_of(pool, name) for name in SHAPES], density)
    for name, each in zip(SHAPES, expected, strict=True):
        assert_close(found[name], 0.6 * each)
    assert_close(found["vector"], 0.6 * sum(tasks_of(pool, "vector")) / experts)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_knots_counts_what_adapters_span(density: float) -> None:
    draw = torch.Generator().manual_seed(1)
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    pool: dict[str, Any] = {"base": base, "models": {}}
    for expert in ("a", "b", "c"):
        pool["models"][expert] = {
            name: torch.randn(rows, 1, generator=draw) @ torch.randn(1, columns, generator=draw)
            for name, (rows, columns) in SHAPES.items()
        }
    found = moved(Knots(density=density), pool)
    expected = knots([tasks_of(pool, name) for name in SHAPES], density)
    for name, each in zip(SHAPES, expected, strict=True):
        assert torch.linalg.matrix_rank(each) == 3
        assert_close(found[name], each)


def test_knots_of_one_expert_keeps_it_at_full_density() -> None:
    pool = pool_of(1, 0)
    found = moved(Knots(density=1), pool)
    for name in pool["base"]:
        assert_close(found[name], tasks_of(pool, name)[0], 1e-5)


@pytest.mark.parametrize(("experts", "seed"), [(2, 0), (3, 1), (5, 2)])
@pytest.mark.parametrize(("subspace", "density"), [(6, 0.3), (2, 1.0)])
def test_doge(experts: int, seed: int, subspace: int, density: float) -> None:
    pool = in_fp64(pool_of(experts, seed))
    options = DogeConfig(scale=0.5, density=density, subspace=subspace, steps=40, lr=1e-3)
    found = moved(Doge(options), pool)
    expected = doge([tasks_of(pool, name) for name in SHAPES], options)
    for name, each in zip(SHAPES, expected, strict=True):
        assert_close(found[name], each, 1e-5)
    assert_close(found["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_doge_in_fp32() -> None:
    pool = pool_of(3, 5)
    found = moved(Doge(), pool)
    expected = doge([tasks_of(pool, name) for name in SHAPES], DogeConfig())
    for name, each in zip(SHAPES, expected, strict=True):
        assert_close(found[name], each)
