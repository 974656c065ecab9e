"""Methods that choose among the experts' entries, against loops over entries in fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import merge
from fusion_core.errors import RecipeError
from fusion_ties.electing import Consensus, MagMax
from fusion_ties.ram import Ram
from fusion_ties.sce import Sce

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHAPES: dict[str, tuple[int, ...]] = {"m": (13, 7), "v": (29,), "s": (), "t": (3, 2, 5)}
Rows = list[list[float]]


def models(seed: int, experts: int = 3) -> dict[str, Any]:
    """Return models in fp64 whose task vectors are integers, many of them equal or zero."""
    draw = torch.Generator().manual_seed(seed)
    base = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in SHAPES.items()}
    experts_by_name = {
        f"e{n}": {
            k: (4 * torch.randn(shape, generator=draw, dtype=torch.float64)).round()
            for k, shape in SHAPES.items()
        }
        for n in range(experts)
    }
    return {"base": base, "models": experts_by_name}


def check(method: Any, pool: dict[str, Any], expected: Callable[[Rows], list[float]]) -> None:
    """Compare a merge with `expected`, which takes a tensor's flat task vectors as lists."""
    merged = merge(method, pool)
    for name, shape in SHAPES.items():
        rows = [model[name].flatten().tolist() for model in pool["models"].values()]
        target = torch.tensor(expected(rows), dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(merged.tensor(name), target, rtol=1e-9, atol=0)


def sign_of(value: float) -> float:
    return 1.0 if value >= 0 else -1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_magmax_takes_the_largest(seed: int) -> None:
    def expected(rows: Rows) -> list[float]:
        return [0.5 * max(column, key=lambda x: (abs(x), x)) for column in zip(*rows, strict=True)]

    check(MagMax(), models(seed), expected)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("k", "tall_lambda"), [(0, 0.4), (1, 1.0), (2, 0.4), (3, 0.2), (2, 0.0)])
def test_consensus_keeps_entries_that_are_in_enough_masks(
    k: int, tall_lambda: float, seed: int
) -> None:
    def expected(rows: Rows) -> list[float]:
        result = []
        for column in zip(*rows, strict=True):
            total = sum(column)
            masks = sum(abs(x) >= tall_lambda * abs(total - x) for x in column)
            result.append(0.7 * total if masks >= k else 0.0)
        return result

    check(Consensus(k=k, tall_lambda=tall_lambda, scale=0.7), models(seed), expected)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(("r", "alpha"), [(0.0, 0.2), (0.3, 9.0), ([0.1, 0.0, 0.5], 0.4)])
def test_ram_averages_the_changes_that_experts_share(scope: str, r: Any, alpha: float) -> None:
    epsilon, pool = [3.0, 4.0, 2.5], models(0)
    whole = zip(
        *(
            torch.cat([model[name].flatten() for name in SHAPES]).tolist()
            for model in pool["models"].values()
        ),
        strict=True,
    )

    def change(column: tuple[float, ...]) -> list[bool]:
        return [abs(x) > e for x, e in zip(column, epsilon, strict=True)]

    def factors(columns: list[tuple[float, ...]]) -> list[float]:
        masks = [change(column) for column in columns]
        shared = [sum(m[k] for m in masks if sum(m) > 1) for k in range(3)]
        unique = [sum(m[k] for m in masks if sum(m) == 1) for k in range(3)]
        largest = r if isinstance(r, list) else [r] * 3
        ratios = [s / max(u, 1) for s, u in zip(shared, unique, strict=True)]
        return [1 + f * min(ratio, alpha) for f, ratio in zip(largest, ratios, strict=True)]

    of_model = factors(list(whole))

    def expected(rows: Rows) -> list[float]:
        columns = list(zip(*rows, strict=True))
        enlarging = of_model if scope == "model" else factors(columns)
        result = []
        for column in columns:
            mask = change(column)
            alone = enlarging if sum(mask) == 1 else [1 / max(sum(mask), 1)] * 3
            result.append(sum(f * x for f, x, m in zip(alone, column, mask, strict=True) if m))
        return result

    check(Ram(epsilon=epsilon, r=r, alpha=alpha, scope=scope), pool, expected)


