"""Few components of large matrices are found without a decomposition of the whole."""

from __future__ import annotations

import pytest
import torch

from fusion_core.weights import decompose, find_few_components, is_matrix, joint_rank, polar
from fusion_core.weights.merging import singular

HEIGHT, WIDTH, MOST = 300, 200, 25
SHAPES = [(HEIGHT, WIDTH), (WIDTH, HEIGHT)]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _product(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return _random(shape[0], rank, dtype=dtype) @ _random(rank, shape[1], seed=1, dtype=dtype)


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e30])
@pytest.mark.parametrize("rank", [0, 1, 7, MOST])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_components_are_those_of_an_svd(
    shape: tuple[int, int], rank: int, scale: float
) -> None:
    matrix = scale * _product(shape, rank)
    parts = find_few_components(matrix, MOST)
    assert parts is not None
    assert parts.left.shape == (shape[0], rank)
    assert parts.right.shape == (shape[1], rank)
    torch.testing.assert_close(parts.product() / scale, matrix / scale, rtol=1e-5, atol=2e-5)
    exact = torch.linalg.svdvals((matrix / scale).double())[:rank]
    torch.testing.assert_close(parts.values.double() / scale, exact, rtol=1e-5, atol=1e-4)
    for basis in (parts.left, parts.right):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(rank), rtol=0, atol=1e-5)


def test_few_components_in_fp64_miss_no_more_than_fp64_rounds() -> None:
    matrix = _product((HEIGHT, WIDTH), 9, torch.float64)
    parts = find_few_components(matrix, MOST)
    assert parts is not None
    torch.testing.assert_close(parts.product(), matrix, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(_product((HEIGHT, WIDTH), MOST + 1), id="one component too many"),
        pytest.param(_random(HEIGHT, WIDTH), id="all components"),
        pytest.param(
            _product((HEIGHT, WIDTH), 5) + 1e-4 * _random(HEIGHT, WIDTH, seed=2), id="noise"
        ),
        pytest.param(torch.full((HEIGHT, WIDTH), torch.nan), id="nan"),
        pytest.param(_product((HEIGHT, WIDTH), 5).diagonal_scatter(_random(30), 170), id="unseen"),
        pytest.param(torch.full((4, 4), torch.inf), id="infinity"),
    ],
)
def test_no_components_stand_for_a_matrix_that_has_more(matrix: torch.Tensor) -> None:
    assert find_few_components(matrix, MOST) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_functions_of_few_components_agree_with_those_of_the_whole(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = _product(shape, 6)
    rows = torch.stack([matrix, 2 * matrix + _product(shape, 1)])
    short = decompose(matrix), polar(matrix), joint_rank(rows)
    monkeypatch.setattr(singular, "_WIDE", HEIGHT)
    whole = decompose(matrix), polar(matrix), joint_rank(rows)
    assert is_matrix(matrix.shape)
    assert short[0].rank == whole[0].rank == 6
    assert short[2] == whole[2]
    torch.testing.assert_close(short[0].product(), whole[0].product(), rtol=0, atol=1e-5)
    torch.testing.assert_close(short[1], whole[1], rtol=0, atol=1e-6)
