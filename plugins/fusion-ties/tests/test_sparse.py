"""Transforms that drop entries, and the methods that combine one of them with a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import RunContext, merge
from fusion_core.errors import RecipeError
from fusion_core.weights import sum_in_order
from fusion_ties.dropping import Drop, MagPrune
from fusion_ties.sparse import Breadcrumbs, Dare, Della
from fusion_ties.transforms import Band
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights import WeightSource

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {
    "m": (13, 7),
    "v": (29,),
    "s": (),
    "t": (3, 2, 5),
    "e": (0, 3),
}


def models(seed: int = 0, experts: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def state() -> State:
        return {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in SHAPES.items()}

    base = state()
    experts_by_name = {
        f"e{n}": {k: base[k] + v for k, v in state().items()} for n in range(experts)
    }
    return {"base": base, "models": experts_by_name}


def on_zeros(*rows: list[float] | torch.Tensor) -> dict[str, Any]:
    """Return models with a base of zero, so that the experts are the task vectors, in `w`."""
    tensors = [torch.as_tensor(row, dtype=torch.float64) for row in rows]
    experts = {f"e{n}": {"w": row} for n, row in enumerate(tensors)}
    return {"base": {"w": torch.zeros_like(tensors[0])}, "models": experts}


def sum_after(transform: Any, models: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """Return the sum of the transformed task vectors of `w`."""
    pool = RunContext(seed=seed).transform(CheckpointsPool(CheckpointsConfig(**models)), transform)
    return sum_in_order(expert.tensor("w") for expert in pool.experts.values())


# --- at random ----------------------------------------------------------------------------------


def test_dare_is_drop_and_a_sum() -> None:
    pool = models()
    merged, parts = merge(Dare(), pool), merge(["drop", "task-arithmetic"], pool)
    assert all(torch.equal(merged.tensor(name), parts.tensor(name)) for name in SHAPES)


def test_della_is_magprune_and_an_untrimmed_ties() -> None:
    pool = models()
    ties = {"name": "ties", "density": 1.0, "scope": "tensor", "zero_sign": "positive"}
    merged, parts = merge(Della(), pool), merge(["magprune", ties], pool)
    assert all(torch.equal(merged.tensor(name), parts.tensor(name)) for name in SHAPES)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_drop_keeps_its_fraction_and_divides_by_it(density: float) -> None:
    row = torch.randn(100, 200, dtype=torch.float64)
    merged = sum_after(Drop(density=density), on_zeros(row))
    is_kept = merged != 0
    assert torch.equal(merged[is_kept], row[is_kept] / density)
    share = float(is_kept.double().mean())
    assert share == pytest.approx(density, abs=4 * (density * (1 - density) / row.numel()) ** 0.5)


def drop(models: dict[str, Any], seed: int) -> Mapping[str, WeightSource]:
    pool = CheckpointsPool(CheckpointsConfig(**models))
    return RunContext(seed=seed).transform(pool, Drop()).experts


def test_experts_tensors_and_seeds_drop_independent_entries() -> None:
    ones = torch.ones(50, 50, dtype=torch.float64)
    pool = {
        "base": {"w": 0 * ones, "x": 0 * ones},
        "models": {name: {"w": ones, "x": ones} for name in ("a", "b")},
    }
    masks = [
        source.tensor(name) != 0
        for seed in (0, 1)
        for source in drop(pool, seed).values()
        for name in ("w", "x")
    ]
    for number, one in enumerate(masks):
        for other in masks[:number]:  # independent masks agree in half of the entries
            assert float((one == other).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("transform", [Drop(density=0.3), MagPrune(density=0.4, epsilon=0.3)])
def test_the_expected_value_of_every_entry_is_the_entry(transform: Any) -> None:
    row = torch.tensor([[1.0, -2.0, 3.0, -4.0], [40.0, 30.0, -20.0, 10.0]])
    runs = 800
    mean = sum(sum_after(transform, on_zeros(row), seed) for seed in range(runs)) / runs
    torch.testing.assert_close(mean, row.double(), rtol=0.25, atol=0)


def test_l1_restores_each_experts_sum_of_magnitudes_in_each_tensor() -> None:
    rows = [torch.randn(30, 40, dtype=torch.float64) * size for size in (1e-9, 1e3)]
    for transform in (Drop(density=0.2, rescale="l1"), MagPrune(density=0.2, rescale="l1")):
        for row in rows:
            merged = sum_after(transform, on_zeros(row))
            assert float(merged.abs().sum()) == pytest.approx(float(row.abs().sum()), rel=1e-12)
            factors = (merged / row)[merged != 0]
            torch.testing.assert_close(factors, factors[:1].expand_as(factors))


def test_a_tensor_without_kept_entries_stays_zero() -> None:
    for transform in (Drop(density=0.0, rescale="l1"), MagPrune(density=0.0)):
        assert not sum_after(transform, on_zeros([1.0, 2.0])).any()
    assert not sum_after(Drop(density=1e-9, rescale="l1"), on_zeros([1.0, 2.0])).any()


@pytest.mark.parametrize("rescale", ["paper", "l1"])
@pytest.mark.parametrize("name", ["drop", "magprune", "band"])
def test_density_one_changes_nothing(name: str, rescale: str) -> None:
    options = {} if name == "band" else {"rescale": rescale}
    pool = models()
    merged = merge([{"name": name, "density": 1.0, **options}, "task-arithmetic"], pool)
    plain = merge("task-arithmetic", pool)
    assert all(torch.equal(merged.tensor(name), plain.tensor(name)) for name in SHAPES)


def test_magprune_keeps_by_the_rank_in_a_row() -> None:
    """In each row the probabilities go from density - epsilon to density + epsilon, evenly."""
    draw = torch.Generator().manual_seed(0)
    row = torch.rand(2000, 5, generator=draw, dtype=torch.float64) + 0.1
    merged = sum_after(MagPrune(density=0.5, epsilon=0.4), on_zeros(row))
    probabilities = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    expected = probabilities[row.argsort(1).argsort(1)]
    is_kept = merged != 0
    torch.testing.assert_close(merged[is_kept], (row / expected)[is_kept])
    for probability in probabilities:
        share = float(is_kept[expected == probability].double().mean())
        assert share == pytest.approx(float(probability), abs=0.05)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_a_row_of_one_entry_is_kept_by_the_density(shape: tuple[int, ...]) -> None:
    pool, runs = on_zeros(torch.ones(shape)), 400
    total = sum(
        sum_after(MagPrune(density=0.6, epsilon=0.4), pool, seed).mean() for seed in range(runs)
    )
    assert float(total) * 0.6 / runs == pytest.approx(0.6, abs=0.1)


# --- both tails ---------------------------------------------------------------------------------


def dense_band(row: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Keep a range of the sorted magnitudes, and entries equal to either end of it."""
    flat = row.flatten()
    if not flat.numel() or density == 0:
        return torch.zeros_like(row)
    count = max(1, int(density * flat.numel()))
    start = min(int(gamma * flat.numel()), flat.numel() - count)
    within = flat.abs().sort(descending=True).values[start : start + count]
    inside = (flat.abs() >= within.min()) & (flat.abs() <= within.max())
    return (flat * inside).reshape(row.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("density", "gamma"), [(0.0, 0.1), (0.1, 0.01), (0.3, 0.4), (0.8, 0.5), (1.0, 0.2)]
)
def test_breadcrumbs_are_the_dense_definition(
    density: float, gamma: float, seed: int, dtype: torch.dtype
) -> None:
    pool = models(seed, dtype=dtype)
    method = Breadcrumbs(density=density, gamma=gamma, scale=0.5, weights=[1, 0.5, 2])
    merged = merge(method, pool)
    for name in SHAPES:
        base = pool["base"][name].double()
        rows = [model[name].double() - base for model in pool["models"].values()]
        total = sum(
            w * dense_band(r, density, gamma) for w, r in zip([1, 0.5, 2], rows, strict=True)
        )
        expected = base + 0.5 * total
        torch.testing.assert_close(merged.tensor(name).double(), expected.to(dtype).double())


