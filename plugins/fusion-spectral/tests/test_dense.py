"""Merges against dense implementations of the papers in fp64: SVDs, loops, autograd, sorting."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fusion_core import merge
from fusion_core.errors import FusionError
from fusion_spectral.ace import Ace
from fusion_spectral.cart import Cart
from fusion_spectral.config import DogeConfig
from fusion_spectral.doge import Doge
from fusion_spectral.iso import IsoC, IsoCts
from fusion_spectral.knots import Knots
from fusion_spectral.orthomerge import Orthomerge
from fusion_spectral.project import Project
from fusion_spectral.resmerge import ResMerge
from fusion_spectral.truncate import Star, Truncate
from fusion_spectral.tsv import TsvM
from fusion_spectral.wudi import Wudi

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.weights import WeightSource

SHAPES = {"square": (12, 12), "tall": (24, 9), "wide": (7, 20)}


def pool_of(experts: int, seed: int, sizes: tuple[float, ...] = (0.3,)) -> dict[str, Any]:
    """Return matrices of three shapes and a vector; the sizes of task vectors take turns."""
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
    return [model[name].double() - pool["base"][name].double() for model in pool["models"].values()]


def merged_vectors(algorithm: object, pool: dict[str, Any]) -> dict[str, Tensor]:
    merged: WeightSource = merge(algorithm, pool)
    base = pool["base"]
    return {name: merged.tensor(name).double() - base[name].double() for name in merged.infos}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def low_rank(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :count], values[:count], right[:count]


# --- in closed form -------------------------------------------------------------------------------


def orthonormal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def tsv_m(tasks: list[Tensor], rank: int | None = None) -> Tensor:
    rank = rank or max(1, min(tasks[0].shape) // len(tasks))
    parts = [low_rank(task, rank) for task in tasks]
    left = orthonormal(torch.cat([u for u, _, _ in parts], dim=1))
    right = orthonormal(torch.cat([v for _, _, v in parts], dim=0))
    return left @ torch.diag(torch.cat([s for _, s, _ in parts])) @ right


def iso_c(tasks: list[Tensor]) -> Tensor:
    left, values, right = torch.linalg.svd(sum(tasks), full_matrices=False)
    return left @ torch.diag(values.mean().expand_as(values)) @ right


def iso_cts(tasks: list[Tensor], common_fraction: float) -> Tensor:
    rank, count = min(tasks[0].shape), len(tasks)
    per_expert = round((rank - int(rank * common_fraction)) / count)
    u, s, v = low_rank(sum(tasks), rank - per_expert * count)
    lefts, values, rights = [u], [s], [v]
    for task in tasks:
        left, level, right = low_rank(task - u @ u.T @ task, per_expert)
        lefts.append(left)
        values.append(level)
        rights.append(right)
    left, right = orthonormal(torch.cat(lefts, dim=1)), orthonormal(torch.cat(rights))
    return torch.cat(values).mean() * left @ right


def cart(base: Tensor, tasks: list[Tensor], rank_fraction: float, scale: float) -> Tensor:
    experts = [base + task for task in tasks]
    centre = torch.stack(experts).mean(0)
    merged = centre.clone()
    for expert in experts:
        u, s, v = low_rank(expert - centre, max(1, int(rank_fraction * min(base.shape))))
        merged += scale * u @ torch.diag(s) @ v
    return merged - base


def truncate(task: Tensor, by: str, keep: float, *, rescale: bool) -> Tensor:
    u, s, v = torch.linalg.svd(task, full_matrices=False)
    mass = {"nuclear": s, "energy": s**2, "fraction": torch.ones_like(s)}[by]
    count = 1
    if by == "fraction":
        count = max(1, int(keep * len(s)))
    else:
        while mass[:count].sum() < keep * mass.sum():
            count += 1
    factor = s.sum() / s[:count].sum() if rescale else 1
    return u[:, :count] @ torch.diag(s[:count] * factor) @ v[:count]


def star(tasks: list[Tensor], keep: float) -> Tensor:
    return sum(truncate(task, "nuclear", keep, rescale=True) for task in tasks) / len(tasks)


def ace(
    tasks: list[Tensor], epsilon: float = 1e-2, threshold: float = 0.3, fraction: float = 0.3
) -> Tensor:
    columns = tasks[0].shape[1]
    norms = torch.stack([task.square().sum() for task in tasks])
    logs = norms.log()
    spread = logs.var() / logs.mean() ** 2 if len(tasks) > 1 else 0.0
    top, bottom, covariances = (
        torch.zeros_like(tasks[0]),
        torch.zeros(columns, columns).double(),
        [],
    )
    for task in tasks:
        centred = task - task.mean(0)
        trace = centred.square().sum() if spread > threshold else 1.0
        covariance = centred.T @ centred / trace
        ridge = min(epsilon / trace, 1) if spread > threshold else epsilon
        ridged = covariance + ridge * torch.eye(columns)
        top, bottom = top + centred @ ridged, bottom + ridged
        covariances.append(covariance)
    prior = sum(covariances).mean(0) / (norms.mean() if spread > threshold else 1.0)
    merged = top @ torch.linalg.inv(bottom + torch.ones(columns, 1) * prior)
    if spread <= threshold:
        return merged
    rest = sum(t @ (c - bottom / len(tasks)) for t, c in zip(tasks, covariances, strict=True))
    u, s, v = low_rank(merged + rest, int(fraction * min(rest.shape)))
    return merged + s.mean() * u @ v


def orthomerge(base: Tensor, tasks: list[Tensor]) -> Tensor:
    """By Kabsch on the smaller side, with explicit inverses."""
    if base.shape[0] < base.shape[1]:
        return orthomerge(base.T, [task.T for task in tasks]).T
    eye, generators, residuals = torch.eye(base.shape[1]).double(), [], []
    for task in tasks:
        u, _, v = torch.linalg.svd(base.T @ (base + task))
        u[:, -1] *= torch.linalg.det(u @ v).sign()
        rotation = u @ v
        generators.append((rotation - eye) @ torch.linalg.inv(rotation + eye))
        residuals.append(base + task - base @ rotation)
    total = sum(generators)
    total = total / total.norm() * sum(generator.norm() for generator in generators) / len(tasks)
    rotation = torch.linalg.inv(eye - total) @ (eye + total)
    return base @ rotation + sum(residuals) / len(tasks) - base


def cosine(one: Tensor, two: Tensor) -> Tensor:
    return (one * two).sum() / (one.norm() * two.norm())


def mean_of_pairs(tensors: list[Tensor], least: float = -1.0) -> float:
    pairs = [cosine(a, b).clamp(min=least) for a, b in itertools.combinations(tensors, 2)]
    return float(sum(pairs) / len(pairs)) if pairs else 1.0


def resmerge(
    tasks: list[Tensor], rank: int, head_scale: float, betas: tuple[float, float]
) -> Tensor:
    heads = [u @ torch.diag(s) @ v for u, s, v in (low_rank(task, rank) for task in tasks)]
    residuals = [task - head for task, head in zip(tasks, heads, strict=True)]
    direction = sum(residual / residual.norm() for residual in residuals)
    direction = direction / direction.norm()
    coherence = sum(float(cosine(residual, direction)) for residual in residuals) / len(tasks)
    merged = sum(residuals) / len(tasks)
    if coherence > 1 / len(tasks) ** 0.5:
        agreement = ((mean_of_pairs(residuals) + 1) / 2 + (coherence + 1) / 2) / 2
        beta = betas[1] - (betas[1] - betas[0]) * agreement
        length = sum(residual.norm() for residual in residuals) / len(tasks)
        merged = coherence**beta * length * direction
    head = sum(heads) / len(tasks)
    strength = head_scale * mean_of_pairs(heads, 0.0) * merged.norm()
    return merged + strength * head / head.norm()


CASES = [(1, 0), (2, 1), (3, 2), (5, 3)]
experts_and_seed = pytest.mark.parametrize(("experts", "seed"), CASES)


@experts_and_seed
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_tsv_m(experts: int, seed: int, scale: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(TsvM(scale=scale), pool)
    for name in SHAPES:
        assert_close(merged[name], scale * tsv_m(tasks_of(pool, name)))
    assert_close(merged["vector"], scale * sum(tasks_of(pool, "vector")) / experts)


@pytest.mark.parametrize("shape", [(24, 9), (7, 20), (150, 200), (200, 150)])
def test_tsv_m_of_adapters_has_no_directions_but_theirs(shape: tuple[int, int]) -> None:
    """Fewer than an expert may keep: an SVD would fill up with arbitrary vectors."""
    draw, rank, models = torch.Generator().manual_seed(0), 2, {}
    for name in "abc":
        left, right = (torch.randn(size, rank, generator=draw) for size in shape)
        models[name] = {"matrix": left @ right.T}
    pool = {"base": {"matrix": torch.zeros(shape)}, "models": models}
    merged = merged_vectors(TsvM(), pool)["matrix"]
    assert_close(merged, tsv_m(tasks_of(pool, "matrix"), rank))


def test_tsv_m_is_a_pipeline() -> None:
    pool = pool_of(3, 0)
    alone = merge(TsvM(scale=0.7), pool)
    stages = merge(["orthogonalise", {"name": "task-arithmetic", "scale": 0.7}], pool)
    assert all(torch.equal(alone.tensor(name), stages.tensor(name)) for name in alone.infos)


@experts_and_seed
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_iso_c(experts: int, seed: int, scale: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(IsoC(scale=scale), pool)
    for name in SHAPES:
        assert_close(merged[name], scale * iso_c(tasks_of(pool, name)))
    assert_close(merged["vector"], scale * sum(tasks_of(pool, "vector")) / experts)


def test_iso_c_by_hand() -> None:
    """The singular values 3 and 1 become 2 and 2."""
    pool = {
        "base": {"w": torch.zeros(2, 2)},
        "models": {"a": {"w": torch.tensor([[0.0, 3], [1, 0]])}},
    }
    assert_close(merge(IsoC(), pool).tensor("w"), torch.tensor([[0.0, 2], [2, 0]]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iso_c_adds_nothing_where_no_expert_moved(dtype: torch.dtype) -> None:
    """An SVD would fill the basis of a sum of rank 4 with arbitrary directions."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(4, 30, generator=draw, dtype=dtype) for _ in range(2))
    pool = {"base": {"w": torch.zeros(30, 30, dtype=dtype)}, "models": {"a": {"w": left.T @ right}}}
    merged = merge(IsoC(), pool).tensor("w")
    values = torch.linalg.svdvals(merged)
    level = torch.linalg.matrix_norm(left.T @ right, "nuc") / 4
    assert_close(values[:4], level.expand(4))
    assert_close(values[4:], torch.zeros(26, dtype=dtype))


