"""Every method with its defaults on `mini8`: `python benchmarks/results.py --experts DIR`.

Runs `fuse run` for each registered algorithm and each set of experts (seed 3 ships; `--experts` is
what `plugins/pools-mini/build/experts.py --seeds 4 5` wrote) and keeps in `docs/reference`:
`results.json`, every figure; `results.md`, the table; `results.svg`, accuracy against cost. What
is in `results.json` already is not run again; `--anew NAME...` runs these once more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_page import page, picture

from fusion_core import load_plugins
from fusion_core.contracts.specs import AlgorithmSpec
from pools_mini.files import DATA
from pools_mini.plugin import TASKS

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parent / "docs" / "reference"
SHIPPED = 3
FUSE = Path(sys.executable).with_name("fuse")
#: The merge that transforms and calibrations are shown with.
BESIDE = "task-arithmetic"
#: Options that have no default.
OPTIONS: dict[str, dict[str, Any]] = {
    "passthrough": {"model": TASKS[0]},
    "stack": {"slices": [{"model": task, "layers": [0, 4]} for task in TASKS[:2]]},
}
Runs = dict[str, dict[str, Any]]


def main() -> None:
    """Run what is missing, and write the three files."""
    options = _options()
    path = REFERENCE / "results.json"
    runs: Runs = json.loads(path.read_text()) if path.is_file() else {}
    runs = {name: each for name, each in runs.items() if name not in options.anew}
    for component in load_plugins().components(AlgorithmSpec):
        spec = component.spec
        found = runs.setdefault(spec.name, {"stage": spec.stage, "data": spec.needs_tasks})
        for seed in options.seeds:
            if str(seed) not in found.setdefault("seeds", {}):
                found["seeds"][str(seed)] = _run(spec, seed, options.experts)
                print(spec.name, seed, found["seeds"][str(seed)]["average"], flush=True)
                path.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
    (REFERENCE / "results.md").write_text(page(runs))
    picture(runs, REFERENCE / "results.svg")


def _run(spec: AlgorithmSpec, seed: int, experts: Path | None) -> dict[str, Any]:
    """Run one method on one set of experts, in a process of its own, and measure that."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.json"  # which is YAML, too
        recipe.write_text(json.dumps(_recipe(spec, seed, experts)))
        output = Path(folder) / "out"
        arguments = [str(FUSE), "run", str(recipe), "-o", str(output), "-q"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{spec.name} failed on seed {seed}")
        report = json.loads((output / "report.json").read_text())
        provenance = json.loads((output / "provenance.json").read_text())
    accuracy = {task: metrics["accuracy"] for task, metrics in report["tasks"].items()}
    return {
        "average": report["average"],
        "normalised_average": report["normalised_average"],
        "tasks": accuracy,
        **{row: _mean(report["reference"][row]) for row in ("base", "experts")},
        "seconds": provenance["timings"]["seconds"],
        "peak_mb": usage.ru_maxrss // 1024,
    }


def _mean(row: dict[str, dict[str, float]]) -> float:
    return sum(metrics["accuracy"] for metrics in row.values()) / len(row)


def _recipe(spec: AlgorithmSpec, seed: int, experts: Path | None) -> dict[str, Any]:
    """Return the recipe of a method alone, or beside a sum where it is not a merge."""
    stages = {"transform": [spec.name, BESIDE], "calibrate": [BESIDE, spec.name]}
    algorithm: Any = stages.get(spec.stage, {"name": spec.name, **OPTIONS.get(spec.name, {})})
    tasks = list(TASKS[: spec.max_experts])
    pool: dict[str, Any] = {"name": "mini8", "tasks": tasks}
    if seed != SHIPPED:
        if experts is None:
            sys.exit("name the folder that plugins/pools-mini/build/experts.py wrote: --experts")
        models = {task: str(experts / str(seed) / task) for task in tasks}
        pool = {"name": "clip", "base": str(DATA / "base"), "models": models}
    chosen = {"name": "mini8", "tasks": tasks}
    return {"algorithm": algorithm, "model_pool": pool, "task_pool": chosen}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--anew", nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
