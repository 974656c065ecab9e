"""Task vectors of low rank, and none at all: what adapters are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import merge
from fusion_spectral.ace import Ace
from fusion_spectral.wudi import Wudi

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = {"square": (30, 30), "tall": (48, 26), "wide": (24, 44)}
RANK = 10


def merged(algorithm: object, base: Tensor, experts: list[Tensor]) -> Tensor:
    models = {f"e{number}": {"w": base + task} for number, task in enumerate(experts)}
    found = merge(algorithm, {"base": {"w": base}, "models": models})
    return found.tensor("w") - base


def cores(count: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(RANK, RANK, generator=draw, dtype=torch.float64) for _ in range(count)]


def orthonormal(rows: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, RANK, generator=draw, dtype=torch.float64)).Q


SUM: dict[str, Any] = {"name": "task-arithmetic", "scale": 1.0}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "algorithm",
    [
        "iso-c",
        "iso-cts",
        {"name": "iso-cts", "common_fraction": 0.4},
        {"name": "cart", "rank_fraction": 0.3},
        [{"name": "truncate", "by": "fraction", "keep": 0.5}, SUM],
        [SUM, "svc"],
    ],
    ids=str,
)
def test_what_is_merged_in_a_subspace_is_merged_as_its_core(
    algorithm: object, shape: tuple[int, int]
) -> None:
    """L C_k R' merge to L (the merge of the C_k) R', however much larger the matrix is."""
    left, right = orthonormal(shape[0], 1), orthonormal(shape[1], 2)
    experts = [left @ core @ right.T for core in cores(3)]
    found = merged(algorithm, torch.zeros(shape, dtype=torch.float64), experts)
    core = merged(algorithm, torch.zeros(RANK, RANK, dtype=torch.float64), cores(3))
    torch.testing.assert_close(found, left @ core @ right.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["iso-c", "iso-cts", "tsv-m"])
def test_adapters_that_share_nothing_are_not_lost(method: str, dtype: torch.dtype) -> None:
    """Their sum has the length of all of them, and so has what these make of it."""
    draw = torch.Generator().manual_seed(3)
    pairs = [[torch.randn(96, 2, generator=draw) for _ in range(2)] for _ in range(4)]
    experts = [(up @ down.T / 100).to(dtype) for up, down in pairs]
    found = merged(method, torch.randn(96, 96, generator=draw).to(dtype), experts)
    total = torch.linalg.norm(sum(experts))
    assert 0.8 * total < torch.linalg.norm(found) < 1.2 * total


def test_iso_cts_of_opposite_adapters_has_no_direction_that_is_rounding() -> None:
    draw = torch.Generator().manual_seed(4)
    task = torch.randn(40, 2, generator=draw) @ torch.randn(2, 40, generator=draw)
    found = merged("iso-cts", torch.zeros(40, 40), [task, -task])
    assert torch.linalg.matrix_rank(found) <= 2
    found = merged({"name": "iso-cts", "common_fraction": 0}, torch.zeros(40, 40), [task, task])
    assert torch.linalg.matrix_rank(found) <= 2


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (0.01, 10.0)], ids=["even", "uneven"])
@pytest.mark.parametrize("method", [Ace(threshold=0.5), Wudi(lr=1e-3)], ids=["ace", "wudi"])
def test_an_expert_that_did_not_move_does_not_count(
    method: object, sizes: tuple[float, float]
) -> None:
    experts = [core * size for core, size in zip(cores(2), sizes, strict=True)]
    base = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(5)).double()
    still = [experts[0], torch.zeros_like(base), experts[1]]
    torch.testing.assert_close(merged(method, base, still), merged(method, base, experts))


def test_ace_of_an_expert_that_hardly_moved_is_no_further_away_than_the_experts() -> None:
    """The ridge over the trace of its covariance would be 1e6."""
    experts = [cores(2)[0], cores(2)[1] * 1e-5]
    found = merged(Ace(threshold=0), torch.zeros(RANK, RANK, dtype=torch.float64), experts)
    assert found.abs().max() < 3 * experts[0].abs().max()


def test_ace_averages_a_matrix_of_one_row() -> None:
    experts = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])]
    torch.testing.assert_close(merged("ace", torch.zeros(1, 3), experts), torch.full((1, 3), 2.0))