@experts_and_seed
@pytest.mark.parametrize("common_fraction", [0.8, 0.5, 1.0])
def test_iso_cts(experts: int, seed: int, common_fraction: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(IsoCts(common_fraction=common_fraction, scale=1.2), pool)
    for name in SHAPES:
        assert_close(merged[name], 1.2 * iso_cts(tasks_of(pool, name), common_fraction))


@pytest.mark.parametrize("common_fraction", [0.8, 0.0])
def test_iso_cts_is_a_sum_of_isotropic_task_vectors(common_fraction: float) -> None:
    pool = pool_of(3, 0)
    isotropise = {"name": "isotropise", "common_fraction": common_fraction}
    alone = merge(IsoCts(common_fraction=common_fraction, scale=0.7), pool)
    stages = merge([isotropise, {"name": "task-arithmetic", "scale": 0.7}], pool)
    for name in alone.infos:
        assert_close(stages.tensor(name), alone.tensor(name), 1e-6)


def test_isotropic_task_vectors_differ_in_their_own_directions() -> None:
    pool = pool_of(3, 0)
    one, two = (
        merged_vectors(
            ["isotropise", {"name": "task-arithmetic", "scale": 1.0, "weights": w}], pool
        )
        for w in ([1, 0, 0], [0, 1, 0])
    )
    values = torch.linalg.svdvals(one["square"] - two["square"])
    # 9 of 12 directions are common, so each expert has one of its own
    assert_close(values[:2], values[0].expand(2))
    assert_close(values[2:], torch.zeros(10, dtype=values.dtype))


def test_iso_cts_without_common_directions_uses_none_twice() -> None:
    """Three directions for five experts round to one per expert, two more than there are."""
    pool = pool_of(5, 0)
    for part in (pool["base"], *pool["models"].values()):
        part["square"] = part["square"][:3, :3]
    assert merged_vectors(IsoCts(common_fraction=0), pool)["square"].isfinite().all()


@experts_and_seed
@pytest.mark.parametrize(("rank_fraction", "scale"), [(0.08, 1.0), (0.3, 2.0)])
def test_cart(experts: int, seed: int, rank_fraction: float, scale: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(Cart(rank_fraction=rank_fraction, scale=scale), pool)
    for name in SHAPES:
        base, tasks = pool["base"][name].double(), tasks_of(pool, name)
        assert_close(merged[name], cart(base, tasks, rank_fraction, scale))
    assert_close(merged["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_cart_at_full_rank_is_the_average() -> None:
    pool = in_fp64(pool_of(3, 0))
    merged = merged_vectors(Cart(rank_fraction=1, scale=3), pool)
    for name in pool["base"]:
        assert_close(merged[name], sum(tasks_of(pool, name)) / 3, 1e-9)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("by", "keep"), [("nuclear", 0.4), ("energy", 0.9), ("fraction", 0.3)])
def test_truncate(by: str, keep: float, rescale: bool) -> None:  # noqa: FBT001 - a parameter
    pool = pool_of(3, 4)
    stage = Truncate(by=by, keep=keep, rescale=rescale)
    merged = merged_vectors(
        [stage, {"name": "task-arithmetic", "scale": 1, "weights": [0, 1, 0]}], pool
    )
    for name in SHAPES:
        expected = truncate(tasks_of(pool, name)[1], by, keep, rescale=rescale)
        assert_close(merged[name], expected)
    assert_close(merged["vector"], tasks_of(pool, "vector")[1])


@pytest.mark.parametrize("by", ["nuclear", "energy", "fraction"])
def test_truncate_keeps_everything_at_keep_1(by: str) -> None:
    pool = in_fp64(pool_of(2, 5))
    merged = merged_vectors(
        [Truncate(by=by, keep=1), {"name": "task-arithmetic", "scale": 1}], pool
    )
    for name in pool["base"]:
        assert_close(merged[name], sum(tasks_of(pool, name)), 1e-9)


@experts_and_seed
def test_star(experts: int, seed: int) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(Star(keep=0.6), pool)
    for name in SHAPES:
        assert_close(merged[name], star(tasks_of(pool, name), 0.6))


@experts_and_seed
@pytest.mark.parametrize("sizes", [(0.3,), (0.02, 0.3, 3.0)])
def test_ace(experts: int, seed: int, sizes: tuple[float, ...]) -> None:
    pool = pool_of(experts, seed, sizes)
    merged = merged_vectors(Ace(epsilon=0.05), pool)
    for name in SHAPES:
        assert_close(merged[name], ace(tasks_of(pool, name), 0.05))


def test_ace_refines_heterogeneous_experts_alone() -> None:
    even, uneven = (pool_of(3, 0, sizes) for sizes in ((0.3,), (0.02, 0.3, 3.0)))
    for pool, refined in ((even, False), (uneven, True)):
        least, most = (
            merged_vectors(Ace(rank_fraction=fraction), pool)["square"] for fraction in (0.01, 0.9)
        )
        assert torch.equal(least, most) is not refined


@experts_and_seed
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_orthomerge(experts: int, seed: int, size: float) -> None:
    pool = pool_of(experts, seed, (size,))
    merged = merged_vectors(Orthomerge(), pool)
    for name in SHAPES:
        assert_close(merged[name], orthomerge(pool["base"][name].double(), tasks_of(pool, name)))
    assert_close(merged["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_a_half_turn_is_named() -> None:
    pool = {"base": {"w": torch.eye(4)}, "models": {"a": {"w": -torch.eye(4)}}}
    with pytest.raises(FusionError, match="w: an expert turns the base by 180 degrees"):
        merge(Orthomerge(), pool).tensor("w")


def test_orthomerge_of_two_rotations_is_between_them() -> None:
    """Rotations of the plane by 20 and 40 degrees: the mean in the Lie algebra is not quite 30."""
    angles = torch.tensor([20.0, 40.0], dtype=torch.float64).deg2rad()
    rotations = [torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in angles]
    pool = {
        "base": {"w": torch.eye(2)},
        "models": {"a": {"w": rotations[0]}, "b": {"w": rotations[1]}},
    }
    between = 2 * torch.atan((angles / 2).tan().mean())
    expected = torch.tensor([[between.cos(), -between.sin()], [between.sin(), between.cos()]])
    assert_close(merge(Orthomerge(), pool).tensor("w").double(), expected, 1e-6)


@experts_and_seed
@pytest.mark.parametrize("shared", [0.0, 0.5, -1.0])
@pytest.mark.parametrize(("rank", "head_scale"), [(1, 0.2), (3, 0.7)])
def test_resmerge(experts: int, seed: int, shared: float, rank: int, head_scale: float) -> None:
    """Experts share a part of their task vectors, or disagree."""
    pool = pool_of(experts, seed, (0.3, 0.1))
    common = pool_of(1, seed + 10)
    for model in pool["models"].values():
        for name in model:
            model[name] += shared * (common["models"]["e0"][name] - common["base"][name])
    if shared < 0 and experts > 1:
        pool["models"]["e1"] = {n: 2 * pool["base"][n] - w for n, w in pool["models"]["e0"].items()}
    algorithm = ResMerge(rank=rank, head_scale=head_scale, beta_min=0.5, beta_max=1.1, scale=0.9)
    merged = merged_vectors(algorithm, pool)
    for name in SHAPES:
        expected = 0.9 * resmerge(tasks_of(pool, name), rank, head_scale, (0.5, 1.1))
        assert_close(merged[name], expected)
    assert_close(merged["vector"], 0.9 * sum(tasks_of(pool, "vector")) / experts)


def test_resmerge_of_task_vectors_without_a_residual_is_their_average() -> None:
    draw = torch.Generator().manual_seed(0)
    models = {
        name: {"w": torch.randn(40, 1, generator=draw) @ torch.randn(1, 30, generator=draw)}
        for name in "ab"
    }
    pool = {"base": {"w": torch.zeros(40, 30)}, "models": models}
    merged = merge(ResMerge(), pool).tensor("w")
    assert_close(merged, (models["a"]["w"] + models["b"]["w"]) / 2, 1e-6)


def opcm(pool: dict[str, Any], names: Iterable[str], alpha: float) -> dict[str, Tensor]:
    """Add one expert after the other to several matrices, and scale the whole after each."""
    layers = [
        dict(zip(names, tasks, strict=True))
        for tasks in zip(*(tasks_of(pool, n) for n in names), strict=True)
    ]
    norms = [torch.stack([task.norm() for task in layer.values()]).norm() for layer in layers]
    merged, factor = layers[0], 1.0
    for number, tasks in enumerate(layers[1:], start=2):
        total = {}
        for name, task in tasks.items():
            total[name] = factor * merged[name] + (
                project(task, merged[name], alpha) if task.dim() > 1 else task
            )
        mean = sum(norms[:number]) / number
        factor = float(torch.stack([part.norm() for part in total.values()]).norm() / mean)
        merged = {name: part / factor for name, part in total.items()}
    return merged


def project(task: Tensor, merged: Tensor, alpha: float) -> Tensor:
    u, s, v = torch.linalg.svd(merged)
    entries = u.T @ task @ v.T
    count = int((s.cumsum(0) / s.sum() > alpha).float().argmax())
    entries.diagonal().fill_(0)
    entries[:count, :count] = 0
    return u @ entries @ v


@experts_and_seed
@pytest.mark.parametrize("alpha", [0.5, 0.0, 0.8])
def test_opcm(experts: int, seed: int, alpha: float) -> None:
    pool = pool_of(experts, seed, (0.3, 0.1))
    merged = merged_vectors({"name": "opcm", "project": {"alpha": alpha}}, pool)
    expected = opcm(pool, [*SHAPES, "vector"], alpha)
    for name, values in expected.items():
        assert_close(merged[name], values)


def test_a_projected_adapter_keeps_directions_in_which_the_sum_is_zero() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = (
        torch.randn(40, 2, generator=draw) @ torch.randn(2, 30, generator=draw) for _ in "ab"
    )
    pool = {"base": {"w": torch.zeros(40, 30)}, "models": {"a": {"w": one}, "b": {"w": two}}}
    merged = merge([Project(alpha=1), {"name": "task-arithmetic", "scale": 1.0}], pool).tensor("w")
    u, _, v = low_rank(one, 2)
    assert_close(merged, one + two - u @ (u.T @ two @ v.T) @ v)


# --- by descent, and KnOTS ------------------------------------------------------------------------


def wudi(tasks: list[Tensor], steps: int, lr: float) -> Tensor:
    """Descend by autograd, with two products per expert and step."""
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
    flat = [torch.cat([values.abs().flatten() for values in row]).sort().values for row in rows]
    return [values[-max(1, int(density * len(values)))] for values in flat]


def knots(layers: list[list[Tensor]], density: float) -> list[Tensor]:
    """Merge several matrices, whose thresholds are common."""
    bases, coordinates = [], [[] for _ in layers[0]]
    for tasks in layers:
        u, s, v = torch.linalg.svd(torch.cat(tasks, dim=1), full_matrices=False)
        supported = s > 1e-6 * s[0]
        bases.append(u[:, supported])
        split = (torch.diag(s) @ v)[supported].split(tasks[0].shape[1], dim=1)
        for rows, part in zip(coordinates, split, strict=True):
            rows.append(part)
    limits = thresholds(coordinates, density)
    trimmed = [
        [part * (part.abs() >= limit) for part in rows]
        for rows, limit in zip(coordinates, limits, strict=True)
    ]
    merged = []
    for basis, *rows in zip(bases, *trimmed, strict=True):
        sign = torch.stack(rows).sum(0).sign()
        agree = torch.stack([row * (row * sign > 0) for row in rows])
        merged.append(basis @ (agree.sum(0) / (agree != 0).sum(0).clamp(min=1)))
    return merged


def doge(layers: list[list[Tensor]], options: DogeConfig) -> list[Tensor]:
    """Merge several matrices, whose thresholds are common; the descent by autograd."""
    limits = thresholds([list(row) for row in zip(*layers, strict=True)], options.density)
    return [_doge(tasks, limits, options) for tasks in layers]


def _doge(tasks: list[Tensor], limits: list[Tensor], options: DogeConfig) -> Tensor:
    joined = torch.cat(tasks, dim=int(tasks[0].shape[0] <= tasks[0].shape[1]))
    rank, count = int(torch.linalg.matrix_rank(joined)), len(tasks)
    lefts = torch.cat([low_rank(task, max(1, rank // count))[0] for task in tasks], dim=1)
    shared = low_rank(lefts, rank // options.subspace)[0]
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


@pytest.mark.sampled(3)
@experts_and_seed
@pytest.mark.parametrize(("steps", "lr"), [(300, 1e-5), (60, 1e-3), (0, 1.0)])
def test_wudi(experts: int, seed: int, steps: int, lr: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(Wudi(steps=steps, lr=lr), pool)
    for name in SHAPES:
        assert_close(merged[name], wudi(tasks_of(pool, name), steps, lr))
    assert_close(merged["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_wudi_has_the_iterates_of_the_full_gradient() -> None:
    pool = in_fp64(pool_of(3, 3))
    merged = merged_vectors(Wudi(steps=50, lr=1e-2), pool)
    for name in SHAPES:
        assert_close(merged[name], wudi(tasks_of(pool, name), 50, 1e-2), 1e-9)


def test_wudi_ignores_an_expert_that_did_not_move() -> None:
    pool = pool_of(2, 0)
    alone = merged_vectors(Wudi(lr=1e-3), {**pool, "models": dict(pool["models"])})
    pool["models"]["unmoved"] = pool["base"]
    merged = merged_vectors(Wudi(lr=1e-3), pool)
    for name in SHAPES:
        assert_close(merged[name], alone[name], 1e-6)


@pytest.mark.parametrize("widen", [lambda pool: pool, in_fp64], ids=["fp32", "fp64"])
def test_wudi_leaves_the_sum_of_orthogonal_task_vectors_alone(widen: Any) -> None:
    pool = widen(pool_of(3, 6))
    descended, summed = (
        merged_vectors(["orthogonalise", merge_method], pool)
        for merge_method in (Wudi(steps=50, lr=1e-3), {"name": "task-arithmetic", "scale": 1})
    )
    for name in SHAPES:
        assert_close(descended[name], summed[name], 1e-6)  # a step on rounding moves by 1e-3


@experts_and_seed
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_knots(experts: int, seed: int, density: float) -> None:
    pool = pool_of(experts, seed)
    merged = merged_vectors(Knots(density=density, scale=0.6), pool)
    expected = knots([tasks_of(pool, name) for name in SHAPES], density)
    for name, vector in zip(SHAPES, expected, strict=True):
        assert_close(merged[name], 0.6 * vector)
    assert_close(merged["vector"], 0.6 * sum(tasks_of(pool, "vector")) / experts)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_knots_counts_only_directions_of_the_adapters(density: float) -> None:
    draw = torch.Generator().manual_seed(1)
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    pool: dict[str, Any] = {"base": base, "models": {}}
    for expert in ("a", "b", "c"):
        pool["models"][expert] = {
            name: torch.randn(rows, 1, generator=draw) @ torch.randn(1, columns, generator=draw)
            for name, (rows, columns) in SHAPES.items()
        }
    merged = merged_vectors(Knots(density=density), pool)
    expected = knots([tasks_of(pool, name) for name in SHAPES], density)
    for name, vector in zip(SHAPES, expected, strict=True):
        assert torch.linalg.matrix_rank(vector) == 3
        assert_close(merged[name], vector)


def test_knots_of_one_expert_keeps_it_at_full_density() -> None:
    pool = pool_of(1, 0)
    merged = merged_vectors(Knots(density=1), pool)
    for name in pool["base"]:
        assert_close(merged[name], tasks_of(pool, name)[0], 1e-5)


@pytest.mark.parametrize(("experts", "seed"), [(2, 0), (3, 1), (5, 2)])
@pytest.mark.parametrize(("subspace", "density"), [(6, 0.3), (2, 1.0)])
def test_doge(experts: int, seed: int, subspace: int, density: float) -> None:
    pool = in_fp64(pool_of(experts, seed))
    options = DogeConfig(scale=0.5, density=density, subspace=subspace, steps=40, lr=1e-3)
    merged = merged_vectors(Doge(options), pool)
    expected = doge([tasks_of(pool, name) for name in SHAPES], options)
    for name, vector in zip(SHAPES, expected, strict=True):
        assert_close(merged[name], vector, 1e-5)
    assert_close(merged["vector"], sum(tasks_of(pool, "vector")) / experts)


def test_doge_learns_a_correction_for_adapters() -> None:
    """A third of the rank of 6 is shared, which leaves the rest to the correction."""
    pool, draw = in_fp64(pool_of(3, 6)), torch.Generator().manual_seed(8)
    for model in pool["models"].values():
        for name, (rows, columns) in SHAPES.items():
            up, down = torch.randn(rows, 2, generator=draw), torch.randn(2, columns, generator=draw)
            model[name] = pool["base"][name] + up.double() @ down.double()
    options = DogeConfig(scale=0.5, subspace=3, steps=40, lr=1e-3, density=1)
    merged = merged_vectors(Doge(options), pool)
    uncorrected = merged_vectors(Doge(options.model_copy(update={"steps": 0})), pool)
    expected = doge([tasks_of(pool, name) for name in SHAPES], options)
    for name, vector in zip(SHAPES, expected, strict=True):
        assert_close(merged[name], vector, 1e-5)
        assert not torch.allclose(merged[name], uncorrected[name], atol=1e-3)


def test_doge_in_fp32() -> None:
    pool = pool_of(3, 5)
    merged = merged_vectors(Doge(), pool)
    expected = doge([tasks_of(pool, name) for name in SHAPES], DogeConfig())
    for name, vector in zip(SHAPES, expected, strict=True):
        assert_close(merged[name], vector)


# --- matrices inside of tensors -------------------------------------------------------------------

PACKED = {"conv.weight": (6, 2, 2, 2), "mlp.experts.down_proj": (3, 6, 4), "w": (6, 4)}
STORED = {method.__name__: method for method in (TsvM, IsoC, IsoCts, Wudi, Star, Ace, Cart, Doge)}


@pytest.mark.parametrize("name", STORED)
def test_stored_matrices_leave_packed_tensors_to_the_mean(name: str) -> None:
    method = STORED[name]
    draw = torch.Generator().manual_seed(5)
    base = {key: torch.randn(shape, generator=draw) for key, shape in PACKED.items()}
    models = {
        expert: {
            key: value + torch.randn(value.shape, generator=draw) for key, value in base.items()
        }
        for expert in ("a", "b", "c")
    }
    pool = {"base": base, "models": models}
    every, stored = merged_vectors(method(), pool), merged_vectors(method(matrices="stored"), pool)
    if name != "Doge":  # whose thresholds are over all matrices
        assert_close(stored["w"], every["w"], 1e-6)
    for key in ("conv.weight", "mlp.experts.down_proj"):
        assert_close(stored[key], sum(tasks_of(pool, key)) / 3, 1e-5)
        assert not torch.allclose(stored[key], every[key], atol=1e-2), key
    none = merged_vectors(method(matrices="none"), pool)
    assert_close(none["w"], sum(tasks_of(pool, "w")) / 3, 1e-5)
