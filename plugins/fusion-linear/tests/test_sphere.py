"""Methods on the sphere, Model Stock and MetaGPT, against loops in fp64 and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fusion_core import merge
from fusion_core.errors import RecipeError

Vector = torch.Tensor


def pool_of(base: Any, *experts: Any) -> dict[str, Any]:
    def state(values: Any) -> dict[str, torch.Tensor]:
        return {"w": torch.as_tensor(values, dtype=torch.float64)}

    models = {f"e{number}": state(values) for number, values in enumerate(experts)}
    return {"models": models, **({} if base is None else {"base": state(base)})}


def make_models(
    shape: tuple[int, ...], seed: int, experts: int, spread: float
) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw, dtype=torch.float64)
    models = [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(experts)]
    return [base, *(base + spread * model for model in models)]


def merge_tensor(algorithm: str, pool: dict[str, Any], **options: Any) -> torch.Tensor:
    return merge({"name": algorithm, **options}, pool).tensor("w").double()


def angle(one: Vector, other: Vector) -> float:
    return math.acos(max(-1.0, min(1.0, float(one @ other / (one.norm() * other.norm())))))


def arc(one: Vector, other: Vector, t: float) -> Vector:
    between = angle(one, other)
    parts = (math.sin((1 - t) * between) * one, math.sin(t * between) * other)
    return sum(parts) / math.sin(between)


# --- slerp ---------------------------------------------------------------------------------------


def test_slerp_on_a_circle() -> None:
    pool = pool_of(None, [2.0, 0.0], [0.0, 2.0])
    root = math.sqrt(2)
    assert merge_tensor("slerp", pool).tolist() == pytest.approx([root, root])
    third = [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]
    assert merge_tensor("slerp", pool, t=1 / 3).tolist() == pytest.approx(third)
    assert merge_tensor("slerp", pool, t=0).tolist() == [2, 0]
    assert merge_tensor("slerp", pool, t=1).tolist() == pytest.approx([0, 2])


def test_slerp_is_between_base_and_expert_or_between_two_experts() -> None:
    base, one, two = make_models((6, 50), 0, 2, spread=1.0)
    from_base = arc(base.double().ravel(), one.double().ravel(), 0.3).reshape(6, 50)
    torch.testing.assert_close(
        merge_tensor("slerp", pool_of(base, one), t=0.3), from_base, rtol=1e-9, atol=1e-12
    )
    between = merge_tensor("slerp", pool_of(None, one, two), t=0.3)
    torch.testing.assert_close(
        merge_tensor("slerp", pool_of(base, one, two), t=0.3), between, rtol=0, atol=0
    )
    with pytest.raises(RecipeError, match="one expert and no base"):
        merge_tensor("slerp", pool_of(None, one))
    with pytest.raises(RecipeError, match="takes 1 to 2 experts"):
        merge_tensor("slerp", pool_of(base, one, two, one))


def test_slerp_of_nearly_parallel_models_is_a_straight_line() -> None:
    base, one = make_models((300,), 0, 1, spread=0.02)
    line = 0.7 * base.double() + 0.3 * one.double()
    torch.testing.assert_close(
        merge_tensor("slerp", pool_of(base, one), t=0.3), line, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("mode", "vectors"), [("row", 1), ("column", 0)])
def test_nuslerp_interpolates_every_row_or_column(mode: str, vectors: int) -> None:
    base, one, two = make_models((5, 7), 1, 2, spread=0.5)
    pairs = zip(
        (one - base).double().movedim(vectors, 1),
        (two - base).double().movedim(vectors, 1),
        strict=True,
    )
    moved = torch.stack([arc(*pair, 0.75) for pair in pairs]).movedim(1, vectors)
    options = {"mode": mode, "weights": [1, 3]}
    merged = merge_tensor("nuslerp", pool_of(base, one, two), **options)
    torch.testing.assert_close(merged, base.double() + moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["flat", "row", "column"])
def test_nuslerp_of_opposite_vectors_is_a_straight_line(mode: str) -> None:
    """The vectors are opposite up to rounding, and one is twice as long."""
    draw = torch.Generator().manual_seed(3)
    vector = torch.randn(6, 6, generator=draw)
    other = -2 * vector + 1e-6 * torch.randn(6, 6, generator=draw)
    expected = (vector + other).double() / 2
    merged = merge_tensor("nuslerp", pool_of(torch.zeros(6, 6), vector, other), mode=mode)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_nuslerp_refuses_weights_that_cancel() -> None:
    with pytest.raises(RecipeError, match="sum to 0, which cannot be normalised"):
        merge_tensor("nuslerp", pool_of(None, [1.0], [2.0]), weights=[1, -1])


# --- means ---------------------------------------------------------------------------------------


def test_multi_slerp_has_the_mean_direction_and_the_mean_norm() -> None:
    pool = pool_of([0.0, 0.0], [3.0, 0.0], [0.0, 1.0])
    assert merge_tensor("multi-slerp", pool).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])
    weighted = merge_tensor("multi-slerp", pool, weights=[4, 3])  # norm 15/7 along (4, 3)
    assert weighted.tolist() == pytest.approx([12 / 7, 9 / 7])


@pytest.mark.parametrize("experts", [2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_logarithms_of_the_experts_cancel_at_the_karcher_mean(seed: int, experts: int) -> None:
    _, *models = make_models((4, 30), seed, experts, spread=1.0)
    weights = [1.0, 2.0, 0.5, 1.5][:experts]
    mean = merge_tensor(
        "karcher", pool_of(None, *models), weights=weights, iterations=50, tolerance=1e-9
    )
    mean = mean.ravel()
    shares = [weight / sum(weights) for weight in weights]
    norms = sum(s * float(m.double().norm()) for s, m in zip(shares, models, strict=True))
    assert float(mean.norm()) == pytest.approx(norms, rel=1e-5)
    total = torch.zeros_like(mean)
    for share, model in zip(shares, models, strict=True):
        vector, point = model.double().ravel(), mean / mean.norm()
        tangent = vector / vector.norm() - point * (point @ vector) / vector.norm()
        total += share * angle(vector, mean) * tangent / tangent.norm()
    assert float(total.norm()) < 1e-5


def test_weights_that_cancel_in_a_tensor_give_the_weighted_mean() -> None:
    one, other, zero = torch.randn(40), torch.randn(40), torch.zeros(40)
    pool = pool_of(None, one, other, zero)
    merged = merge_tensor("karcher", pool, weights=[1, -1, 1])
    torch.testing.assert_close(merged, (one - other).to(merged.dtype))


def test_karcher_without_steps_is_multi_slerp() -> None:
    _, *models = make_models((40,), 3, 3, spread=1.0)
    pool = pool_of(None, *models)
    one, other = merge_tensor("karcher", pool, iterations=0), merge_tensor("multi-slerp", pool)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.allclose(one, merge_tensor("karcher", pool), atol=1e-5)


# --- factors from norms and angles ---------------------------------------------------------------


def stock(tasks: list[Vector], mean_of: str = "cosines") -> Vector:
    """Model Stock's task vector, by loops over pairs."""
    angles = [angle(a, b) for n, a in enumerate(tasks) for b in tasks[:n]]
    mean = sum(map(math.cos, angles)) / len(angles)
    if mean_of == "angles":
        mean = math.cos(sum(angles) / len(angles))
    ratio = len(tasks) * mean / (1 + (len(tasks) - 1) * mean)
    return ratio * sum(tasks) / len(tasks)


