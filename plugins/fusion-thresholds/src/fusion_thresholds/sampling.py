"""Guess from a sample between which two values a magnitude lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusion_core.weights import call_on_piece
from fusion_thresholds._tally import Search, kth_largest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from fusion_core.weights import Piece, Scan

    Rows = Callable[[Piece], torch.Tensor]
    Integers = npt.NDArray[np.signedinteger]

#: The integers of the same number of bits.
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
#: A guess is made from this many elements per expert, or from one in so many if these are fewer.
_SAMPLE, _SAMPLED = 2**19, 64
#: Fewer elements than this are all read.
_WORTH_A_GUESS = 2**16
#: Half the width of a guess, in standard deviations of the sample's quantile. One guess in 2000
#: misses, which costs another pass. A wider one holds more magnitudes, which are listed.
_MARGIN = 3.5
#: A sample is spread over runs of so many times as many elements, or of one in so many of all.
_SPREAD, _READ = 8, 16
#: Runs count as samples of single entries if they deviate by at most this factor more.
_ALIKE = 1.25


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes of a block, or some of them, as integers of shape (count, elements)."""

    rows: Rows
    dtype: torch.dtype
    stride: int = 1

    def __call__(self, piece: Piece) -> torch.Tensor:
        """Return those of one block."""
        # Counting is done on the CPU: copy the values of a GPU back once.
        rows = call_on_piece(self.rows, piece).unsqueeze(-1).flatten(1)[:, :: self.stride]
        magnitudes = rows.to(self.dtype).cpu().abs()
        return magnitudes.view(INTEGERS[self.dtype])

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put blocks side by side."""
        return torch.cat(list(blocks), dim=1)


@dataclass(frozen=True)
class Guess:
    """The window in which a magnitude should lie, and the fraction of all that lie there too."""

    window: Search
    share: float


def guess_windows(scan: Scan, ranks: Sequence[int], rows: Rows, dtype: torch.dtype) -> list[Guess]:
    """Guess the windows from a sample.

    Of few elements, the sample is all of them, and each window is one value.
    """
    if scan.numel < _WORTH_A_GUESS:
        magnitudes = _read_magnitudes(scan, Magnitudes(rows, dtype))
        pairs = zip(cycle(magnitudes), ranks, strict=False)
        return [_find_exactly(row, rank) for row, rank in pairs]
    top = int(torch.iinfo(INTEGERS[dtype]).max)
    numel = max(1, min(_SAMPLE, scan.numel // _SAMPLED))
    sample = scan.sample(min(_SPREAD * numel, scan.numel // _READ))
    blocks = [block for block in sample.blocks if block[0].numel]
    read = sum(stop - start for _, (start, stop) in blocks)
    stride = read // numel | 1  # odd, to meet every column of a matrix
    magnitudes = _read_magnitudes(sample, Magnitudes(rows, dtype, stride))
    lengths = np.array([math.ceil((stop - start) / stride) for _, (start, stop) in blocks])
    samples = [
        _Sample(row, rank / scan.numel, top)
        for row, rank in zip(cycle(magnitudes), ranks, strict=False)
    ]
    return _guess(samples, lengths)


def _read_magnitudes(scan: Scan, function: Magnitudes) -> Integers:
    """Return the magnitudes that a scan sees, of shape (count, elements)."""
    empty: list[torch.Tensor] = []
    return torch.cat(scan.fold(function, lambda runs, run: [*runs, run], empty), dim=1).numpy()


def _find_exactly(magnitudes: Integers, rank: int) -> Guess:
    """Return the window that holds the magnitude of a rank alone."""
    key = kth_largest(torch.from_numpy(magnitudes), rank)
    return Guess(Search(key, key, key, key), np.count_nonzero(magnitudes == key) / len(magnitudes))


@dataclass(frozen=True)
class _Sample:
    """Some magnitudes of one row, the fraction of all that are to lie above, and the largest."""

    magnitudes: Integers
    fraction: float
    top: int

    @property
    def deviation(self) -> float:
        """The standard deviation of how many lie above, of as many single entries."""
        return math.sqrt(len(self.magnitudes) * self.fraction * (1 - self.fraction))

    def guess(self, inflation: float) -> Guess:
        """Return a window that is left only if the sample is off by many inflated deviations."""
        rank = self.fraction * len(self.magnitudes)
        margin = _MARGIN * inflation * self.deviation + _MARGIN
        above, below = int(rank - margin), math.ceil(rank + margin)
        magnitudes = torch.from_numpy(self.magnitudes)
        high = self.top if above < 1 else kth_largest(magnitudes, above)
        is_all = below > len(magnitudes)
        low = 0 if is_all else kth_largest(magnitudes, below)
        inside = np.count_nonzero(self.magnitudes >= low)
        inside -= np.count_nonzero(self.magnitudes > high)
        return Guess(Search(0, self.top, low, high), inside / len(self.magnitudes))

    def measure_inflation(self, bound: int, lengths: Integers) -> float:
        """Return by how much runs of these lengths deviate more than single entries.

        It is estimated from the difference between the halves of each run, so that it leaves out
        how blocks and tensors differ: the sample has runs from all of them.
        """
        before = np.zeros(len(self.magnitudes) + 1, dtype=np.int32)
        np.cumsum(self.magnitudes >= bound, dtype=np.int32, out=before[1:])
        starts, halves = lengths.cumsum() - lengths, lengths // 2
        first, whole = (before[starts + part] - before[starts] for part in (halves, lengths))
        share = before[-1] / len(self.magnitudes)
        excess = (whole - first) - first - share * (lengths - 2 * halves)
        return float(np.linalg.norm(excess)) / max(self.deviation, 1.0)


def _guess(samples: Sequence[_Sample], lengths: Integers) -> list[Guess]:
    """Return the guesses of samples that consist of runs of these lengths.

    Neighbours in a tensor are alike, so they are less certain than samples of single entries. By
    how much is estimated from all rows together, which need fewer runs for it.
    """
    guesses = [sample.guess(1.0) for sample in samples]
    inflations = [
        sample.measure_inflation(guess.window.low, lengths)
        for sample, guess in zip(samples, guesses, strict=True)
    ]
    inflation = math.sqrt(sum(value**2 for value in inflations) / len(samples))
    return [sample.guess(inflation) for sample in samples] if inflation > _ALIKE else guesses
