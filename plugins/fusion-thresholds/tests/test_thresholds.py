"""Exact thresholds against sorting, and trimming and sign election of small tensors."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fusion_core.weights import (
    BLOCK,
    CheckpointSource,
    Cut,
    Operands,
    Piece,
    ResultCache,
    Scan,
    SerialExecutor,
    StateDictSource,
)
from fusion_thresholds import _tally as tally
from fusion_thresholds import (
    agreeing_magnitudes,
    count_for_density,
    elect_sign,
    kth_largest_magnitudes,
    sampling,
    selection,
)
from fusion_thresholds.trimming import trim

if TYPE_CHECKING:
    from pathlib import Path

FP32 = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
FP64 = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
#: The elements of a tensor of two blocks.
_SIZE = BLOCK + 30_001
SHORTEST_RUN = "fusion_core.weights.merging.scan._SHORTEST_RUN"
AWKWARD = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2**-149, -(2**-149), 1e-40, 3.4e38, 1.0000001])


def scan_of(*experts: dict[str, torch.Tensor], cut: Cut = Cut.ELEMENT) -> Scan:
    """Return a scan over experts around a base of zeros, so that they are their task vectors."""
    base = {name: torch.zeros_like(tensor) for name, tensor in experts[0].items()}
    sources = {str(n): StateDictSource(tensors) for n, tensors in enumerate(experts)}
    operands = Operands(StateDictSource(base), sources)
    return Scan(operands, list(StateDictSource(base).infos.values()), SerialExecutor(), cut)


def reference(experts: tuple[dict[str, torch.Tensor], ...], k: int) -> torch.Tensor:
    """Sort everything: the result that streaming must give."""
    flat = [
        torch.cat([tensor.reshape(-1).double() for tensor in expert.values()]).abs()
        for expert in experts
    ]
    return torch.stack([magnitudes.sort(descending=True).values[k - 1] for magnitudes in flat])


def assert_exact(*experts: dict[str, torch.Tensor], k: int, cut: Cut = Cut.ELEMENT) -> None:
    scan = scan_of(*experts, cut=cut)
    magnitudes = kth_largest_magnitudes(scan, k, lambda piece: piece.task_vectors)
    assert magnitudes.shape == (len(experts),)
    assert torch.equal(magnitudes.double(), reference(experts, k))
    wide = any(tensor.dtype is torch.float64 for tensor in experts[0].values())
    assert magnitudes.dtype is (torch.float64 if wide else torch.float32)


class Elsewhere(SerialExecutor):
    """Runs work in this process, but receives it pickled like another process."""

    in_process = False


@pytest.mark.parametrize("guess", [2, 2**16])
@pytest.mark.parametrize("untallied", [0, 10])
def test_other_processes_add_up_their_counts(
    guess: int, untallied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 7)
    monkeypatch.setattr(SHORTEST_RUN, 2)
    monkeypatch.setattr(sampling, "_WORTH_A_GUESS", guess)
    monkeypatch.setattr(selection, "_UNTALLIED", untallied)
    experts = tuple({"w": torch.randn(500).round(decimals=1)} for _ in range(2))
    elsewhere = dataclasses.replace(scan_of(*experts), executor=Elsewhere())
    for k in (1, 60, 250, 500):
        magnitudes = kth_largest_magnitudes(elsewhere, k)
        assert torch.equal(magnitudes.double(), reference(experts, k))


@settings(max_examples=150, deadline=None)
@given(st.lists(FP32 | AWKWARD, min_size=1, max_size=80), st.data())
def test_a_wrong_guess_still_gives_the_exact_result(
    values: list[float], data: st.DataObject
) -> None:
    """Samples of a few elements often mislead; the result must still be exact."""
    k = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    tensor = torch.tensor(values, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion_core.weights.source.BLOCK", data.draw(st.integers(1, 40)))
        patch.setattr(SHORTEST_RUN, data.draw(st.integers(1, 3)))
        patch.setattr(sampling, "_WORTH_A_GUESS", data.draw(st.sampled_from([2, 2**16])))
        patch.setattr(sampling, "_SAMPLED", data.draw(st.integers(1, 8)))
        patch.setattr(sampling, "_MARGIN", data.draw(st.sampled_from([0, 0.5, 6])))
        patch.setattr(selection, "_UNTALLIED", data.draw(st.sampled_from([0, 10])))
        patch.setattr(tally, "_MOST_LISTED", data.draw(st.sampled_from([0, 10, 2**17])))
        patch.setattr(tally, "_GUESSED_BITS", data.draw(st.sampled_from([1, 12, 20])))
        assert_exact({"x": tensor[:cut], "y": tensor[cut:]}, k=k)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "values",
    {
        "normal": lambda g: torch.randn(_SIZE, generator=g),
        "mostly zero": lambda g: torch.randn(_SIZE, generator=g).relu() * 1e-4,
        "sorted": lambda g: torch.randn(_SIZE, generator=g).sort().values,
        "bf16 grid": lambda g: torch.randn(_SIZE, generator=g).bfloat16().float(),
        "denormal": lambda g: torch.randn(_SIZE, generator=g) * 1e-42,
        "far apart": lambda g: torch.logspace(-44, 38, _SIZE),
        "one large": lambda g: torch.zeros(_SIZE).index_fill_(0, torch.tensor([7]), 3.0),
    }.items(),
    ids=lambda case: case[0],
)
def test_magnitudes_of_many_kinds(values: tuple[str, Any]) -> None:
    tensor = values[1](torch.Generator().manual_seed(1))
    for k in (1, 2, 3000, 60_000, _SIZE - 2, _SIZE):
        assert_exact({"x": tensor, "y": tensor[:5]}, {"x": -tensor, "y": tensor[5:10]}, k=k)


@pytest.mark.parametrize(
    ("cut", "scales"),
    [
        (Cut.ELEMENT, torch.ones(1)),
        (Cut.ELEMENT, torch.randn(2048, 1, generator=torch.Generator().manual_seed(1)).exp()),
        (Cut.ROW, torch.arange(16.0).repeat_interleave(128)[:, None]),
    ],
    ids=["all alike", "rows differ", "tensors differ, the first is zero"],
)
def test_most_magnitudes_are_found_in_one_pass(
    cut: Cut, scales: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed guess gives the same result, but costs another pass."""
    monkeypatch.setattr(tally, "_GUESSED_BITS", 26)  # a bin per number, in wide windows too
    passes = []
    count = selection.WindowCount.__call__

    def counted(self: Any, piece: Piece) -> Any:
        passes.append((piece.info.name, piece.start))
        return count(self, piece)

    monkeypatch.setattr(selection.WindowCount, "__call__", counted)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2048, 1024, generator=generator) * scales
    expert = {str(number): rows for number, rows in enumerate(values.chunk(16))}
    assert_exact(expert, k=2 * BLOCK // 3, cut=cut)
    assert len(passes) == len(set(passes)) == 16


@settings(max_examples=40, deadline=None)
@given(st.lists(FP64 | AWKWARD, min_size=1, max_size=30), st.data())
def test_the_kth_largest_is_exact_in_double_precision(
    values: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(values)))
    assert_exact({"x": torch.tensor(values, dtype=torch.float64)}, k=k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kth_largest_of_several_experts_and_tensors(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def expert(scale: float) -> dict[str, torch.Tensor]:
        shapes = ((50, 40), (), (0, 3), (1001,))
        return {
            str(n): (scale * torch.randn(s, generator=generator)).to(dtype)
            for n, s in enumerate(shapes)
        }

    experts, ranks = (expert(1.0), expert(1e-3), expert(30.0)), (1, 2, 700, 3001, 3002)
    for k in ranks:
        assert_exact(*experts, k=k)
    together = kth_largest_magnitudes(scan_of(*experts), ranks)
    assert torch.equal(together.double(), torch.stack([reference(experts, k) for k in ranks]))


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_the_kth_largest_around_the_block_size(size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size))
    for k in (1, size // 5, size):
        assert_exact({"x": tensor}, k=k)


def test_mixed_precision_is_compared_in_the_wider_one() -> None:
    experts = {
        "single": torch.tensor([1.0, 3.0]),
        "double": torch.tensor([1 + 1e-12, 2.0], dtype=torch.float64),
    }
    for k in (1, 2, 3, 4):
        assert_exact(experts, k=k)


def test_equal_magnitudes() -> None:
    for value in (0.0, -0.0, 1.5, -1e-45, 3e38):
        tensor = torch.full((37,), value)
        tensor[::2] *= -1
        for k in (1, 20, 37):
            assert_exact({"x": tensor}, k=k)


@pytest.mark.parametrize("cut", list(Cut))
def test_pieces_of_every_shape_are_counted(cut: Cut) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "s": (),
        "v": (5,),
        "m": (3, 4),
        "e": (0, 2),
        "t": (2, 2, 2),
    }
    expert = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for k in (1, 13, 26):
        assert_exact(expert, {n: 2 * tensor for n, tensor in expert.items()}, k=k, cut=cut)


def test_the_order_of_workers_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 64)
    scan = scan_of({"x": torch.randn(5000, generator=torch.Generator().manual_seed(1))})
    serial = kth_largest_magnitudes(scan, 1000, lambda piece: piece.task_vectors)
    with ThreadPoolExecutor(4) as executor:
        threaded = Scan(scan.operands, scan.infos, executor)
        parallel = kth_largest_magnitudes(threaded, 1000, lambda piece: piece.task_vectors)
    assert torch.equal(serial, parallel)


