"""Measure the cost of a piece of TIES, operation by operation, and against a single pass.

    python benchmarks/ties_piece.py --repeats 100

Uses one piece of three experts and a base in bf16, on one core and from the cache. Each operation
is timed alone, on its real input: the least processor time of the repeats, and the bytes that it
reads and writes.

- `in turn`: the same operations one after the other, on piece after piece of a tensor that no cache
  holds. No engine on torch's operations takes less.
- `whole`: a piece's share of the complete merge of that tensor, with survey and sample, without
  files.
- `fewest`: the bytes of one surveying and one merging pass that keep everything else in registers,
  at the speed at which this core copies. Compiled code could approach this.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch

from fusion_core import merge
from fusion_core.machine.memory import retain_freed_memory
from fusion_core.weights.merging.piece import is_finite, sum_in_order
from fusion_core.weights.source import BLOCK
from fusion_thresholds import selection
from fusion_thresholds.trimming import agreeing_magnitudes, elect_sign, trim
from fusion_ties.combining import disjoint_merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion_thresholds._tally import Search

    Operation = tuple[str, float, Callable[[], object]]

EXPERTS, DENSITY = 3, 0.2
#: Blocks of the tensor for the whole merge, so that its surveys resemble a model's.
BLOCKS = 32
_MB = BLOCK * 4 / 1e6  # of one row in fp32


def main() -> None:
    """Time all operations, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    base, experts = _operands()
    with retain_freed_memory():
        _print(base, experts, repeats)


