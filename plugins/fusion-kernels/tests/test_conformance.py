"""The conformance suite of fusion-testing, run on every kernel of this plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest
import torch

from fusion_core.weights import (
    Cut,
    Kernel,
    Linear,
    Operands,
    Piece,
    PieceKernel,
    Scan,
    Scope,
    StateDictSource,
)
from fusion_kernels import plugin
from fusion_kernels.counting import WindowCounts, WindowPolls
from fusion_linear.averages import SimpleAverage
from fusion_linear.gram import GramCombination, InnerProducts, get_experts, get_task_vectors
from fusion_testing import KernelSuite
from fusion_thresholds import kth_largest_magnitudes
from fusion_ties.combining import DisjointMerge
from fusion_ties.dropping import Drop, MagPrune
from fusion_ties.electing import ConsensusSum, MagMax
from fusion_ties.sce import Sce, SelectedSquares, deviations_of
from fusion_ties.ties import Ties
from fusion_ties.transforms import Band, Bounds, Elect, Trim

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import KernelSpec

Methods = Callable[[int], Sequence[PieceKernel]]

_SPECS = {spec.name: spec for spec in plugin.fusion_register_kernels()}
_TIES = [
    Ties(normalize=normalize, zero_sign=sign, scale=0.7)
    for normalize, sign in product((True, False), ("majority", "positive"))
]
_TIES_L1 = Ties(density=0.4, rescale="l1", zero_sign="positive")


def _replaced_by(kernel: str) -> Any:
    """Return what a kernel replaces, which is not public."""
    (replaced,) = _SPECS[kernel].replaces
    module, _, name = replaced.partition(":")
    return getattr(import_module(module), name)


def _by_norm(gram: Tensor) -> Tensor:
    return 1 / (1 + gram.diagonal().sqrt())


class _Scanned(Kernel):
    """Digests what a function of a survey returns of all blocks: a merge would round it."""

    scope = Scope.TENSOR

    def __init__(self, function: Callable[[Piece], Tensor]) -> None:
        self.function = function

    def survey(self, scan: Scan) -> int:
        """Scan all blocks."""
        return scan(self.function, _add_checksum, 0)

    def merge(self, piece: Piece) -> Tensor:
        """Return the digest for every entry."""
        return torch.full(piece.shape, float(piece.state))


def _add_checksum(total: int, block: Tensor) -> int:
    """Digest one block as well, in 24 bits, which fp32 holds."""
    return crc32(block.numpy().tobytes(), total) & 0xFFFFFF


class _Polled(Kernel):
    """Adds to the base a digest of what a poll finds in windows below each expert's largest entry.

    `width` is each window's share of all bits of smaller magnitudes.
    """

    scope = Scope.MODEL

    def __init__(self, width: float) -> None:
        self.width = width

    def survey(self, scan: Scan) -> float:
        """Poll all blocks: only magnitudes in fp32 are polled."""
        if scan.operands.dtype(scan.infos[0].name) is torch.float64:
            return 0.0
        tops = kth_largest_magnitudes(scan, 1).view(torch.int32).tolist()
        bounds = tuple((int(top * (1 - self.width)), top) for top in tops)
        poll = _replaced_by("window-polls")(bounds)
        return float(scan(poll, _add_digest, 0.0))

    def merge(self, piece: Piece) -> Tensor:
        """Return the same for every entry."""
        return piece.task_vectors[0] * 0 + piece.state


def _add_digest(total: float, block: Any) -> float:
    total += float((block.bins.double().sqrt() * (block.changes.double() + 3)).sum())
    total += sum(number * above for number, above in enumerate(block.above, 1))
    return total + 7 * block.votes + float(block.crowded.double().abs().sum())


_METHODS: dict[str, Methods] = {
    "weighted-sum": lambda count: [
        Linear((0.3,) * count),
        Linear(tuple(1 / (number + 2) for number in range(count)), relative=False),
        Linear({"layer.weight": (-0.7,) * count}),
    ],
    "surveyed-sum": lambda _: [
        GramCombination(_by_norm, relative=True),
        GramCombination(_by_norm, relative=False, scope=Scope.MODEL),
    ],
    "inner-products": lambda _: [
        _Scanned(InnerProducts(get_task_vectors)),
        _Scanned(InnerProducts(get_experts)),
    ],
    "average": lambda _: [SimpleAverage()],
    "agreeing-mean": lambda _: [
        *_TIES,
        Ties(density=1.0),
        Ties(density=0.0),
        _TIES_L1,
        DisjointMerge(0.3, normalize=True),
        DisjointMerge(1.0, False),
    ],
    "agreeing-entries": lambda _: [Elect(), Elect(zero_sign="positive")],
    "trimmed-sums": lambda _: [_TIES_L1],
    "large-entries": lambda _: [Trim(density=0.5), Trim(density=0.0)],
    "entries-in-band": lambda _: [Band(), Band(density=0.0), Band(rescale="l1")],
    "band-sums": lambda count: [
        _Scanned(Bounds(torch.full((count,), 0.1), torch.full((count,), top)).sum_magnitudes)
        for top in (2.0, torch.inf)
    ],
    "random-entries": lambda _: [
        Drop(density=0.1),
        Drop(rescale="l1"),
        Drop(density=0.0),
        Drop(rescale="none"),
    ],
    "random-sums": lambda _: [_Scanned(Drop().sum_magnitudes)],
    "ranked-entries": lambda _: [MagPrune(density=0.3), MagPrune(rescale="l1")],
    "ranked-sums": lambda _: [_Scanned(MagPrune().sum_magnitudes)],
    "largest-entries": lambda _: [MagMax(), MagMax(scale=-0.3)],
    "masked-sum": lambda count: [ConsensusSum(min(2, count), (0.4,) * count, 0.3)],
    "shared-mean": lambda _: [Sce(), Sce(density=0.3)],
    "selected-squares": lambda _: [_Scanned(SelectedSquares(least)) for least in (0.0, 0.5)],
    "deviations": lambda _: [_Scanned(deviations_of)],
    "task-vectors": lambda _: [_Scanned(_replaced_by("task-vectors"))],
    "window-counts": lambda _: [Trim(), Band(), Sce(density=0.3)],
    "window-polls": lambda count: [_Polled(1 / count), _Polled(0.02)],
    "votes": lambda _: [Ties(), Elect()],
}


def test_every_kernel_is_compared() -> None:
    assert _METHODS.keys() == _SPECS.keys()


class TestKernels(KernelSuite):
    @pytest.fixture(params=_SPECS)
    def spec(self, request: pytest.FixtureRequest) -> KernelSpec:
        return _SPECS[request.param]

    @pytest.fixture
    def methods(self, spec: KernelSpec) -> Methods:
        return _METHODS[spec.name]


def test_a_poll_keeps_none_of_the_memory_that_its_kernel_allocated() -> None:
    rows = torch.randn(4, 10_000, generator=torch.Generator().manual_seed(6))
    base, *experts = (StateDictSource({"w": row}) for row in rows)
    operands = Operands(base, dict(zip("xyz", experts, strict=True)))
    piece = Piece(operands, base.infos["w"], (0, rows.shape[1]), Cut.ELEMENT)
    low, high = torch.tensor([1.0, 1.5]).view(torch.int32).tolist()
    block: Any = WindowPolls()(_replaced_by("window-polls")(((low, high),) * 3), piece)
    for tensor in (block.bins, block.changes, block.crowded):
        assert 0 < tensor.untyped_storage().nbytes() == tensor.nbytes


def test_magnitudes_equal_to_a_window_of_one_value_are_counted() -> None:
    rows = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    base, *experts = (StateDictSource({"w": row}) for row in (torch.zeros(10_000), *rows))
    operands = Operands(base, dict(zip("xyz", experts, strict=True)))
    piece = Piece(operands, base.infos["w"], (0, rows.shape[1]), Cut.ELEMENT)
    keys = torch.tensor([0.0, 0.5, 3.0]).view(torch.int32).tolist()
    searches = tuple(SimpleNamespace(low=key, high=key, shift=0) for key in keys)
    count = _replaced_by("window-counts")
    function = count(_replaced_by("task-vectors"), torch.float32, searches)
    counted, expected = WindowCounts()(function, piece), function(piece)
    assert counted is not None
    assert [(block.above, block.inside) for block in counted] == [
        (block.above, block.inside) for block in expected
    ]
    assert [block.inside for block in counted] == [
        int((row.abs() == value).sum()) for row, value in zip(rows, (0.0, 0.5, 3.0), strict=True)
    ]
