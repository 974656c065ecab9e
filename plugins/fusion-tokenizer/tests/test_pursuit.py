"""Sparse coding against least squares from scratch, and against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from fusion_tokenizer.neighbours import Neighbours
from fusion_tokenizer.pursuit import Pursuit


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pursue(target: torch.Tensor, atoms: torch.Tensor, k: int) -> tuple[list[int], torch.Tensor]:
    """Choose atoms one by one, and solve each least-squares problem from scratch."""
    chosen: list[int] = []
    residual, solution = target, torch.zeros(0)
    for _ in range(k):
        scores = (atoms @ residual).abs()
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        solution = torch.linalg.lstsq(atoms[chosen].T, target[:, None]).solution[:, 0]
        residual = target - atoms[chosen].T @ solution
    return chosen, solution


@pytest.mark.parametrize(("count", "width", "k"), [(200, 24, 1), (200, 24, 12), (30, 24, 24)])
def test_it_chooses_and_fits_like_least_squares_from_scratch(
    count: int, width: int, k: int
) -> None:
    atoms = random(count, width) * torch.linspace(0.5, 2, count)[:, None]
    targets = random(17, width, seed=1)
    chosen, coefficients = Pursuit(atoms, k)(targets)
    for row, target in enumerate(targets):
        expected, solution = pursue(target, atoms, k)
        assert chosen[row].tolist() == expected
        torch.testing.assert_close(coefficients[row], solution, rtol=1e-8, atol=1e-10)


def test_it_equals_scikit_learns_on_unit_atoms() -> None:
    atoms, targets = torch.nn.functional.normalize(random(150, 32)), random(9, 32, seed=1)
    chosen, coefficients = Pursuit(atoms, 10)(targets)
    dense = torch.zeros(9, 150, dtype=torch.float64).scatter_(1, chosen, coefficients)
    expected = orthogonal_mp(atoms.T.numpy(), targets.T.numpy(), n_nonzero_coefs=10)
    torch.testing.assert_close(dense, torch.from_numpy(expected).T, rtol=1e-8, atol=1e-10)


def test_fp32_fits_as_well_as_fp64() -> None:
    atoms, targets = random(500, 48), random(40, 48, seed=1)
    errors = []
    for dtype in (torch.float32, torch.float64):
        chosen, coefficients = Pursuit(atoms.to(dtype), 32)(targets.to(dtype))
        fit = torch.einsum("tk,tkw->tw", coefficients, atoms[chosen])
        errors.append((fit - targets).norm(dim=1))
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-4, atol=0)


def test_repeated_atoms_and_exact_targets_end_early() -> None:
    atoms = random(20, 8).repeat(3, 1)
    targets = torch.cat([atoms[:2] * 3, atoms[2:4] - 2 * atoms[4:6], random(3, 8, seed=1)])
    chosen, coefficients = Pursuit(atoms, 16)(targets)
    fit = torch.einsum("tk,tkw->tw", coefficients, atoms[chosen])
    torch.testing.assert_close(fit, targets)
    assert ((coefficients != 0).sum(1) <= 8).all()  # a ninth atom would be dependent
    assert coefficients.isfinite().all()


def test_a_batch_does_not_affect_its_targets() -> None:
    atoms, targets = random(60, 16), random(12, 16, seed=1)
    targets[3] = atoms[7]  # ends after one atom, while the others go on
    _, together = Pursuit(atoms, 8)(targets)
    alone = torch.cat([Pursuit(atoms, 8)(target[None])[1] for target in targets])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_neighbours_are_weighted_by_inverse_distance() -> None:
    points, targets = random(100, 12), random(15, 12, seed=1)
    targets[4] = points[9]
    chosen, weights = Neighbours(points, 7)(targets)
    for row, target in enumerate(targets):
        distances = (points - target).norm(dim=1)
        nearest = distances.argsort()[:7]
        assert chosen[row].sort().values.equal(nearest.sort().values)
        expected = 1 / distances[chosen[row]].clamp(min=1e-6)
        torch.testing.assert_close(weights[row], expected / expected.sum())
    assert weights[4].max() > 0.999_99
