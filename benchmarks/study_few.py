"""Few examples on other pools than `mini8`, for `study.py`.

The pools are `lm-mini`, and the text encoder that `study_texts.py` makes. `strong` is the pipeline,
`free` the same without shrinkage, and `layer` learns one coefficient per tensor.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from study_page import runs_of

from fusion_adamerging.adamerging import AdaMerging
from fusion_core import RunContext
from fusion_core.commands import Subject
from fusion_core.recipe.config import AlignmentPolicy
from fusion_spectral.orthogonalise import Orthogonalise
from pools_lm.config import LanguageConfig
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.mini.pools import MiniPool, MiniTasks
from pools_lm.pools import EncoderPool
from pools_lm.tasks.sentence_config import ClassificationConfig
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool, TaskPool

    Pools = tuple[ModelPool[Any], TaskPool[Any]]

STRONG = {"preset": "strong", "init": 1.0}
LEARNERS: dict[str, dict[str, Any]] = {
    "strong": STRONG,
    "free": {**STRONG, "shrinkage": 0},
    "layer": {**STRONG, "granularity": "layer", "lr": 0.02, "temperature": 1},
}
#: What to run on each pool, as learner and number of examples per task.
CASES = {
    "texts": [("strong", 1), ("strong", 4), ("layer", 4), ("strong", 16)],
    "lm-mini": [("strong", 1), ("free", 1), ("strong", 8), ("free", 8), ("strong", 4), ("free", 4)],
}


def measure_other_pools(texts: Path | None, path: Path) -> None:
    """Append one JSON line per missing run to a file; without `texts`, for `lm-mini` alone."""
    done = {(run["pool"], run["case"]) for run in runs_of(path)}
    pools = {"texts": text_pool(texts)} if texts else {}
    for name, (pool, tasks) in {**pools, "lm-mini": lm_mini()}.items():
        cases: dict[str, dict[str, Any] | None] = {"experts": None, "start": {**STRONG, "steps": 0}}
        for learner, count in CASES[name]:
            cases[f"{count} examples: {learner}"] = {**LEARNERS[learner], "examples": count}
        for case, given in cases.items():
            if (name, case) not in done:
                started = time.process_time()
                scores = _experts(pool, tasks) if given is None else _merge(pool, tasks, given)
                seconds = round(time.process_time() - started, 1)
                run = {"pool": name, "case": case, "score": scores, "seconds": seconds}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                print(name, case, scores, flush=True)


def lm_mini() -> Pools:
    """Return the tiny Llama, its six experts and their tasks."""
    pool = MiniPool(MiniConfig()).aligned(AlignmentPolicy())
    return pool, MiniTasks(MiniTasksConfig()).bind(pool)


def text_pool(folder: Path) -> Pools:
    """Return the encoder and its experts, each with the head of its task."""
    experts = {path.name: str(path) for path in sorted((folder / "experts").iterdir())}
    config = LanguageConfig(base=str(folder / "base"), models=experts)
    pool = EncoderPool(config).aligned(AlignmentPolicy(extra="drop", missing="base"))
    datasets = {
        name: {
            "head": expert,
            **{split: str(folder / f"{name}.{split}.jsonl") for split in ("test", "unlabeled")},
        }
        for name, expert in experts.items()
    }
    tasks = ClassificationConfig(head="expert", length=24, batch_size=100, datasets=datasets)
    return pool, ClassificationTasks(tasks).bind(pool)


def _merge(pool: ModelPool[Any], tasks: TaskPool[Any], options: dict[str, Any]) -> dict[str, float]:
    context = RunContext(tasks=tasks)
    models = context.transform(pool, Orthogonalise())
    merged = AdaMerging(**options).run(models, context)
    return _scores(tasks.measure(Subject.of(models.build(merged))))


def _experts(pool: ModelPool[Any], tasks: TaskPool[Any]) -> dict[str, float]:
    named = {pool.task_of(name): expert for name, expert in pool.experts.items()}
    return _scores({name: tasks[name].evaluate(pool.build(own)) for name, own in named.items()})


def _scores(measured: Any) -> dict[str, float]:  # noqa: ANN401 - metrics by task
    """Return the main metric of each task, which comes first; the inverse of bits per byte."""
    scores = {}
    for task, metrics in measured.items():
        name, value = next(iter(metrics.items()))
        scores[task] = round(1 / value if name == "bits_per_byte" else value, 5)
    return scores
