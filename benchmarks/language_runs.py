"""The runs of `language_study.py`, and figures over them with standard errors."""

from __future__ import annotations

import statistics
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from language_cases import BASE, CELLS, EXPERTS, POOLS, RANKS, SMALL
from study_page import runs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    Run = Mapping[str, Any]
    #: two figures of each question
    Pair = tuple[Tensor, Tensor]

RUNS = "language-models.jsonl"
#: Bootstrap samples, drawn from a fixed seed.
_SAMPLES = 2000


class Runs:
    """The runs by pool, seed and cell."""

    def __init__(self, lines: Sequence[Run]) -> None:
        self.runs = {(run["pool"], run["seed"], run["cell"]): run for run in lines}

    @classmethod
    def read(cls, folder: Path) -> Runs:
        """Read the runs of the report."""
        return cls(runs_of(folder / RUNS))

    def __contains__(self, key: tuple[str, int, str]) -> bool:
        return key in self.runs

    def seeds(self, pool: str, *cells: str) -> list[int]:
        """Return the seeds on which all these cells of a pool were measured."""
        seeds = {seed for name, seed, cell in self.runs if name == pool and cell in CELLS}
        return sorted(
            seed for seed in seeds if all((pool, seed, cell) in self.runs for cell in cells)
        )

    def right(self, pool: str, seed: int, cell: str, task: str) -> Tensor:
        """Return 1 for each right answer to a task's test questions, and otherwise 0."""
        marks = self._run(pool, seed, cell, task)["right"][task]
        return torch.tensor([float(mark) for mark in marks])

    def accuracy(self, pool: str, seeds: Sequence[int], cell: str) -> tuple[float, float]:
        """Return the mean accuracy over tasks and seeds in percent, and its error."""
        return estimate(self._paired(pool, seeds, cell, cell), lambda ours, _: ours)

    def share(self, pool: str, seeds: Sequence[int], cell: str) -> tuple[float, float]:
        """Return the mean over tasks and seeds of merge / expert in percent, and its error."""
        return estimate(self._paired(pool, seeds, cell, EXPERTS), torch.div)

    def gain(self, pool: str, seeds: Sequence[int], cell: str, other: str) -> tuple[float, float]:
        """Return how much more accurate a cell is than another in percentage points.

        Both answer the same questions. With the standard error.
        """
        pairs = self._paired(pool, seeds, cell, other)
        return estimate(pairs, torch.sub)

    def general(self, pool: str, seeds: Sequence[int], cell: str) -> list[list[Run]]:
        """Return each seed's comparisons with the base: one, or one per expert."""
        compared = [self._run(pool, seed, cell, POOLS[pool][0])["general"] for seed in seeds]
        if cell == EXPERTS:
            return [[of_seed[task] for task in POOLS[pool]] for of_seed in compared]
        return [[of_seed] for of_seed in compared]

    def _paired(self, pool: str, seeds: Sequence[int], cell: str, other: str) -> list[list[Pair]]:
        """Return the right answers of two cells, by seed and task."""
        return [
            [
                (self.right(pool, seed, cell, task), self.right(pool, seed, other, task))
                for task in POOLS[pool]
            ]
            for seed in seeds
        ]

    def _run(self, pool: str, seed: int, cell: str, task: str) -> Run:
        """Return a cell's run, which another pool may have made for the base and for experts."""
        if cell not in {BASE, EXPERTS}:
            return self.runs[pool, seed, cell]
        return next(
            run
            for (other, number, name), run in self.runs.items()
            if name == cell and task in run["right"]
            if other == pool or not {other, pool} & set(SMALL)
            if cell == BASE or (number, RANKS[other]) == (seed, RANKS[pool])
        )


def same_tokens(compared: Sequence[Sequence[Run]]) -> tuple[float, float]:
    """Return the percentage of the base's tokens that models agree with, and its error."""
    return estimate(
        [[_columns(run, "equal", "tokens") for run in seed] for seed in compared], torch.div
    )


def divergence(compared: Sequence[Sequence[Run]]) -> tuple[float, float]:
    """Return the mean divergence from the base in nats per token, and its error."""
    pairs = [[_columns(run, "kl", "kl") for run in seed] for seed in compared]
    value, error = estimate(pairs, lambda kl, _: kl)
    return value / 100, error / 100


def bits(compared: Sequence[Sequence[Run]], text: str) -> float:
    """Return the mean bits per byte of the passages of a text."""
    return statistics.mean(statistics.mean(run["bits"][text]) for seed in compared for run in seed)


def same_answers(compared: Sequence[Sequence[Run]]) -> float:
    """Return the mean number of prompts with the base's answer to the last token."""
    return statistics.mean(
        sum(a == b for a, b in zip(run["equal"], run["tokens"], strict=True))
        for seed in compared
        for run in seed
    )


def estimate(
    pairs: Sequence[Sequence[Pair]], statistic: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """Return a mean over seeds and tasks in percent, and its standard error by the bootstrap.

    The statistic is one of the means of two rows over a task's questions. `pairs` has two rows per
    seed and task, whose questions all seeds share. A sample draws as many questions of each task as
    there are, and one seed fewer than there are: the variance of a mean of few values is then not
    too small (Rao and Wu 1988). One seed is always drawn.
    """
    value, samples = 0.0, torch.zeros(len(pairs), _SAMPLES, dtype=torch.float64)
    for number, of_task in enumerate(zip(*pairs, strict=True)):
        ours, theirs = (torch.stack(rows).double() for rows in zip(*of_task, strict=True))
        value += float(statistic(ours.mean(-1), theirs.mean(-1)).mean()) / len(pairs[0])
        shares = _shares(ours.shape[1], number)
        samples += statistic(ours @ shares, theirs @ shares) / len(pairs[0])
    generator = torch.Generator().manual_seed(len(pairs[0]))
    drawn = torch.randint(len(pairs), (max(len(pairs) - 1, 1), _SAMPLES), generator=generator)
    return 100 * value, 100 * float(samples.gather(0, drawn).mean(0).std())


@cache
def _shares(count: int, seed: int) -> Tensor:
    """Return the share of each question in each sample, shape (count, samples)."""
    drawn = torch.randint(count, (count, _SAMPLES), generator=torch.Generator().manual_seed(seed))
    ones = torch.full((count, _SAMPLES), 1 / count, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(0, drawn, ones)


def _columns(run: Run, *names: str) -> Any:  # noqa: ANN401 - as many as there are names
    return tuple(torch.tensor(run[name], dtype=torch.float64) for name in names)
