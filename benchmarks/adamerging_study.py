"""How AdaMerging's defaults were chosen: `python benchmarks/adamerging_study.py --experts DIR`.

Runs variants of the search on `mini8`'s tasks with several sets of experts (made by
`plugins/pools-mini/build/experts.py`; seed 3 ships) and prints one JSON line a run: accuracy on the
test images by task, their mean, the seconds of the search. `--table` lays such lines out as the
table of docs/explanation/adamerging.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_core import RunContext, Subject
from fusion_core.recipe.config import AlignmentPolicy
from fusion_spectral.orthogonalise import Orthogonalise
from pools_clip.config import ClipConfig
from pools_clip.pool import ClipPool
from pools_mini.config import Mini8Config, Mini8TasksConfig
from pools_mini.pools import Mini8Pool, Mini8Tasks

SHIPPED = 3
Options = dict[str, Any]

#: Where the study began; what a variant says comes on top.
START: Options = {"schedule": "cosine", "init": 0.3}
#: What it ended with, and the paper's preset: these do not begin there.
RESULTS: dict[str, Options] = {
    "default": {},
    "default, bf16": {"precision": "bf16"},
    "default, teacher": {"objective": "teacher"},
    "default, teacher, lr 0.02": {"objective": "teacher", "lr": 0.02},
    "default, task-wise": {"granularity": "task"},
    "paper": {"preset": "paper"},
}
BEGUN: dict[str, Options] = {
    "start": {},
    "task-wise": {"granularity": "task"},
    "lr 0.003": {"lr": 0.003},
    "lr 0.02": {"lr": 0.02},
    "lr 0.03": {"lr": 0.03},
    "constant": {"schedule": "constant"},
    "constant, lr 0.003": {"schedule": "constant", "lr": 0.003},
    "30 steps, lr 0.02": {"steps": 30, "lr": 0.02},
    "50 steps, lr 0.015": {"steps": 50, "lr": 0.015},
    "50 steps, lr 0.02": {"steps": 50, "lr": 0.02},
    "200 steps": {"steps": 200},
    "200 steps, lr 0.005": {"steps": 200, "lr": 0.005},
    "init 0.1": {"init": 0.1},
    "init 0.2": {"init": 0.2},
    "init 0.4": {"init": 0.4},
    "batch 8": {"batch_size": 8},
    "batch 32": {"batch_size": 32},
    "clamp": {"clamp": True},
    "trim": {"trim": True},
    "trim, init 0.5": {"trim": True, "init": 0.5},
    "bf16": {"precision": "bf16"},
    "bf16 task vectors": {"task_vectors": "bf16"},
    "teacher": {"objective": "teacher"},
    "teacher, lr 0.02": {"objective": "teacher", "lr": 0.02},
    "teacher, 300 steps": {"objective": "teacher", "steps": 300},
    "spectral start": {"init": 1.0},
    "spectral start, teacher": {"init": 1.0, "objective": "teacher"},
    "spectral start, no search": {"init": 1.0, "steps": 0},
    "no search": {"steps": 0},
    "lr 0.015": {"lr": 0.015},
    "init 0.1, constant": {"init": 0.1, "schedule": "constant"},
    "init 0.1, lr 0.02": {"init": 0.1, "lr": 0.02},
    "init 0.2, lr 0.015": {"init": 0.2, "lr": 0.015},
    "init 0.2, lr 0.02": {"init": 0.2, "lr": 0.02},
    "init 0.2, lr 0.03": {"init": 0.2, "lr": 0.03},
    "batch 32, constant": {"batch_size": 32, "schedule": "constant"},
    "batch 32, lr 0.02": {"batch_size": 32, "lr": 0.02},
}
VARIANTS = RESULTS | {name: START | options for name, options in BEGUN.items()}


def main() -> None:
    """Run what is asked for, or lay out what was run."""
    options = _options()
    if options.table is not None:
        print_table(options.table)
        return
    torch.set_num_threads(options.threads)
    tasks = Mini8Tasks(Mini8TasksConfig())
    for seed in options.seeds:
        pool = experts_of(seed, options.experts)
        for name in options.variants or VARIANTS:
            print(json.dumps(_run(name, pool, tasks, seed)), flush=True)


def experts_of(seed: int, folder: Path | None) -> ClipPool:
    """Return the set of experts of a fine-tuning seed."""
    pool = Mini8Pool(Mini8Config())
    if seed == SHIPPED:
        return pool
    if folder is None:
        sys.exit("name the folder that plugins/pools-mini/build/experts.py wrote: --experts")
    models = {name: str(folder / str(seed) / name) for name in pool.experts}
    return ClipPool(ClipConfig(base=pool.base.describe(), models=models))


def _run(name: str, pool: ClipPool, tasks: Mini8Tasks, seed: int) -> dict[str, Any]:
    config = AdaMergingConfig(**VARIANTS[name])
    aligned = pool.aligned(AlignmentPolicy())
    context = RunContext(tasks=tasks, seed=seed)
    if name.startswith("spectral"):
        aligned = context.transformed(aligned, Orthogonalise())
    started = time.perf_counter()
    merged = AdaMerging(config).run(aligned, context)
    seconds = time.perf_counter() - started
    found = tasks.measure(Subject.of(aligned.build(merged)))
    accuracy = {task: 100 * metrics["accuracy"] for task, metrics in found.items()}
    mean = statistics.mean(accuracy.values())
    return {"seed": seed, "variant": name, "mean": mean, "seconds": seconds, "tasks": accuracy}


def print_table(path: Path) -> None:
    """Print mean and spread of every variant over its seeds, as Markdown."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seeds = sorted({run["seed"] for run in runs})
    print(f"| variant | mean | {' | '.join(f'seed {seed}' for seed in seeds)} | seconds |")
    print("|---" * (len(seeds) + 3) + "|")
    for name in VARIANTS:
        found = {run["seed"]: run for run in runs if run["variant"] == name}
        if not found:
            continue
        mean = statistics.mean(run["mean"] for run in found.values())
        cells = " | ".join(f"{found[s]['mean']:.1f}" if s in found else "" for s in seeds)
        seconds = statistics.median(run["seconds"] for run in found.values())
        print(f"| {name} | {mean:.1f} | {cells} | {seconds:.0f} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path, help="folder of more sets of experts, by seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[SHIPPED])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, help="lay out the lines of earlier runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
