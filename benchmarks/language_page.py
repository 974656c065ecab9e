"""Make the tables of the report on language models from the runs of `language_study.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from language_cases import CELLS, DOGE, EXPERTS, FOREIGN, MAIN, MANY, POOLS, SHORT
from language_runs import Runs, bits, divergence, same_answers, same_tokens
from study_page import fill_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from language_runs import Run

PAGES = ("language-models.md", "language-model-runs.md")
TEXTS = ("bible", "licence")
NOT_MEASURED = "-"
_POOL = "four"
#: Cells to compare on the same questions.
PAIRS = (
    ("8 own", EXPERTS),
    ("8 own, 32 general", EXPERTS),
    ("8 own", "tsv-m"),
    ("tsv-m", "task-arithmetic"),
    ("tsv-m", "ties"),
    ("tsv-m, scale 0.7", "ties"),
    *((DOGE, other) for other in ("tsv-m", "tsv-m, scale 0.7", "ties")),
    (MANY, "8 own"),
    ("32 of the experts", "8 own"),
    ("32 of the base", "8 own"),
    *((foreign, "8 own") for foreign in FOREIGN),
    ("8 own, 32 general", "8 own"),
    ("8 own, one adapter", "8 own"),
    ("8 own, all weights", "8 own"),
)


def write_pages(folder: Path) -> Runs:
    """Write the tables between their markers in the pages."""
    runs = Runs.read(folder)
    for page in PAGES:
        path = folder / page
        path.write_text(filled(path.read_text(encoding="utf-8"), runs), encoding="utf-8")
    return runs


def filled(text: str, runs: Runs) -> str:
    """Return a page with tables from the runs."""
    return fill_tables(text, {name: rows(runs) for name, rows in TABLES.items()})


def _summary(runs: Runs) -> Iterator[str]:
    """Yield the accuracy of every merge on every seed, and means over seeds."""
    seeds = runs.seeds(_POOL)
    heads = ("mean", "of the experts", "seeds")
    yield _row("merge", *(f"seed {seed}" for seed in seeds), *heads)
    yield _rule(len(seeds) + 1 + len(heads))
    for cell in (EXPERTS, *CELLS):
        measured = runs.seeds(_POOL, cell)
        if not measured:
            continue
        singles = [
            _accuracy(runs, _POOL, seed, cell) if seed in measured else NOT_MEASURED
            for seed in seeds
        ]
        means = runs.accuracy(_POOL, measured, cell), runs.share(_POOL, measured, cell)
        yield _row(cell, *singles, *(_with_error(*mean) for mean in means), _listed(measured))


def _gains(runs: Runs) -> Iterator[str]:
    """Yield paired differences between cells on the same questions."""
    yield _row("difference", "seeds", "accuracy, points")
    yield _rule(3)
    for cell, other in PAIRS:
        if seeds := runs.seeds(_POOL, cell, other):
            gain = _with_error(*runs.gain(_POOL, seeds, cell, other), sign="+")
            yield _row(f"{cell} minus {other}", _listed(seeds), gain)


def _lost(runs: Runs) -> Iterator[str]:
    """Yield what every merge of the four experts has kept of the base."""
    heads = ("accuracy", "same tokens", "same answers", "divergence", "Bible", "licence")
    yield _row("merge", "seeds", *heads)
    yield _rule(8)
    seeds = runs.seeds(_POOL, EXPERTS)
    compared = runs.general(_POOL, seeds, EXPERTS)
    for index, task in enumerate(POOLS[_POOL]):
        marks = torch.stack([runs.right(_POOL, seed, EXPERTS, task) for seed in seeds])
        accuracy = f"{100 * float(marks.mean()):.1f} (own)"
        of_task = [[of_seed[index]] for of_seed in compared]
        yield _row(f"expert of {task}", _listed(seeds), accuracy, *_compare_with_base(of_task))
    for cell in CELLS:
        if seeds := runs.seeds(_POOL, cell):
            accuracy = f"{runs.accuracy(_POOL, seeds, cell)[0]:.1f}"
            losses = _compare_with_base(runs.general(_POOL, seeds, cell))
            yield _row(cell, _listed(seeds), accuracy, *losses)


def _compare_with_base(compared: Sequence[Sequence[Run]]) -> list[str]:
    value, error = divergence(compared)
    return [
        _with_error(*same_tokens(compared)),
        f"{same_answers(compared):.2g}",
        f"{value:.2f} ± {error:.2f}",
        *(f"{bits(compared, text):.3f}" for text in TEXTS),
    ]


def _pools(runs: Runs) -> Iterator[str]:
    """Yield the accuracy of the main merges on every pool, one row per seed."""
    start, search = MAIN[:2]
    heads = (f"{search} minus experts", SHORT, f"{SHORT} minus {search}")
    yield _row("pool", "seed", EXPERTS, start, search, *heads)
    yield _rule(8)
    for pool in POOLS:
        for seed in runs.seeds(pool, start, search):
            accuracies = (_accuracy(runs, pool, seed, cell) for cell in (EXPERTS, start, search))
            gain = _with_error(*runs.gain(pool, [seed], search, EXPERTS), sign="+")
            short = (NOT_MEASURED, NOT_MEASURED)
            if (pool, seed, SHORT) in runs:
                more = _with_error(*runs.gain(pool, [seed], SHORT, search), sign="+")
                short = (_accuracy(runs, pool, seed, SHORT), more)
            yield _row(pool, str(seed), *accuracies, gain, *short)


def _tasks(runs: Runs) -> Iterator[str]:
    """Yield the accuracy of every run on each task."""
    for pool, tasks in POOLS.items():
        seeds = runs.seeds(pool)
        if not seeds:
            continue
        yield _row(pool, "seed", *tasks, "average", "of the experts", "processor time")
        yield _rule(len(tasks) + 5)
        for seed in seeds:
            for cell in (EXPERTS, *CELLS):
                if (pool, seed, cell) in runs:
                    yield _task_row(runs, pool, seed, cell)
        yield ""


def _task_row(runs: Runs, pool: str, seed: int, cell: str) -> str:
    seconds = runs.runs[pool, seed, cell]["seconds"]["all"]
    average = _accuracy(runs, pool, seed, cell)
    share = _with_error(*runs.share(pool, [seed], cell))
    marks = [f"{100 * float(runs.right(pool, seed, cell, t).mean()):.0f}" for t in POOLS[pool]]
    return _row(cell, str(seed), *marks, average, share, f"{seconds:.0f} s")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _accuracy(runs: Runs, pool: str, seed: int, cell: str) -> str:
    return f"{runs.accuracy(pool, [seed], cell)[0]:.1f}"


def _with_error(value: float, error: float, *, sign: str = "") -> str:
    """Show a value, and its error unless a sample of the bootstrap divides by zero."""
    return f"{value:{sign}.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}")


TABLES: dict[str, Callable[[Runs], Iterator[str]]] = {
    "summary": _summary,
    "gains": _gains,
    "lost": _lost,
    "pools": _pools,
    "tasks": _tasks,
}
