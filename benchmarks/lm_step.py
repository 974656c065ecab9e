"""Measure a step of label-free adaptation on a language model against bare passes, in one run.

    python benchmarks/lm_step.py --steps 3

The base has the shapes of SmolLM2-135M (vocabulary of 49,152) or TinyLlama-1.1B, and random weights
in bf16. The experts are LoRA adapters of rank 16 on all linear layers. The tasks are prompts of
about 100 tokens. Each contender runs in its own process, in turn, once per repeat:

- bare: forward and backward of the same batches through one fp32 model, one task at a time, with
  scores of the experts' answers only. The gradients are those of the layers that experts change.
- all positions: the same with scores at every position.
- ours: the pipeline `strong` as `fuse run` starts it, with every storage of task vectors, in fp32
  or, for a storage such as "auto, bf16", with passes in bf16.

The time of a step is the median of all steps but the first. Memory is the peak of each phase above
a process that has imported the same libraries, in units of the model's bytes in fp32. Prints, as
Markdown, the median step and the highest peaks over repeats. Only ratios compare across machines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import child, headings, row

if TYPE_CHECKING:
    from collections.abc import Mapping

CHILDREN = Path(__file__).with_name("lm_step_children.py")
_BARE = "bare"
_PHASES = ("read", "ask the teachers", "adapt")
_STORAGES = ("auto", "auto, bf16", "fp32", "bf16", "disk")


def main() -> None:
    """Make the models, run every contender, and print the tables."""
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="lm-step-", dir=options.directory))
    try:
        numbers = (str(options.experts), str(options.prompts))
        child(CHILDREN, "make", str(folder), options.shape, *numbers)
        _print(_measure(options, folder))
    finally:
        shutil.rmtree(folder)


def _measure(options: argparse.Namespace, folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    contenders = {
        _BARE: ("bare", "last"),
        "all positions": ("bare", "all"),
        **{f"ours, {storage}": ("ours", storage) for storage in options.storages},
    }
    numbers = [str(number) for number in (options.steps, options.batch_size)]
    figures = defaultdict(list)
    for _ in range(options.repeats):
        for name, (program, option) in contenders.items():
            printed = child(CHILDREN, program, str(folder), option, *numbers)
            figures[name].append(json.loads(printed.splitlines()[-1]))
    return figures


def _print(figures: Mapping[str, list[dict[str, Any]]]) -> None:
    bare = statistics.median(run["step"] for run in figures[_BARE])
    print(headings(["", "step", "step / bare", *(f"{name}, in models" for name in _PHASES)]))
    for name, runs in figures.items():
        step = statistics.median(run["step"] for run in runs)
        peaks = [
            max(run["peaks"].get(phase, 0) / run["model"] for run in runs) for phase in _PHASES
        ]
        cells = [f"{peak:.2f}" if peak else "" for peak in peaks]
        print(row([name, f"{step:.2f} s", f"{step / bare:.2f}", *cells]), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="smollm2-135m", help="or tinyllama-1.1b")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8, help="per task")
    parser.add_argument("--batch-size", type=int, default=4, help="prompts per task and step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--storages", nargs="+", default=_STORAGES, help="of task vectors")
    parser.add_argument("--directory", type=Path, help="where the models go for the while")
    return parser.parse_args()


if __name__ == "__main__":
    main()
