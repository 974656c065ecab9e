"""Measure how often diagnoses come true: `python benchmarks/diagnosis.py --experts DIR`.

Measures, on every pool of `diagnosis_pools.py`, every merge that rules compare and the figures of
`fuse diagnose`. Writes `docs/reference/diagnosis.json`; pools that it already contains are not
measured again. Then writes the record that the plugin ships, and `docs/reference/diagnosis.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diagnosis_page import page, record
from diagnosis_pools import cases

from fusion_core import Reference, Report, RunOptions, merge
from fusion_core.commands import Subject
from fusion_report.diagnosis.diagnose import Questions, measure
from fusion_report.diagnosis.merges import MERGES

if TYPE_CHECKING:
    from diagnosis_pools import Case

    from fusion_core import Metric, MetricValues, ModelPool, TaskPool, WeightSource

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
_FILE = REFERENCE / "diagnosis.json"
_RECORD = ROOT / "plugins/fusion-report/src/fusion_report/diagnosis/record.json"
#: Measure connectivity between experts in pools of at most this many experts.
_FEW = 3


def main() -> None:
    """Measure missing pools, and write the record and the page."""
    options = _options()
    torch.set_num_threads(1)
    pools: dict[str, Any] = json.loads(_FILE.read_text()) if _FILE.is_file() else {}
    for case in cases(options.experts):
        if case.name not in pools:
            started = time.perf_counter()
            pools[case.name] = _measured(case)
            print(f"{time.perf_counter() - started:.1f} s  {case.name}", flush=True)
            _FILE.write_text(json.dumps(pools, indent=1) + "\n")
    _RECORD.write_text(json.dumps(record(pools), indent=1) + "\n")
    (REFERENCE / "diagnosis.md").write_text(page(pools))


def _measured(case: Case) -> dict[str, Any]:
    pool, tasks = case.make()
    lines = len(pool.experts) <= _FEW or case.kind.startswith("toys")
    figures = measure(pool, tasks, Questions(trials=True, connectivity=lines), RunOptions())
    expert_rows = {
        name: _row(pool, tasks, pool.expert_of(name), [name])[name] for name in tasks.names
    }
    merges = {name: merge(algorithm, pool) for name, algorithm in MERGES.items()}
    assert pool.base is not None
    rows = {name: _row(pool, tasks, model) for name, model in {"base": pool.base, **merges}.items()}
    shares = {
        name: Report(
            row, Reference(experts=expert_rows), metrics=_declared(tasks)
        ).normalised_average
        for name, row in rows.items()
    }
    return {
        "kind": case.kind,
        "held_out": case.is_held_out,
        "figures": {name: _known(value) for name, value in figures.numbers.items()},
        "agreement": {name: figures.agreement(name) for name in figures.answers},
        "entropy": {name: figures.entropy(name) for name in figures.answers},
        "normalised": shares,
    }


def _row(
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    weights: WeightSource,
    names: list[str] | None = None,
) -> dict[str, MetricValues]:
    """Return a model's metrics on the tasks."""
    return tasks.measure(Subject.of(pool.build(weights)), names)


def _declared(tasks: TaskPool[Any]) -> dict[str, dict[str, Metric]]:
    return {task.name: {metric.name: metric for metric in task.metrics} for task in tasks}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
