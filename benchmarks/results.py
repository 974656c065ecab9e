"""Run every method with its defaults on `mini8`: `python benchmarks/results.py --experts DIR`.

Runs `fuse run` for each registered algorithm and each set of experts. Seed 3 ships; `--experts` is
the output of `plugins/pools-mini/build/experts.py --seeds 4 5`. Writes three files to
`docs/reference`: `results.json` with all figures, `results.md` with the tables, and `results.svg`
with accuracy against cost. Runs that `results.json` already contains are skipped; `--anew NAME...`
repeats them. Everything runs on one core, so that times do not depend on the number of cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guide_charts
from overview import draw
from results_page import page, picture

from fusion_core.commands import load_plugins, read_provenance
from fusion_core.contracts.specs import AlgorithmSpec
from pools_mini.files import DATA
from pools_mini.plugin import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parent / "docs" / "reference"
SHIPPED = 3
FUSE = Path(sys.executable).with_name("fuse")
#: The merge in pipelines of a transform or a calibration.
MERGE = "task-arithmetic"
#: Values of options without a default.
OPTIONS: dict[str, dict[str, Any]] = {
    "passthrough": {"model": TASKS[0]},
    "stack": {"slices": [{"model": task, "layers": [0, 4]} for task in TASKS[:2]]},
}
#: Further recommended runs: pipelines, a preset, and masks as the paper measures them.
MORE: dict[str, tuple[str, dict[str, Any] | list[Any]]] = {
    "adamerging, preset strong": ("adamerging", {"name": "adamerging", "preset": "strong"}),
    "strong": ("adamerging", {"name": "strong"}),
    "opcm": ("task-arithmetic", {"name": "opcm"}),
    "tsv-m,featcal": ("featcal", ["tsv-m", "featcal"]),
    "consensus, task_masks": ("consensus", {"name": "consensus", "task_masks": True}),
}
Runs = dict[str, dict[str, Any]]
Algorithm = dict[str, Any] | list[Any]


def main() -> None:
    """Make the missing runs, and write the three files."""
    options = _options()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    path = REFERENCE / "results.json"
    runs: Runs = json.loads(path.read_text()) if path.is_file() else {}
    runs = {name: method for name, method in runs.items() if name not in options.anew}
    for name, (spec, algorithm) in _algorithms().items():
        method = runs.setdefault(name, {"stage": spec.stage, "data": spec.needs_tasks})
        for seed in options.seeds:
            if str(seed) not in method.setdefault("seeds", {}):
                recipe = _recipe(algorithm, TASKS[: spec.max_experts], seed, options.experts)
                method["seeds"][str(seed)] = _run(name, recipe)
                print(name, seed, method["seeds"][str(seed)]["average"], flush=True)
                path.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
    (REFERENCE / "results.md").write_text(page(runs))
    picture(runs, REFERENCE / "results.svg")
    draw(runs, REFERENCE / "overview.svg")
    guide_charts.main()


def _algorithms() -> dict[str, tuple[AlgorithmSpec, Algorithm]]:
    """Return the runs by name: each method, alone or in a pipeline, and the further runs.

    Averages over one training run are left out: `mini8` has experts of eight tasks. So are mixtures
    from language models.
    """
    specs = {
        component.spec.name: component.spec
        for component in load_plugins().components(AlgorithmSpec)
        if component.plugin.distribution not in {"fusion-average", "fusion-moe"}
    }
    alone = {name: (spec, _alone(spec)) for name, spec in specs.items()}
    return alone | {name: (specs[spec], options) for name, (spec, options) in MORE.items()}


def _alone(spec: AlgorithmSpec) -> Algorithm:
    stages = {"transform": [spec.name, MERGE], "calibrate": [MERGE, spec.name]}
    return stages.get(spec.stage, {"name": spec.name, **OPTIONS.get(spec.name, {})})


def _run(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Run a recipe in its own process, and return its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.json"  # which is YAML, too
        recipe.write_text(json.dumps(content))
        output = Path(folder) / "out"
        arguments = [str(FUSE), "run", str(recipe), "-o", str(output), "-q"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{name} failed")
        report = json.loads((output / "report.json").read_text())
        provenance = read_provenance(output)
    accuracy = {task: metrics["accuracy"] for task, metrics in report["tasks"].items()}
    return {
        "average": report["average"],
        "normalised_average": report["normalised_average"],
        "tasks": accuracy,
        **{row: _mean(report["reference"][row]) for row in ("base", "experts")},
        "seconds": provenance.run.seconds,
        "peak_mb": usage.ru_maxrss // 1024,
        "needs_task": report.get("needs_task", False),
    }


def _mean(row: dict[str, dict[str, float]]) -> float:
    return sum(metrics["accuracy"] for metrics in row.values()) / len(row)


def _recipe(
    algorithm: Algorithm, tasks: Sequence[str], seed: int, experts: Path | None
) -> dict[str, Any]:
    """Return the recipe that merges and measures the experts of some tasks."""
    pool: dict[str, Any] = {"name": "mini8", "tasks": list(tasks)}
    if seed != SHIPPED:
        if experts is None:
            sys.exit("name the folder that plugins/pools-mini/build/experts.py wrote: --experts")
        models = {task: str(experts / str(seed) / task) for task in tasks}
        pool = {"name": "clip", "base": str(DATA / "base"), "models": models}
    chosen = {"name": "mini8", "tasks": list(tasks)}
    return {"algorithm": algorithm, "model_pool": pool, "task_pool": chosen}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--anew", nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
