from __future__ import annotations

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
from fusion_thresholds import kth_largest_magnitudes, selection

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from fusion_core import Piece

_ENOUGH = 2**20


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every decomposition and every search for thresholds."""
    calls: list[str] = []

    def hear(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *arguments: (calls.append(name), function(*arguments))[1]
        )

    hear(singular, "_spectrum")
    hear(selection, "_kth_largest")
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


def _absolute_sum(piece: Piece) -> torch.Tensor:
    return piece.task_vectors.abs().sum().double()


def _scan(folder: Path) -> Scan:
    base, expert = (CheckpointSource(folder / f"{name}.safetensors") for name in ("base", "expert"))
    return Scan(Operands(base, {"a": expert}), [*base.infos.values()], SerialExecutor())


def _second_largest_and_sum(folder: Path, k: int = 2) -> tuple[float, float]:
    scan = _scan(folder)
    total = scan(_absolute_sum, torch.add, torch.zeros((), dtype=torch.float64))
    return float(kth_largest_magnitudes(scan, k)), float(total)


def test_passes_over_files_are_shared_until_a_file_changes(
    tmp_path: Path, computed: list[str]
) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "base.safetensors")
    save_file({"w": torch.arange(4.0)}, tmp_path / "expert.safetensors")
    with ResultCache(_ENOUGH):
        assert [_second_largest_and_sum(tmp_path) for _ in range(2)] == [(2.0, 6.0)] * 2
        assert computed == ["_kth_largest"]
        assert _second_largest_and_sum(tmp_path, k=1) == (3.0, 6.0)
        save_file({"w": 2 * torch.arange(4.0)}, tmp_path / "expert.safetensors")
        assert _second_largest_and_sum(tmp_path) == (4.0, 12.0)


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
