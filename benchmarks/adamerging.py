"""Measure an AdaMerging step against bare passes and against FusionBench, in one run.

    python benchmarks/adamerging.py --tasks 8 --images 4 16 --fusion-bench PATH/TO/VENV

The models are CLIP vision towers of ViT-B/32's shapes (87 million parameters) with random weights.
The tasks are batches of random images with random heads. Each contender runs in its own process, in
turn, once per repeat:

- bare: forward and backward of the same batches through one model, one task at a time. This floor
  is measured as torch multiplies, with faster kernels where ours uses them, and in bf16.
- ours: `AdaMerging.run` on checkpoints, in fp32 with every granularity, under bf16 autocast with
  bf16 task vectors, and with task vectors on disk.
- FusionBench's layer-wise merged model in the loop of its algorithm, if `--fusion-bench` names a
  virtual environment that has it.

The time of a step is the median of all steps but the first. Peak memory is that of the process.
Prints medians over repeats as Markdown. Only ratios compare across machines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CHILDREN = Path(__file__).with_name("adamerging_children.py")
OURS = (
    *("ours fp32", "ours row", "ours column", "ours row+column", "ours rank"),
    *("ours bf16", "ours disk"),
)
Figures = dict[str, list[dict[str, float]]]


def main() -> None:
    """Make the models, run everything, and print the tables."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="adamerging-", dir=options.directory))
    try:
        _child(sys.executable, "make", folder, max(options.tasks), 0, 0)
        for tasks in options.tasks:
            for images in options.images:
                _print(tasks, images, _measured(options, folder, tasks, images))
    finally:
        shutil.rmtree(folder)


def _measured(options: argparse.Namespace, folder: Path, tasks: int, images: int) -> Figures:
    names = ["bare", "bare, our kernels", "bare bf16", *OURS]
    if options.fusion_bench is not None:
        names.append("FusionBench")
    figures: Figures = defaultdict(list)
    for _ in range(options.repeats):
        for name in names:
            peer = name == "FusionBench"
            python = str(options.fusion_bench / "bin" / "python") if peer else sys.executable
            figures[name].append(_child(python, name, folder, tasks, images, options.steps))
    return figures


def _child(  # noqa: PLR0913, PLR0917 - what is run, and how much of it
    python: str, name: str, folder: Path, tasks: int, images: int, steps: int
) -> dict[str, float]:
    numbers = [str(number) for number in (tasks, images, steps)]
    command = [python, str(CHILDREN), name, str(folder), *numbers]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=_environment())
    lines = done.stdout.decode().splitlines()
    figures: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return figures


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}


def _print(tasks: int, images: int, figures: Figures) -> None:
    seconds = {
        name: statistics.median(run["step"] for run in runs) for name, runs in figures.items()
    }
    peaks = {name: max(run["peak"] for run in runs) for name, runs in figures.items()}
    print(f"\n{tasks} tasks, {images} images per task:\n")
    print("| | one step | step / bare fp32 | FusionBench / step | peak | peak / FusionBench |")
    print("|---|---|---|---|---|---|")
    peer = "FusionBench"
    for name, step in seconds.items():
        faster = f"{seconds[peer] / step:.2f}" if peer in seconds else ""
        share = f"{peaks[name] / peaks[peer]:.2f}" if peer in peaks else ""
        bare = f"{step / seconds['bare']:.2f}"
        peak = f"{peaks[name] / 1e9:.1f} GB"
        print(f"| {name} | {step:.2f} s | {bare} | {faster} | {peak} | {share} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[8])
    parser.add_argument("--images", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--fusion-bench", type=Path, help="a virtual environment with fusion-bench")
    parser.add_argument("--directory", type=Path, help="where the models go for the while")
    return parser.parse_args()


if __name__ == "__main__":
    main()
