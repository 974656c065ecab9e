"""Task vectors of low rank, as adapters have, and task vectors of zero."""

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


def merge_experts(algorithm: object, base: Tensor, experts: list[Tensor]) -> Tensor:
    models = {f"e{number}": {"w": base + task} for number, task in enumerate(experts)}
    result = merge(algorithm, {"base": {"w": base}, "models": models})
    return result.tensor("w") - base


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
        [{"name": "isotropise", "common_fraction": 0.4}, SUM],
        {"name": "cart", "rank_fraction": 0.3},
        "resmerge",
        ["project", SUM],
        [{"name": "truncate", "by": "fraction", "keep": 0.5}, SUM],
        [SUM, "svc"],
    ],
    ids=str,
)
def test_a_merge_in_a_subspace_is_the_merge_of_its_core(
    algorithm: object, shape: tuple[int, int]
) -> None:
    """Matrices L C_k R' merge to L (the merge of the C_k) R', whatever their size."""
    left, right = orthonormal(shape[0], 1), orthonormal(shape[1], 2)
    experts = [left @ core @ right.T for core in cores(3)]
    result = merge_experts(algorithm, torch.zeros(shape, dtype=torch.float64), experts)
    core = merge_experts(algorithm, torch.zeros(RANK, RANK, dtype=torch.float64), cores(3))
    torch.testing.assert_close(result, left @ core @ right.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["iso-c", "iso-cts", "tsv-m"])
def test_orthogonal_adapters_keep_their_length(method: str, dtype: torch.dtype) -> None:
    """The merge is as long as the sum of the adapters."""
    draw = torch.Generator().manual_seed(3)
    pairs = [[torch.randn(96, 2, generator=draw) for _ in range(2)] for _ in range(4)]
    experts = [(up @ down.T / 100).to(dtype) for up, down in pairs]
    result = merge_experts(method, torch.randn(96, 96, generator=draw).to(dtype), experts)
    total = torch.linalg.norm(sum(experts))
    assert 0.8 * total < torch.linalg.norm(result) < 1.2 * total


def test_iso_cts_of_opposite_adapters_has_no_directions_of_rounding() -> None:
    draw = torch.Generator().manual_seed(4)
    task = torch.randn(40, 2, generator=draw) @ torch.randn(2, 40, generator=draw)
    result = merge_experts("iso-cts", torch.zeros(40, 40), [task, -task])
    assert torch.linalg.matrix_rank(result) <= 2
    result = merge_experts(
        {"name": "iso-cts", "common_fraction": 0}, torch.zeros(40, 40), [task, task]
    )
    assert torch.linalg.matrix_rank(result) <= 2


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (0.01, 10.0)], ids=["even", "uneven"])
@pytest.mark.parametrize("method", [Ace(threshold=0.5), Wudi(lr=1e-3)], ids=["ace", "wudi"])
def test_an_expert_that_did_not_move_does_not_count(
    method: object, sizes: tuple[float, float]
) -> None:
    experts = [core * size for core, size in zip(cores(2), sizes, strict=True)]
    base = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(5)).double()
    with_zero = [experts[0], torch.zeros_like(base), experts[1]]
    torch.testing.assert_close(
        merge_experts(method, base, with_zero), merge_experts(method, base, experts)
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        *("iso-c", "iso-cts", "wudi", "ace", "tsv-m", "star", "doge"),
        *([{"name": name}, SUM] for name in ("orthogonalise", "isotropise")),
    ],
    ids=str,
)
def test_a_matrix_that_no_expert_changed_is_not_decomposed(
    algorithm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        pytest.fail("an embedding would take gigabytes and seconds")

    for name in ("eigh", "svd", "qr"):
        monkeypatch.setattr(torch.linalg, name, fail)
    unchanged = torch.zeros(RANK, RANK)
    assert not merge_experts(algorithm, torch.ones(RANK, RANK), [unchanged, unchanged]).any()


def test_ace_of_an_expert_that_hardly_moved_stays_near_the_experts() -> None:
    """Without a bound, the ridge over the trace of its covariance would be 1e6."""
    experts = [cores(2)[0], cores(2)[1] * 1e-5]
    result = merge_experts(Ace(threshold=0), torch.zeros(RANK, RANK, dtype=torch.float64), experts)
    assert result.abs().max() < 3 * experts[0].abs().max()


def test_ace_averages_a_matrix_of_one_row() -> None:
    experts = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])]
    torch.testing.assert_close(
        merge_experts("ace", torch.zeros(1, 3), experts), torch.full((1, 3), 2.0)
    )
