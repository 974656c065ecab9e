from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.weights import (
    CheckpointSource,
    Operands,
    ResultCache,
    Scan,
    SerialExecutor,
    decompose,
    polar,
)
from fusion_core.weights.merging import singular

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from fusion_core import Piece

_ENOUGH = 2**20


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every decomposition and every pass over weights."""
    calls: list[str] = []

    def hear(owner: ModuleType | type, name: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *arguments: (calls.append(name), function(*arguments))[1]
        )

    hear(singular, "_spectrum")
    hear(Scan, "fold")
    return calls


def test_a_matrix_is_decomposed_once_while_it_is_shared(computed: list[str]) -> None:
    matrix, other = torch.randn(2, 5, 7)
    alone = decompose(matrix), polar(matrix)
    with ResultCache(_ENOUGH):
        first = decompose(matrix)
        computed.clear()
        again = decompose(matrix.clone())
        assert not computed
        again.left.zero_()  # its caller's own
        assert all(map(torch.equal, decompose(matrix), alone[0]))
        assert torch.equal(polar(matrix), alone[1])  # of the same matrix, another function
        assert not torch.equal(decompose(other).values, first.values)
        assert not torch.equal(decompose(matrix.mT).left, first.left)
    computed.clear()
    decompose(matrix)
    assert computed == ["_spectrum"]


def test_results_that_do_not_fit_are_computed_again(computed: list[str]) -> None:
    matrices = torch.randn(2, 4, 4)
    with ResultCache(sum(tensor.nbytes for tensor in decompose(matrices[0]))):
        for _ in range(2):
            computed.clear()
            for matrix in matrices:
                decompose(matrix)
        assert computed == ["_spectrum"]  # the first one is still there


def _sum_of_powers(power: int, piece: Piece) -> torch.Tensor:
    return piece.task_vectors.pow(power).sum().double()


def _scan(folder: Path) -> Scan:
    base, expert = (CheckpointSource(folder / f"{name}.safetensors") for name in ("base", "expert"))
    return Scan(Operands(base, {"a": expert}), [*base.infos.values()], SerialExecutor())


def _sum(folder: Path, power: int) -> float:
    return float(_scan(folder)(partial(_sum_of_powers, power), operator.add, 0.0))


def test_passes_over_files_are_shared_until_a_file_changes(
    tmp_path: Path, computed: list[str]
) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "base.safetensors")
    save_file({"w": torch.arange(4.0)}, tmp_path / "expert.safetensors")
    with ResultCache(_ENOUGH):
        assert [_sum(tmp_path, 1) for _ in range(2)] == [6.0, 6.0]
        assert computed == ["fold"]
        assert [_sum(tmp_path, 2) for _ in range(2)] == [14.0, 14.0]
        assert computed == ["fold"] * 2
        save_file({"w": 2 * torch.arange(4.0)}, tmp_path / "expert.safetensors")
        assert [_sum(tmp_path, power) for power in (1, 2)] == [12.0, 56.0]


def test_passes_by_lambdas_are_not_shared(tmp_path: Path) -> None:
    """Two lambdas look alike, so results of one must not be used for the other."""
    save_file({"w": torch.zeros(4)}, tmp_path / "base.safetensors")
    save_file({"w": torch.arange(4.0)}, tmp_path / "expert.safetensors")
    with ResultCache(_ENOUGH):
        scan = _scan(tmp_path)
        sums = [
            float(scan(lambda piece, n=n: n * piece.task_vectors.sum(), torch.add, torch.zeros(())))
            for n in (1, 2)
        ]
    assert sums == [6.0, 12.0]