def test_a_consensus_computed_by_hand() -> None:
    # The sums are 11, 3, -1. At lambda 0.5 the masks have 10 (10 >= 0.5, but 1 < 5), 1 and 2
    # (1 >= 1), and 5 and -6.
    pool = {
        "base": {"w": torch.zeros(3)},
        "models": {"a": {"w": torch.tensor([10.0, 1, 5])}, "b": {"w": torch.tensor([1.0, 2, -6])}},
    }
    merged = merge(Consensus(tall_lambda=0.5, scale=1.0), pool)
    assert merged.tensor("w").tolist() == [0, 3, -1]


def test_more_masks_than_experts_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"algorithm.k is 4, but there are only 3 expert"):
        merge(Consensus(k=4), models(0))


def sce(density: float, weights: list[float]) -> Callable[[Rows], list[float]]:
    """Return a function that merges one tensor by SCE, with loops."""

    def merge_rows(rows: Rows) -> list[float]:
        columns = list(zip(*rows, strict=True))
        means = [sum(column) / len(column) for column in columns]
        variances = [
            sum((x - mean) ** 2 for x in column) if len(set(column)) > 1 else 0.0
            for column, mean in zip(columns, means, strict=True)
        ]
        varying = sorted((v for v in variances if v), reverse=True)
        count = max(1, int(density * len(varying))) if varying else 0
        low = varying[count - 1] * (1 - 1e-12) if count else float("inf")
        selected = [density == 1 or variance >= low for variance in variances]
        energies = [sum(x * x for x, s in zip(row, selected, strict=True) if s) for row in rows]
        factors = [w * e / (sum(energies) or 1) for w, e in zip(weights, energies, strict=True)]
        result = []
        for column, is_selected in zip(columns, selected, strict=True):
            sign = sign_of(sum(column))
            agree = [(f, x) for f, x in zip(factors, column, strict=True) if x * sign > 0]
            total, share = sum(f * x for f, x in agree), sum(f for f, _ in agree)
            result.append(total / share if is_selected and share else 0.0)
        return result

    return merge_rows


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_sce_equals_its_definition_at_any_size(
    density: float, weights: list[float], size: float
) -> None:
    pool = models(3)
    draw = torch.Generator().manual_seed(3)
    options = {"generator": draw, "dtype": torch.float64}
    for expert in pool["models"].values():
        for entries in expert.values():  # zeros stay, and no two positions vary equally
            entries.mul_(size * (1 + torch.rand(entries.shape, **options)))
    check(Sce(density=density, weights=weights), pool, sce(density, weights))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0, 100, -100])
def test_sce_selects_all_entries_of_equal_variance(
    order: Sequence[int], density: float, dtype: torch.dtype, exponent: int
) -> None:
    rows = [[1, 2, 5, 9, 101, 7], [2, 3, 6, 10, 102, 7], [4, 5, 8, 12, 104, 7]]
    experts = torch.tensor(rows, dtype=torch.float64).mul(2.0**exponent).to(dtype)
    pool = {
        "base": {"w": torch.zeros(6, dtype=dtype)},
        "models": {str(number): {"w": experts[number]} for number in order},
    }
    merged = merge(Sce(density=density), pool).tensor("w")
    assert (merged != 0).tolist() == [True] * 5 + [False]


def test_sce_of_equal_experts_selects_nothing() -> None:
    pool = models(0, experts=1)
    expert = pool["models"]["e0"]
    pool["models"] = dict.fromkeys("abcde", expert)
    full, half = merge(Sce(), pool), merge(Sce(density=0.5), pool)
    for name in SHAPES:
        torch.testing.assert_close(full.tensor(name), expert[name], rtol=1e-12, atol=0)
        assert torch.equal(half.tensor(name), pool["base"][name])


def test_sce_of_experts_of_very_different_sizes() -> None:
    """In fp32 the small expert's share, 1e-40, times its entry would be zero."""
    pool = {
        "base": {"w": torch.zeros(2)},
        "models": {
            "large": {"w": torch.tensor([1.0, 0.0])},
            "small": {"w": torch.tensor([0.0, 1e-20])},
        },
    }
    assert merge(Sce(), pool).tensor("w").tolist() == pytest.approx([1.0, 1e-20], rel=1e-6)
