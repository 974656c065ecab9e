"""Factors, held against the singular values that LAPACK finds."""

from __future__ import annotations

import math

import pytest
import torch

from fusion_lora import matrix as blocks
from fusion_lora.factorise import compress, factorise
from fusion_lora.matrix import BlockedMatrix


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decaying(height: int, width: int) -> torch.Tensor:
    """Return a matrix with the spectrum of a task vector: a few large values and a long tail."""
    scales = 1 / torch.arange(1, min(height, width) + 1)
    return (noise(height, len(scales)) * scales) @ noise(len(scales), width, seed=1)


def read(values: torch.Tensor, held: int = blocks.HELD) -> BlockedMatrix:
    return BlockedMatrix(*values.shape, lambda first, last: values[first:last], held=held)


def best_error(values: torch.Tensor, rank: int) -> float:
    return torch.linalg.svdvals(values.double())[rank:].norm().item()


@pytest.mark.parametrize("held", [blocks.HELD, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (200, 200)], ids=str)
@pytest.mark.parametrize("rank", [1, 8, 60])
def test_factors_have_the_least_error_of_their_rank(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], rank: int, held: int
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 7 * shape[1])  # blocks that do not divide the rows
    values = decaying(*shape)
    factors = factorise(read(values, held), rank, None, torch.float32)
    assert factors.left.shape == (shape[0], rank)
    assert factors.right.shape == (rank, shape[1])
    error = (values.double() - factors.left.double() @ factors.right.double()).norm().item()
    assert math.sqrt(factors.squared_error) == pytest.approx(error, rel=1e-5)
    assert error == pytest.approx(best_error(values, rank), rel=1e-3)
    assert factors.squared_norm == pytest.approx(values.double().square().sum().item())


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(90, 40), (40, 90)], ids=str)
def test_energy_takes_the_least_rank_that_reaches_it(shape: tuple[int, int], energy: float) -> None:
    values = decaying(*shape)
    factors = factorise(read(values), None, energy, torch.float32)
    shares = torch.linalg.svdvals(values.double()).square().cumsum(0)
    assert factors.rank == int((shares / shares[-1] < energy - 1e-12).sum()) + 1 or energy == 1.0
    share = 1 - factors.squared_error / factors.squared_norm
    assert share >= energy - 1e-6
    if factors.rank > 1 and energy < 1:
        assert shares[factors.rank - 2] / shares[-1] < energy


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    values = noise(400, 6) @ noise(6, 300, seed=1)
    factors = factorise(read(values), 8, None, torch.float32)
    assert math.sqrt(factors.squared_error / factors.squared_norm) < 1e-5


@pytest.mark.parametrize("shape", [(30, 20), (1, 20), (20, 1), (1, 1)], ids=str)
def test_zeros_have_rank_zero_and_thin_matrices_their_own(shape: tuple[int, int]) -> None:
    zeros = factorise(read(torch.zeros(shape)), 4, None, torch.float32)
    assert (zeros.rank, zeros.squared_norm, zeros.squared_error) == (0, 0, 0)
    factors = factorise(read(noise(*shape)), 64, None, torch.float32)
    assert factors.rank == min(shape)
    assert math.sqrt(factors.squared_error / factors.squared_norm) < 1e-5


def test_the_error_counts_the_rounding_of_the_factors() -> None:
    values = noise(60, 6) @ noise(6, 50, seed=1)
    factors = factorise(read(values), 6, None, torch.bfloat16)
    assert factors.left.dtype == factors.right.dtype == torch.bfloat16
    product = factors.left.double() @ factors.right.double()
    error = (values.double() - product).norm().item()
    assert error > 1e-3
    assert math.sqrt(factors.squared_error) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("rank", [None, 3, 12, 40])
@pytest.mark.parametrize("shape", [(80, 12, 60), (10, 12, 60), (80, 12, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_factors_are_kept_or_shortened_optimally(
    shape: tuple[int, int, int], rank: int | None, dtype: torch.dtype
) -> None:
    height, length, width = shape
    left, right = noise(height, length), noise(length, width, seed=1)
    factors = compress(left, right, rank, dtype)
    bound = min(height, length, width, rank or length)
    assert factors.rank == bound
    values = left.double() @ right.double()
    error = (values - factors.left.double() @ factors.right.double()).norm().item()
    size = values.norm().item()
    assert math.sqrt(factors.squared_error) == pytest.approx(error, rel=1e-3, abs=1e-6 * size)
    if dtype is torch.float32:
        assert error == pytest.approx(best_error(values, bound), rel=1e-3, abs=1e-6 * size)
    assert factors.squared_norm == pytest.approx(size**2)
