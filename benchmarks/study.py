"""Measure coefficients finer than layers: `nox -s study -- --experts DIR`.

Runs the cases of `study_cases.py` on `mini8`'s tasks with several sets of experts (made by
`plugins/pools-mini/build/experts.py`; seed 3 ships). Appends one JSON line per run to
`docs/explanation/study.jsonl`: accuracy on the test images by task, the count of learned numbers,
and seconds of the search on one core. Existing runs are skipped, so an interrupted study resumes.
Then `study_page.py` and `study_figures.py` make the tables and figures of the report.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from study_cases import CASES, Case
from study_few import measure_lm_mini
from study_figures import draw
from study_page import OTHER_POOLS, append_run, runs_of, write_page
from study_parts import Distilled, counted, disturbed

from fusion_adamerging.adamerging import AdaMerging
from fusion_core import RunContext
from fusion_core.commands import Subject
from fusion_core.recipe.config import AlignmentPolicy
from fusion_spectral.orthogonalise import Orthogonalise
from pools_clip.config import ClipConfig
from pools_clip.pool import ClipPool
from pools_mini.config import Mini8Config, Mini8TasksConfig
from pools_mini.pools import Mini8Pool, Mini8Tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = 3
REPORT = Path(__file__).parents[1] / "docs" / "explanation"
RUNS = REPORT / "study.jsonl"


def main() -> None:
    """Make the missing runs, and write the report's tables and figures."""
    options = _options()
    torch.set_num_threads(1)
    done = {(run["case"], run["seed"]) for run in runs_of(options.runs)}
    for seed, name in _wanted(options):
        if (name, seed) not in done:
            pool = experts_of(seed, options.experts)
            case = CASES[name]
            measured = _experts(case, pool) if case.alone else _run(case, pool, seed)
            run = {"case": name, "seed": seed, **measured}
            append_run(options.runs, run)
            _report(run)
    if not options.only:
        measure_lm_mini(REPORT / OTHER_POOLS)
    draw(write_page(runs_of(options.runs), REPORT), REPORT)


def experts_of(seed: int, folder: Path | None) -> ClipPool:
    """Return the set of experts of a fine-tuning seed."""
    pool = Mini8Pool(Mini8Config())
    if seed == SHIPPED:
        return pool
    if folder is None:
        sys.exit("name the folder that plugins/pools-mini/build/experts.py wrote: --experts")
    models = {name: str(folder / str(seed) / name) for name in pool.experts}
    return ClipPool(ClipConfig(base=pool.base.describe(), models=models))


def _wanted(options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    for name, case in CASES.items():
        if options.only is None or case.group in options.only:
            yield from ((seed, name) for seed in options.seeds or case.seeds)


def _run(case: Case, pool: ClipPool, seed: int) -> dict[str, Any]:
    algorithm = (Distilled if case.rival else AdaMerging)(**case.options)
    tasks = algorithm.tasks(Mini8Tasks(Mini8TasksConfig()))
    context = RunContext(tasks=disturbed(tasks, case.noise), seed=seed)
    models = pool.aligned(AlignmentPolicy())
    if case.orthogonal:
        models = context.transform(models, Orthogonalise())
    started = time.perf_counter()
    merged = algorithm.run(models, context)
    seconds = time.perf_counter() - started
    measured = tasks.measure(Subject.of(models.build(merged)))
    return {
        "accuracy": _percent(measured),
        "numbers": counted(context, algorithm.config.init),
        "seconds": round(seconds, 1),
    }


def _experts(case: Case, pool: ClipPool) -> dict[str, Any]:
    """Return each expert's accuracy on its own task, or on the held-out half of it."""
    tasks = AdaMerging(**case.options).tasks(Mini8Tasks(Mini8TasksConfig()))
    metrics_by_task = {
        pool.task_of(name): tasks[pool.task_of(name)].evaluate(pool.build(expert))
        for name, expert in pool.experts.items()
    }
    return {"accuracy": _percent(metrics_by_task), "seconds": 0.0}


def _percent(metrics_by_task: dict[str, Any]) -> dict[str, float]:
    return {task: round(100 * metrics["accuracy"], 2) for task, metrics in metrics_by_task.items()}


def _report(run: dict[str, Any]) -> None:
    mean = sum(run["accuracy"].values()) / len(run["accuracy"])
    print(f"{run['case']:44s} seed {run['seed']} {mean:5.1f} {run['seconds']:5.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path, help="folder of more sets of experts, by seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of each case")
    parser.add_argument("--only", nargs="+", help="groups of cases")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the runs are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
