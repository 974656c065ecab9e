"""The variants among which AdaMerging's defaults were chosen (docs/explanation/adamerging.md).

Run as `python benchmarks/study.py --only defaults --seeds 0 1 2 --experts DIR --runs FILE`.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

#: The first options of the study; variants change them.
START: Options = {"schedule": "cosine", "init": 0.3}
#: The final defaults and the paper's preset, which do not build on the first options.
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
