"""Few examples on the pool `lm-mini`, for `study.py`.

`strong` is the pipeline, and `free` the same without shrinkage.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from study_page import append_run, runs_of

from fusion_adamerging.adamerging import AdaMerging
from fusion_core import RunContext
from fusion_core.commands import Subject
from fusion_core.recipe.config import AlignmentPolicy
from fusion_spectral.orthogonalise import Orthogonalise
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.mini.pools import MiniPool, MiniTasks

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool, TaskPool

STRONG = {"preset": "strong", "init": 1.0}
LEARNERS: dict[str, dict[str, Any]] = {
    "strong": STRONG,
    "free": {**STRONG, "shrinkage": 0},
}
#: Numbers of prompts per task.
COUNTS = (1, 4, 8)


def measure_lm_mini(path: Path) -> None:
    """Append one JSON line per missing run to a file."""
    done = {run["case"] for run in runs_of(path)}
    pool = MiniPool(MiniConfig()).aligned(AlignmentPolicy())
    tasks = MiniTasks(MiniTasksConfig()).bind(pool)
    cases: dict[str, dict[str, Any] | None] = {"experts": None, "start": {**STRONG, "steps": 0}}
    cases |= {
        f"{count} examples: {name}": {**learner, "examples": count}
        for count in COUNTS
        for name, learner in LEARNERS.items()
    }
    for case, options in cases.items():
        if case not in done:
            started = time.process_time()
            scores = _experts(pool, tasks) if options is None else _merge(pool, tasks, options)
            seconds = round(time.process_time() - started, 1)
            run = {"pool": "lm-mini", "case": case, "score": scores, "seconds": seconds}
            append_run(path, run)
            print("lm-mini", case, scores, flush=True)


def _merge(pool: ModelPool[Any], tasks: TaskPool[Any], options: dict[str, Any]) -> dict[str, float]:
    context = RunContext(tasks=tasks)
    models = context.transform(pool, Orthogonalise())
    merged = AdaMerging(**options).run(models, context)
    return _scores(tasks.measure(Subject.of(models.build(merged))))


def _experts(pool: ModelPool[Any], tasks: TaskPool[Any]) -> dict[str, float]:
    named = {pool.task_of(name): expert for name, expert in pool.experts.items()}
    return _scores(
        {name: tasks[name].evaluate(pool.build(expert)) for name, expert in named.items()}
    )


def _scores(measured: Any) -> dict[str, float]:  # noqa: ANN401 - metrics by task
    """Return the main metric of each task, which comes first; the inverse of bits per byte."""
    scores = {}
    for task, metrics in measured.items():
        name, value = next(iter(metrics.items()))
        scores[task] = round(1 / value if name == "bits_per_byte" else value, 5)
    return scores