@pytest.mark.parametrize(
    ("experts", "scope", "mean_of"),
    [(2, "tensor", "cosines"), (5, "tensor", "angles"), (5, "model", "cosines")],
)
def test_model_stock_has_one_ratio_per_scope(experts: int, scope: str, mean_of: str) -> None:
    states = [
        {"w": w, "b": b}
        for w, b in zip(
            make_models((8, 9), 1, experts, spread=0.1),
            make_models((11,), 2, experts, spread=0.3),
            strict=True,
        )
    ]
    base, *models = states
    pool = {"base": base, "models": {str(n): model for n, model in enumerate(models)}}
    merged = merge({"name": "model-stock", "scope": scope, "mean_of": mean_of}, pool)
    for names in [["w", "b"]] if scope == "model" else [["w"], ["b"]]:
        tasks = [
            torch.cat([(model[n].double() - base[n].double()).ravel() for n in names])
            for model in models
        ]
        moved = torch.cat([(merged.tensor(n).double() - base[n].double()).ravel() for n in names])
        torch.testing.assert_close(moved, stock(tasks, mean_of), rtol=1e-9, atol=1e-12)


def test_model_stock_of_rows_takes_each_row_as_a_tensor() -> None:
    base, *experts = make_models((4, 9), 3, 3, spread=0.1)
    options = {"name": "model-stock", "mean_of": "angles"}

    def merge_rows(states: list[dict[str, Vector]], **more: str) -> dict[str, Vector]:
        pool = {"base": states[0], "models": {str(n): s for n, s in enumerate(states[1:])}}
        merged = merge({**options, **more}, pool)
        return {name: merged.tensor(name) for name in states[0]}

    whole = merge_rows([{"w": model} for model in (base, *experts)], scope="row")["w"]
    rows = merge_rows([{str(n): row for n, row in enumerate(model)} for model in (base, *experts)])
    torch.testing.assert_close(whole, torch.stack([*rows.values()]), rtol=1e-7, atol=0)


def test_model_stock_at_known_angles() -> None:
    at_60 = pool_of([0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)])  # c = 1/2, t = 2/3
    assert merge_tensor("model-stock", at_60).tolist() == pytest.approx([1, math.sqrt(3) / 3])
    for other in ([0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]):  # orthogonal, opposite, zero
        assert merge_tensor(
            "model-stock", pool_of([1.0, 1.0], [2.0, 1.0], [1 + n for n in other])
        ).tolist() == pytest.approx([1, 1])


def test_metagpt_weighs_by_squared_norms_over_the_model() -> None:
    base = {"x": torch.zeros(2), "y": torch.zeros(1)}
    a = {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([0.0])}
    b = {"x": torch.tensor([0.0, 1.0]), "y": torch.tensor([2**0.5])}
    merged = merge("metagpt", {"base": base, "models": {"a": a, "b": b}})
    assert merged.tensor("x").tolist() == pytest.approx([1 / 4, 3 / 4])
    assert merged.tensor("y").tolist() == pytest.approx([3 / 4 * 2**0.5])
