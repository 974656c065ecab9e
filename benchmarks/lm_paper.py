"""What merging models that do not fit here would take, reckoned from what smaller ones took.

Processor time and memory lie on straight lines in the number of experts. Time grows with the bytes
of the output, and what other tokenizers add to it with the rows of tokens. Inputs are read once a
pass, the output is written once. At best computing and the disk overlap, and the slower of the two
says how long a merge takes; at worst they wait for each other, and it takes as long as both.
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
#: of disks, in bytes a second
SPEEDS = (GB // 2, 2 * GB, 7 * GB)


@dataclass(frozen=True)
class Line:
    """What something is for a number of experts."""

    start: float
    slope: float

    @classmethod
    def through(cls, points: Mapping[int, float]) -> Line:
        """Return the line that is nearest to points, by least squares; one point is a constant."""
        x, y = (sum(coordinates) / len(points) for coordinates in (points.keys(), points.values()))
        spread = sum((point - x) ** 2 for point in points)
        rise = sum((point - x) * (points[point] - y) for point in points)
        slope = rise / spread if spread else 0.0
        return cls(y - slope * x, slope)

    def at(self, experts: int) -> float:
        """Return a point."""
        return self.start + self.slope * experts

    def __truediv__(self, divisor: float) -> Line:
        """Return the line of a share."""
        return Line(self.start / divisor, self.slope / divisor)


@dataclass(frozen=True)
class Rate:
    """What a kind of merge was measured to take."""

    #: seconds of processor time for a byte of the output, and for a row of tokens besides
    cpu: Line
    #: bytes above torch
    memory: Line
    has_base: bool = True
    passes: int = 1
    #: of LoRA adapters; 0 for whole models
    rank: int = 0
    rows: Line = Line(0, 0)

    def read(self, model: Llama, experts: int) -> int:
        """Return how many bytes are read."""
        size = model.bytes_of_adapter(self.rank) if self.rank else model.bytes
        return self.passes * (self.has_base * model.bytes + experts * size)

    def seconds(self, model: Llama, experts: int) -> float:
        """Return how much processor time is spent."""
        rows = 2 * model.vocabulary * self.rows.at(experts)
        return model.bytes * self.cpu.at(experts) + rows


def wall(cpu: float, io: float, cores: int) -> tuple[float, float]:
    """Return how long a merge takes at best and at worst, in seconds."""
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
    """Show how long something takes at best and at worst."""
    return f"{best:.1f} to {worst:.1f} s" if worst < 10 else f"{best:.0f} to {worst:.0f} s"
