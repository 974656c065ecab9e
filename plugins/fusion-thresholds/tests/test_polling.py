"""Thresholds and votes of one pass are those of two passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fusion_core.weights import BLOCK, Operands, Scan, SerialExecutor, StateDictSource
from fusion_thresholds import surveying
from fusion_thresholds.selection import kth_largest_magnitudes
from fusion_thresholds.trimming import majority_sign

if TYPE_CHECKING:
    from collections.abc import Sequence


#: The elements of a tensor of two blocks.
_SIZE = BLOCK + 30_000


def _scan(experts: int, *, grid: int | None = None) -> Scan:
    """Return a scan of random task vectors, which are rounded to a grid if there is one."""
    generator = torch.Generator().manual_seed(experts)
    rows = torch.randn(experts, _SIZE, generator=generator)
    rows = rows if grid is None else (rows * grid).round() / grid
    sources = {str(number): StateDictSource({"w": row}) for number, row in enumerate(rows)}
    base = StateDictSource({"w": torch.zeros(_SIZE)})
    weights = tuple(1.0 + number / 4 for number in range(experts))
    operands = Operands(base, sources, weights)
    infos = list(base.infos.values())
    return Scan(operands, infos, SerialExecutor())


@pytest.fixture
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll without a kernel, in the wide windows that a small sample gives."""
    monkeypatch.setattr(surveying, "is_compiled", lambda *_: True)
    monkeypatch.setattr(surveying, "_WIDEST", 2**22)


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("listed", [2**20, 100], ids=["listed", "counted"])
@pytest.mark.parametrize(
    ("experts", "grid", "ranks"),
    [
        (1, None, [30_000]),
        (3, None, [60_000, 60_000, 60_000]),
        (3, 2**12, [40_000, 60_000, 90_000]),
        (6, None, [60_000] * 6),
    ],
)
def test_one_pass_counts_what_two_count(
    experts: int,
    grid: int | None,
    ranks: Sequence[int],
    listed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surveying, "_MOST_LISTED", listed)
    scan = _scan(experts, grid=grid)
    thresholds, votes = surveying.thresholds_and_votes(scan, ranks)
    expected = [
        kth_largest_magnitudes(scan, rank)[expert].item() for expert, rank in enumerate(ranks)
    ]
    assert thresholds.tolist() == expected
    rows = torch.stack([model.tensor("w") for model in scan.operands.experts.values()])
    trimmed = rows.where(rows.abs() >= thresholds[:, None], 0)
    weights = torch.tensor(scan.operands.weights)[:, None]
    assert votes == int((trimmed * weights).sum(0).sign().sum())
    assert majority_sign(scan, thresholds) == (votes > 0) - (votes < 0)


@pytest.mark.usefixtures("_compiled")
def test_too_many_uncertain_entries_need_a_pass_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surveying, "_LONGEST", 3)
    thresholds, votes = surveying.thresholds_and_votes(_scan(3), [60_000] * 3)
    assert votes is None
    assert len(thresholds) == 3


@pytest.mark.usefixtures("_compiled")
def test_too_many_magnitudes_in_wide_windows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that was misled neither lists a model nor allocates a bin per number."""
    scan = _scan(3)
    monkeypatch.setattr(surveying, "_is_worth_a_poll", lambda *_: True)
    monkeypatch.setattr(surveying, "_WIDEST", 1)
    monkeypatch.setattr(surveying, "_MOST_LISTED", 10)
    thresholds, votes = surveying.thresholds_and_votes(scan, [60_000] * 3)
    assert votes is None
    assert torch.equal(thresholds, kth_largest_magnitudes(scan, 60_000))


@pytest.mark.usefixtures("_compiled")
def test_windows_full_of_equal_magnitudes_are_not_polled() -> None:
    thresholds, votes = surveying.thresholds_and_votes(_scan(2, grid=1), [200_000] * 2)
    assert votes is None, "it would list half of all entries"
    assert thresholds.tolist() == [1.0, 1.0]


def test_without_a_kernel_votes_have_a_pass_of_their_own() -> None:
    assert surveying.thresholds_and_votes(_scan(2), [60_000] * 2)[1] is None
