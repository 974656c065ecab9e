"""Make the tables of the report on language models from the runs of `language_study.py`."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from language_cases import CELLS, POOLS
from study_page import fill_tables, runs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

PAGE, RUNS = "language-models.md", "language-models.jsonl"
BASE, EXPERTS = "base", "experts"
TEXTS = ("bible", "licence")
#: Bootstrap samples, drawn from a fixed seed.
_SAMPLES = 2000


class Runs:
    """The runs by pool, seed and cell."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.runs = {
            (run["pool"], run["seed"], run["cell"]): run for run in lines if "right" in run
        }
        #: runs of a first protocol, which kept no answers to single questions
        self.first = [run for run in lines if "right" not in run]

    @classmethod
    def read(cls, folder: Path) -> Runs:
        """Read the runs of the report."""
        return cls(runs_of(folder / RUNS))

    def __contains__(self, key: tuple[str, int, str]) -> bool:
        return key in self.runs

    def sets(self) -> list[tuple[str, int]]:
        """Return the measured pools with their seeds."""
        return sorted({(pool, seed) for pool, seed, _ in self.runs}, key=_order)

    def right(self, pool: str, seed: int, cell: str, task: str) -> Tensor:
        """Return 1 for each right answer to a task's test questions, and otherwise 0."""
        row = self.runs[pool, seed, cell]["right"][task]
        return torch.tensor([float(mark) for mark in row])

    def accuracy(self, pool: str, seed: int, cell: str) -> float:
        """Return the mean accuracy over a pool's tasks, in percent."""
        tasks = POOLS[pool]
        return 100 * statistics.mean(
            float(self.right(pool, seed, cell, task).mean()) for task in tasks
        )

    def share(self, pool: str, seed: int, cell: str) -> tuple[float, float]:
        """Return the mean over tasks of merge / expert in percent, with its standard error."""
        pairs = [
            (self.right(pool, seed, cell, task), self.right(pool, seed, EXPERTS, task))
            for task in POOLS[pool]
        ]
        value = statistics.mean(float(ours.sum() / expert.sum()) for ours, expert in pairs)
        return 100 * value, 100 * _error(pairs, lambda ours, expert: ours.sum(1) / expert.sum(1))

    def gain(self, pool: str, seed: int, cell: str, other: str) -> tuple[float, float]:
        """Return how much more accurate a cell is than another, with its standard error.

        Both answer the same questions. In percentage points.
        """
        pairs = [
            (self.right(pool, seed, cell, task), self.right(pool, seed, other, task))
            for task in POOLS[pool]
        ]
        value = statistics.mean(float((ours - theirs).mean()) for ours, theirs in pairs)
        return 100 * value, 100 * _error(pairs, lambda ours, theirs: (ours - theirs).mean(1))

    def general(self, pool: str, seed: int, cell: str) -> Mapping[str, Any]:
        """Return a cell's comparison with the base."""
        compared: Mapping[str, Any] = self.runs[pool, seed, cell]["general"]
        return compared

    def bits(self, compared: Mapping[str, Any], text: str) -> float:
        """Return the mean bits per byte of the passages of a text."""
        return statistics.mean(compared["bits"][text])


def write_page(folder: Path) -> Runs:
    """Write the tables between their markers in the page."""
    runs = Runs.read(folder)
    path = folder / PAGE
    path.write_text(filled(path.read_text(encoding="utf-8"), runs), encoding="utf-8")
    return runs


def filled(text: str, runs: Runs) -> str:
    """Return the page with tables from the runs."""
    return fill_tables(text, {name: rows(runs) for name, rows in TABLES.items()})


def same_tokens(compared: Mapping[str, Any]) -> tuple[float, float]:
    """Return the share of the base's tokens that a model agrees with, and its standard error."""
    equal, tokens = (
        torch.tensor(compared[key], dtype=torch.float64) for key in ("equal", "tokens")
    )
    value = float(equal.sum() / tokens.sum())
    error = _error([(equal, tokens)], lambda equal, tokens: equal.sum(1) / tokens.sum(1))
    return 100 * value, 100 * error


