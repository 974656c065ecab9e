"""Estimate the cost of merging models that do not fit here, from measurements of smaller ones.

Processor time and memory are linear in the number of experts. Time grows with the bytes of the
output, and the cost of different tokenizers grows with the token rows. Inputs are read once per
pass, and the output is written once. At best, computation and disk overlap, and the slower one
determines the time. At worst, they alternate, and their times add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama import LLAMA_3_8B, LLAMA_3_70B
from measuring import MB, headings, row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llama import Llama

GB = 1_000_000_000
MODELS = {"8B": LLAMA_3_8B, "70B": LLAMA_3_70B}
EXPERTS = (2, 3, 5)
#: speeds of disks, in bytes per second
SPEEDS = (GB // 2, 2 * GB, 7 * GB)


@dataclass(frozen=True)
class Line:
    """A cost as a linear function of the number of experts."""

    start: float
    slope: float

    @classmethod
    def through(cls, points: Mapping[int, float]) -> Line:
        """Return the least-squares line through points; a single point gives a constant."""
        x, y = (sum(coordinates) / len(points) for coordinates in (points.keys(), points.values()))
        spread = sum((point - x) ** 2 for point in points)
        rise = sum((point - x) * (points[point] - y) for point in points)
        slope = rise / spread if spread else 0.0
        return cls(y - slope * x, slope)

    def at(self, experts: int) -> float:
        """Return the cost for this many experts."""
        return self.start + self.slope * experts

    def __truediv__(self, divisor: float) -> Line:
        """Return the line divided by a number."""
        return Line(self.start / divisor, self.slope / divisor)


@dataclass(frozen=True)
class Rate:
    """The measured cost of a kind of merge."""

    #: seconds of processor time per byte of the output; `rows` has those per token row
    cpu: Line
    #: bytes above torch
    memory: Line
    has_base: bool = True
    passes: int = 1
    #: the rank of LoRA adapters; 0 for full models
    rank: int = 0
    rows: Line = Line(0, 0)

    def read(self, model: Llama, experts: int) -> int:
        """Return the bytes that a merge reads."""
        size = model.bytes_of_adapter(self.rank) if self.rank else model.bytes
        return self.passes * (self.has_base * model.bytes + experts * size)

    def seconds(self, model: Llama, experts: int) -> float:
        """Return the processor time of a merge, in seconds."""
        rows = 2 * model.vocabulary * self.rows.at(experts)
        return model.bytes * self.cpu.at(experts) + rows


def wall(cpu: float, io: float, cores: int) -> tuple[float, float]:
    """Return the best and the worst wall time, in seconds."""
    return max(cpu / cores, io), cpu / cores + io


def plan(rates: Mapping[str, Rate], cores: int) -> Iterator[str]:
    """Yield the rows of a table."""
    speeds = (f"at {speed / GB:g} GB/s" for speed in SPEEDS)
    yield headings(
        ["model", "experts", "merge", "read", "written", "CPU", *speeds, "peak above torch"]
    )
    for size, model in MODELS.items():
        for experts in EXPERTS:
            for name, rate in rates.items():
                yield row([size, str(experts), name, *_cells(rate, model, experts, cores)])


def _cells(rate: Rate, model: Llama, experts: int, cores: int) -> Iterator[str]:
    read, cpu = rate.read(model, experts), rate.seconds(model, experts)
    yield from (f"{size / GB:.1f} GB" for size in (read, model.bytes))
    yield f"{cpu:.0f} s"
    for speed in SPEEDS:
        yield span(*wall(cpu, (read + model.bytes) / speed, cores))
    yield f"{rate.memory.at(experts) / MB:.0f} MB"


def span(best: float, worst: float) -> str:
    """Format the best and the worst wall time."""
    return f"{best:.1f} to {worst:.1f} s" if worst < 10 else f"{best:.0f} to {worst:.0f} s"
