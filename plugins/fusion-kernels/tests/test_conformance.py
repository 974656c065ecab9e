"""The conformance suite of fusion-testing, run on every kernel of this plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.weights import Kernel, Linear, PieceKernel, Scan, Scope
from fusion_kernels import plugin
from fusion_linear.averages import SimpleAverage
from fusion_linear.gram import GramCombination
from fusion_testing import KernelSuite
from fusion_thresholds import kth_largest_magnitudes
from fusion_ties.combining import DisjointMerge
from fusion_ties.dropping import Drop, MagPrune
from fusion_ties.electing import ConsensusSum, MagMax
from fusion_ties.ties import Ties
from fusion_ties.transforms import Band, Elect, Trim

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import KernelSpec
    from fusion_core.weights import Piece

Methods = Callable[[int], Sequence[PieceKernel]]

_SPECS = {spec.name: spec for spec in plugin.fusion_register_kernels()}
_TIES = [
    Ties(normalize=normalize, zero_sign=sign, density=density, scale=0.7)
    for normalize, sign, density in product(
        (True, False), ("majority", "positive"), (0.2, 1.0, 0.0)
    )
]


def _by_norm(gram: Tensor) -> Tensor:
    return 1 / (1 + gram.diagonal().sqrt())


class _Polled(Kernel):
    """Adds to the base a digest of what a poll finds in windows below each expert's largest entry.

    `width` is the windows' share of all bits of smaller magnitudes.
    """

    scope = Scope.MODEL

    def __init__(self, width: float, experts: int) -> None:
        self.width, self.experts = width, experts

    def survey(self, scan: Scan) -> float:
        """Poll all blocks."""
        tops = kth_largest_magnitudes(scan, 1).view(torch.int32).tolist()
        bounds = [(int(top * (1 - self.width)), top) for top in tops]
        (replaced,) = _SPECS["window-polls"].replaces
        module, _, name = replaced.partition(":")
        poll = getattr(import_module(module), name).between(bounds)
        return float(scan(poll, _add_digest, 0.0))

    def merge(self, piece: Piece) -> Tensor:
        """Return the same for every entry."""
        return piece.task_vectors[0] * 0 + piece.state


def _add_digest(total: float, block: tuple[list[Any], Any]) -> float:
    tallies, poll = block
    for number, (tally, offsets, changes) in enumerate(
        zip(tallies, poll.offsets, poll.changes, strict=True), 1
    ):
        total += number * (tally.above + 3 * tally.inside)
        total += number * float((offsets.double().sqrt() * changes.double()).sum())
    return total + 7 * poll.votes + float(poll.crowded.double().abs().sum())


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
    "average": lambda _: [SimpleAverage()],
    "agreeing-mean": lambda _: [
        *_TIES,
        DisjointMerge(0.3, normalize=True),
        DisjointMerge(1.0, False),
    ],
    "agreeing-entries": lambda _: [Elect(), Elect(zero_sign="positive", scope="tensor")],
    "large-entries": lambda _: [Trim(), Trim(scope="tensor", density=0.5), Trim(density=0.0)],
    "entries-in-band": lambda _: [
        Band(),
        Band(density=1.0, gamma=0.3),
        Band(density=0.0),
        Band(rescale="l1"),
    ],
    "band-sums": lambda _: [Band(rescale="l1")],
    "random-sums": lambda _: [Drop(rescale="l1")],
    "ranked-entries": lambda _: [MagPrune(), MagPrune(rescale="l1", density=0.3)],
    "ranked-sums": lambda _: [MagPrune(rescale="l1")],
    "random-entries": lambda _: [
        Drop(),
        Drop(density=0.1),
        Drop(rescale="l1"),
        Drop(density=0.0),
        Drop(rescale="none"),
    ],
    "largest-entries": lambda _: [MagMax(), MagMax(scale=-0.3)],
    "masked-sum": lambda count: [ConsensusSum(min(2, count), (0.4,) * count, 0.3)],
    "window-counts": lambda _: [
        Trim(),
        Trim(scope="tensor", density=0.5),
        Band(),
        Band(density=1.0),
    ],
    "window-polls": lambda count: [_Polled(1.0, count), _Polled(0.02, count)],
    "votes": lambda _: [Ties(), Ties(scope="tensor"), Elect(), Elect(scope="tensor")],
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