def divergence(compared: Mapping[str, Any]) -> tuple[float, float]:
    """Return the mean divergence from the base in nats per token, and its standard error."""
    values = compared["kl"]
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def _error(
    pairs: Sequence[tuple[Tensor, Tensor]], statistic: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Return the bootstrap's standard error of a mean over tasks; both sides share questions."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(_SAMPLES, dtype=torch.float64)
    for ours, theirs in pairs:
        rows = torch.randint(len(ours), (_SAMPLES, len(ours)), generator=generator)
        total += statistic(ours.double()[rows], theirs.double()[rows])
    return float((total / len(pairs)).std())


def _tasks(runs: Runs) -> Iterator[str]:
    """Yield the accuracy of every run on each task."""
    for pool, tasks in POOLS.items():
        seeds = [seed for name, seed in runs.sets() if name == pool]
        if not seeds:
            continue
        yield f"| {pool} | seed | {' | '.join(tasks)} | average | of the experts | processor time |"
        yield "|---" * (len(tasks) + 5) + "|"
        for seed in seeds:
            for cell in (EXPERTS, *CELLS):
                if (pool, seed, cell) in runs:
                    yield _task_row(runs, pool, seed, cell)
        yield ""


def _task_row(runs: Runs, pool: str, seed: int, cell: str) -> str:
    marks = [runs.right(pool, seed, cell, task) for task in POOLS[pool]]
    cells = " | ".join(f"{100 * float(mark.mean()):.0f}" for mark in marks)
    seconds = runs.runs[pool, seed, cell]["seconds"]["all"]
    average = runs.accuracy(pool, seed, cell)
    share = _with_error(*runs.share(pool, seed, cell))
    return f"| {cell} | {seed} | {cells} | {average:.1f} | {share} | {seconds:.0f} s |"


def _lost(runs: Runs) -> Iterator[str]:
    """Yield what every run on the four tasks has kept of the base."""
    yield (
        "| merge | seed | accuracy | same tokens | same answers | divergence | Bible | licence |"
    )
    yield "|---" * 8 + "|"
    for pool, seed in runs.sets():
        if pool != "four":
            continue
        if (pool, seed, EXPERTS) in runs:
            for task, compared in runs.general(pool, seed, EXPERTS).items():
                right = 100 * float(runs.right(pool, seed, EXPERTS, task).mean())
                yield _lost_row(runs, f"expert of {task}", seed, f"{right:.0f} (own)", compared)
        for cell in CELLS:
            if (pool, seed, cell) in runs:
                accuracy = f"{runs.accuracy(pool, seed, cell):.1f}"
                yield _lost_row(runs, cell, seed, accuracy, runs.general(pool, seed, cell))


def _lost_row(runs: Runs, name: str, seed: int, accuracy: str, compared: Mapping[str, Any]) -> str:
    answers = sum(a == b for a, b in zip(compared["equal"], compared["tokens"], strict=True))
    kl, error = divergence(compared)
    bits = " | ".join(f"{runs.bits(compared, text):.3f}" for text in TEXTS)
    same = _with_error(*same_tokens(compared))
    return (
        f"| {name} | {seed} | {accuracy} | {same} | {answers} | {kl:.2f} ± {error:.2f} | {bits} |"
    )


def _gains(runs: Runs) -> Iterator[str]:
    """Yield paired differences between cells on the same questions."""
    yield "| pool | seed | difference | accuracy, points |"
    yield "|---|---|---|---|"
    for pool, seed in runs.sets():
        for cell, other in PAIRS:
            if {(pool, seed, cell), (pool, seed, other)} <= runs.runs.keys():
                gain = _with_error(*runs.gain(pool, seed, cell, other), sign="+")
                yield f"| {pool} | {seed} | {cell} minus {other} | {gain} |"


def _first(runs: Runs) -> Iterator[str]:
    """Yield the runs of the first protocol."""
    tasks = POOLS["four"]
    yield f"| prompts per task | {' | '.join(tasks)} | of the experts | processor time |"
    yield "|---" * (len(tasks) + 3) + "|"
    for run in runs.first:
        cells = " | ".join(f"{100 * run['tasks'][task]:.0f}" for task in tasks)
        yield f"| {run['cell']} | {cells} | {100 * run['share']:.1f} | {run['cpu_s']} s |"


def _with_error(value: float, error: float, *, sign: str = "") -> str:
    return f"{value:{sign}.1f} ± {error:.1f}"


def _order(key: tuple[str, int]) -> tuple[int, int]:
    pool, seed = key
    return list(POOLS).index(pool), seed


#: Cells to compare on the same questions.
PAIRS = (
    ("8 own", "tsv-m"),
    ("32 of the experts", "8 own"),
    ("8 own, 32 general", "8 own"),
    ("32 of the experts, 32 general", "32 of the experts"),
    ("8 own, one adapter", "8 own"),
    ("8 own, all weights", "8 own"),
)
TABLES: dict[str, Callable[[Runs], Iterator[str]]] = {
    "tasks": _tasks,
    "lost": _lost,
    "gains": _gains,
    "first": _first,
}