def test_thresholds_over_files_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in {"base": torch.zeros(4), "expert": torch.arange(4.0)}.items():
        save_file({"w": values}, tmp_path / f"{name}.safetensors")
    base, expert = (
        CheckpointSource(tmp_path / f"{name}.safetensors") for name in ("base", "expert")
    )
    scan = Scan(Operands(base, {"a": expert}), [*base.infos.values()], SerialExecutor())
    with ResultCache(2**20):
        second = kth_largest_magnitudes(scan, 2)
        largest = kth_largest_magnitudes(scan, 1)
        monkeypatch.setattr(selection, "_kth_largest", None)  # nothing is searched again
        assert torch.equal(kth_largest_magnitudes(scan, 2), second)
    assert (second.tolist(), largest.tolist()) == ([2.0], [3.0])


@pytest.mark.parametrize(
    ("density", "numel", "count"),
    [
        (0, 10, 0),
        (1, 10, 10),
        (0.2, 10, 2),
        (0.19, 10, 1),
        (1e-9, 10, 1),
        (0.5, 1, 1),
        (0.99, 3, 2),
    ],
)
def test_the_number_of_entries_that_a_density_keeps(density: float, numel: int, count: int) -> None:
    assert count_for_density(density, numel) == count


def test_trimming_keeps_entries_equal_to_the_threshold() -> None:
    rows = torch.tensor([[1.0, -2.0, 3.0, -0.5], [0.0, -0.0, 1.0, -1.0]])
    rows_left = trim(rows, torch.tensor([2.0, 1.0]))
    assert rows_left.tolist() == [[0, -2, 3, 0], [0, 0, 1, -1]]
    assert trim(rows.reshape(2, 2, 2), torch.tensor([2.0, 1.0])).tolist() == [
        [[0, -2], [3, 0]],
        [[0, 0], [1, -1]],
    ]
    assert torch.equal(trim(rows, torch.zeros(2)), rows)