def test_a_band_computed_by_hand() -> None:
    # Of ten entries, one is dropped at the top (10) and three are kept: 8, -8 and 7, and with
    # them -7, of equal magnitude.
    row = [1.0, -2.0, 3.0, 4.0, 7.0, -7.0, 8.0, -8.0, 10.0, 0.0]
    merged = sum_after(Band(density=0.3, gamma=0.1), on_zeros(row))
    assert merged.tolist() == [0, 0, 0, 0, 7, -7, 8, -8, 0, 0]


def test_breadcrumbs_elects_signs_after_dropping() -> None:
    # The largest entry is dropped. 1 and -3 elect minus; 2 and -2 cancel, which elects plus.
    pool = on_zeros([1.0, 2.0, 9.0], [-3.0, -2.0, 9.0])
    method = Breadcrumbs(density=0.7, gamma=0.34, elect="ties", scale=1.0)
    assert merge(method, pool).tensor("w").tolist() == [-3, 2, 0]


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "epsilon", "most"), [(0.5, 0.6, "0.5"), (0.9, 0.2, "0.1"), (0.1, 0.15, "0.1")]
)
def test_density_and_epsilon_give_probabilities(density: float, epsilon: float, most: str) -> None:
    with pytest.raises(RecipeError, match=f"epsilon can be at most {most}"):
        Della(density=density, epsilon=epsilon)
    MagPrune(density=1.0, epsilon=epsilon)


@pytest.mark.parametrize("weights", [[1, -1, 0], [0.1, 0.2, -0.3]])
def test_weights_that_cancel_cannot_be_normalised(weights: list[float]) -> None:
    pool = on_zeros([1.0, 2.0], [5.0, 7.0], [1.0, 1.0])
    method = Dare(density=1.0, weights=weights, normalize=True, scale=1.0)
    with pytest.raises(RecipeError, match=r"weights sum to \S+, which cannot be normalised"):
        merge(method, pool)


def test_a_merge_of_no_weight_is_the_base() -> None:
    method = Dare(density=1.0, weights=[0, 0], normalize=True, scale=1.0)
    assert merge(method, on_zeros([1.0, 2.0], [5.0, 7.0])).tensor("w").tolist() == [0, 0]