def _print(base: torch.Tensor, experts: list[torch.Tensor], repeats: int) -> None:
    print("| operation | MB | time |\n|---|---|---|")
    total = bytes_ = 0.0
    for name, size, operation in _operations(base, experts):
        spent = _best(operation, repeats)
        total, bytes_ = total + spent, bytes_ + size
        print(f"| {name} | {size:.1f} | {spent * 1e6:.0f} us |")
    print(f"| sum | {bytes_:.1f} | {total * 1e6:.0f} us |")
    in_turn = _best(_in_turn(base, experts), max(3, repeats // 20)) / BLOCKS
    print(f"| in turn | | {in_turn * 1e6:.0f} us |")
    whole = _best(lambda: _merged(base, experts), max(3, repeats // 20)) / BLOCKS
    print(f"| whole | | {whole * 1e6:.0f} us |")
    fewest = (2 * (EXPERTS + 1) + 1) * _MB / 2
    row, copy = torch.ones(BLOCK), torch.empty(BLOCK)
    speed = 2 * _MB / _best(lambda: copy.copy_(row), repeats)
    print(f"| fewest | {fewest:.1f} | {fewest / speed * 1e6:.0f} us |")


def _operands() -> tuple[torch.Tensor, list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(BLOCKS * BLOCK, generator=draw).bfloat16()
    noise = (0.001 * torch.randn(len(base), generator=draw) for _ in range(EXPERTS))
    return base, [(base + vector).bfloat16() for vector in noise]


def _operations(base: torch.Tensor, experts: list[torch.Tensor]) -> Iterator[Operation]:
    wide = base.float()
    rows = torch.stack([expert.float() - wide for expert in experts])
    yield from _of_survey(rows)
    base, wide, rows = base[:BLOCK], wide[:BLOCK], rows[:, :BLOCK].contiguous()
    experts = [expert[:BLOCK] for expert in experts]
    yield "twice: bf16 to fp32", 2 * (EXPERTS + 1) * 1.5 * _MB, _twice(_widened, base, experts)
    yield "twice: task vectors", 2 * EXPERTS * 3 * _MB, _twice(_subtracted, rows.clone(), wide)
    yield "twice: finite?", 2 * (EXPERTS + 1) * _MB, _twice(_all_finite, rows, wide)
    yield from _of_merge(rows, wide)


def _guesses(rows: torch.Tensor) -> list[Search]:
    keys = rows.abs().view(torch.int32)
    largest = torch.iinfo(torch.int32).max
    return [selection._guess(row[::32], DENSITY, largest) for row in keys]  # noqa: SLF001


def _thresholds(rows: torch.Tensor) -> torch.Tensor:
    count = rows.shape[1] - int(DENSITY * rows.shape[1])
    return torch.stack([row.abs().kthvalue(count).values for row in rows])


def _of_survey(rows: torch.Tensor) -> Iterator[Operation]:
    searches = _guesses(rows)
    rows = rows[:, :BLOCK].contiguous()
    keys = rows.abs().view(torch.int32)
    yield "survey: magnitudes", EXPERTS * 2 * _MB, rows.abs
    # two comparisons, their product, a sum, a byte mask, and a selection by it
    count = EXPERTS * (2 + 2 + 3 + 1 + 1.25 + 0.25) * _MB
    yield "survey: count and pick", count, lambda: list(map(selection._count, keys, searches))  # noqa: SLF001


def _of_merge(rows: torch.Tensor, base: torch.Tensor) -> Iterator[Operation]:
    thresholds = _thresholds(rows)
    weights = torch.ones(EXPERTS, 1)
    trimmed_rows = trim(rows, thresholds)
    sign = elect_sign(trimmed_rows, 1.0)
    agree = agreeing_magnitudes(trimmed_rows, sign)
    total = sum_in_order(agree)
    yield "merge: trim", EXPERTS * 2 * _MB, lambda: trim(rows, thresholds)
    yield "merge: weights", EXPERTS * 2 * _MB, lambda: trimmed_rows.mul_(weights)
    yield "merge: sign", (3 * (EXPERTS - 1) + 4) * _MB, lambda: elect_sign(trimmed_rows, 1.0)
    # products, agreement, two sums, participants, the divisor
    mean = (EXPERTS * 3 + EXPERTS * 2 + 6 * (EXPERTS - 1) + EXPERTS * 4 + 3 + 2 + 3 + 3) * _MB
    yield (
        "merge: mean of what agrees",
        mean,
        lambda: disjoint_merge(trimmed_rows, sign, weights, normalize=True),
    )
    yield "merge: scale, add the base", 5 * _MB, lambda: total.mul_(1.0).add_(base)
    yield "merge: finite? to bf16", 3 * _MB, lambda: (is_finite(base), is_finite(base.bfloat16()))


def _twice(function: Callable[..., object], *operands: object) -> Callable[[], object]:
    """Time the operations that survey and merge share."""
    return lambda: (function(*operands), function(*operands))


def _widened(base: torch.Tensor, experts: list[torch.Tensor]) -> None:
    rows = torch.empty(EXPERTS + 1, BLOCK)
    for row, source in zip(rows, (base, *experts), strict=True):
        row.copy_(source)


def _subtracted(rows: torch.Tensor, base: torch.Tensor) -> None:
    for row in rows.unbind():
        row.add_(base, alpha=-1)


def _all_finite(rows: torch.Tensor, base: torch.Tensor) -> bool:
    return all(map(is_finite, (base, *rows)))


def _in_turn(base: torch.Tensor, experts: list[torch.Tensor]) -> Callable[[], None]:
    """Survey and merge piece by piece as `Ties` does, without an engine."""
    rows = torch.stack([expert.float() - base.float() for expert in experts])
    searches, thresholds, weights = _guesses(rows), _thresholds(rows), torch.ones(EXPERTS, 1)
    merged = torch.empty_like(base)

    def survey(span: slice) -> None:
        keys = _task_vectors(_wide(base[span]), [expert[span] for expert in experts]).abs()
        for row, search in zip(keys.view(torch.int32), searches, strict=True):
            selection._count(row, search)  # noqa: SLF001

    def merge_piece(span: slice) -> None:
        wide = _wide(base[span])
        rows = trim(_task_vectors(wide, [expert[span] for expert in experts]), thresholds)
        rows.mul_(weights)
        total = disjoint_merge(rows, elect_sign(rows, 1.0), weights, normalize=True)
        is_finite(total.mul_(1.0).add_(wide))
        merged[span] = total

    def both() -> None:
        spans = [slice(start, start + BLOCK) for start in range(0, len(base), BLOCK)]
        for step in (survey, merge_piece):
            for span in spans:
                step(span)

    return both


def _wide(narrow: torch.Tensor) -> torch.Tensor:
    wide = torch.empty(len(narrow)).copy_(narrow)
    is_finite(wide)
    return wide


def _task_vectors(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.empty(EXPERTS, len(base))
    for row, expert in zip(rows, experts, strict=True):
        row.copy_(expert).add_(base, alpha=-1)
        is_finite(row)
    return rows


def _merged(base: torch.Tensor, experts: list[torch.Tensor]) -> None:
    models = {f"e{number}": {"w": expert} for number, expert in enumerate(experts)}
    options = {"name": "ties", "density": DENSITY, "scope": "tensor", "zero_sign": "positive"}
    merge(options, {"base": {"w": base}, "models": models}).state_dict()


def _best(operation: Callable[[], object], repeats: int) -> float:
    spent = []
    for _ in range(repeats):
        started = time.thread_time()
        operation()
        spent.append(time.thread_time() - started)
    return min(spent)


if __name__ == "__main__":
    main()