def test_signs_are_elected_by_mass_not_by_count() -> None:
    rows = torch.tensor([[3.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 0.0], [-1.0, 1.0, 0.0, 0.0]])
    assert elect_sign(rows, 1.0).tolist() == [1, -1, 1, 1]
    assert elect_sign(rows, -1.0).tolist() == [1, -1, -1, -1]


def test_zeros_never_agree() -> None:
    rows = torch.tensor([[2.0, -2.0, 0.0], [-0.0, 3.0, 0.0]])
    agree = agreeing_magnitudes(rows, torch.tensor([1.0, 1.0, -1.0]))
    assert agree.tolist() == [[2, 0, 0], [0, 3, 0]]
    assert not agreeing_magnitudes(rows, torch.zeros(3)).any()


@settings(max_examples=150, deadline=None)
@given(st.lists(FP32 | AWKWARD, min_size=1, max_size=30), st.data())
def test_trimming_is_exact_at_the_threshold(values: list[float], data: st.DataObject) -> None:
    row = torch.tensor([values], dtype=torch.float32)
    between = st.sampled_from(row[0].abs().tolist()) | st.floats(0, allow_nan=False)
    threshold = torch.tensor([data.draw(between)], dtype=torch.float64)
    expected = row.where(row.double().abs() >= threshold, 0)
    assert torch.equal(trim(row, threshold), expected)


def test_an_infinite_threshold_keeps_nothing() -> None:
    assert not trim(torch.tensor([[1.0, 3.4e38, torch.inf]]), torch.tensor([torch.inf])).any()
