"""Build mini8: ``python plugins/pools-mini/build/make.py``.

The build prepares data, pre-trains the base, fine-tunes and evaluates the experts, and writes the
assets, from public inputs and fixed seeds. It writes the log to the screen and ``LOG.txt``, the
scores to ``figures.json``, and the assets to ``src/pools_mini/data``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import assets
import evaluate
import finetune
import model as clip
import nonce
import pretrain
import tasks as data
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import CLIPModel

HERE = Path(__file__).resolve().parent
CACHE = HERE / "cache"
DATA = HERE.parent / "src" / "pools_mini" / "data"

# Hyperparameters of the benchmark. README.md says how they were chosen.
NONCE_WORDS = 2
MIXINGS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
ZERO_SHOT = 55.0  # target of validation accuracy when heads are turned
PRETRAINING = pretrain.Recipe()
FINETUNING = finetune.Recipe()
SHAPE = clip.Shape()
SHIPPED_SEED = 3
PUBLISHED_SEEDS = (3, 4, 5)


class Tee(io.TextIOBase):
    """A stream that writes to the screen and to the log."""

    def __init__(self, *streams: TextIO) -> None:
        """Copy all output to each stream."""
        self._streams = streams

    def write(self, text: str) -> int:
        """Write to all streams."""
        return max(stream.write(text) for stream in self._streams)

    def flush(self) -> None:
        """Flush all streams."""
        for stream in self._streams:
            stream.flush()


def main() -> None:
    """Run the build from the command line."""
    options = _options()
    torch.set_num_threads(options.threads)
    with (
        (HERE / "LOG.txt").open("a" if options.resume else "w") as log,
        contextlib.redirect_stdout(Tee(sys.stdout, log)),
    ):
        build(options.seeds, options.part, resume=options.resume)


def build(seeds: Sequence[int], part: str, *, resume: bool) -> None:
    """Run all steps in order."""
    started = time.time()
    tasks, invented = data.build(NONCE_WORDS)
    _report_tasks(tasks, time.time() - started)
    names = [name for task in tasks for name in task.names]
    model, words = _base(names, invented, resume=resume)
    clip.set_scale(model, FINETUNING.scale)
    _turn_heads(model, words, tasks, invented)
    clip.round_to_shipped(model)
    heads = clip.heads(model, words, tasks)
    _report_plain_names(model, words, tasks, part)
    tables = {}
    for seed in seeds:
        experts = _experts(model, heads, tasks, seed)
        if seed == SHIPPED_SEED:
            assets.write(DATA, model, words, tasks, experts)
        tables[seed] = evaluate.table(
            model,
            heads,
            tasks,
            clip.tower_state(model),
            [experts[task.name] for task in tasks],
            part=part,
        )
    _report(tables, tasks)
    print(
        f"assets: {assets.size(DATA) / 1e6:.1f} MB;"
        f" whole build: {(time.time() - started) / 60:.1f} min"
    )


def _base(
    names: list[str], invented: list[str], *, resume: bool
) -> tuple[CLIPModel, clip.PreTrainedTokenizerFast]:
    """Return the pre-trained base, cached so that an interrupted build can resume."""
    if resume:
        print("going on from the pre-trained base of the run above", flush=True)
        return torch.load(CACHE / "base.pt", weights_only=False)
    model, words = pretrain.pretrain(PRETRAINING, SHAPE, names, invented)
    CACHE.mkdir(exist_ok=True)
    torch.save((model, words), CACHE / "base.pt")
    return model, words


def _turn_heads(
    model: CLIPModel,
    words: clip.PreTrainedTokenizerFast,
    tasks: Sequence[data.Task],
    invented: list[str],
) -> None:
    """Turn the heads so that zero-shot validation accuracy is closest to its target."""
    means = {}
    for mixing in MIXINGS:
        heads = nonce.wanted(model, words, tasks, mixing)
        scores = [clip.accuracy(model, heads, task, part="validation") for task in tasks]
        means[mixing] = sum(scores) / len(scores)
        cells = " ".join(f"{value:5.1f}" for value in scores)
        print(
            f"  mixing {mixing:4.2f}: validation zero-shot {cells} {means[mixing]:5.1f}", flush=True
        )
    best = min(means, key=lambda mixing: abs(means[mixing] - ZERO_SHOT))
    targets = nonce.wanted(model, words, tasks, best)
    closeness = nonce.fit(model, words, tasks, invented, targets)
    print(f"mixing {best:g}: heads at a mean cosine of {closeness:.3f} to the wanted", flush=True)


def _experts(
    model: CLIPModel, heads: Mapping[str, Tensor], tasks: Sequence[data.Task], seed: int
) -> dict[str, clip.State]:
    started = time.time()
    experts = {
        task.name: clip.as_shipped(
            finetune.finetune(model, heads[task.name], task, FINETUNING, seed)
        )
        for task in tasks
    }
    print(f"seed {seed}: eight experts in {time.time() - started:.0f} s", flush=True)
    print(f"  {'':22s} " + " ".join(f"{task.name[:5]:>5s}" for task in tasks) + "  mean")
    return experts


def _report_tasks(tasks: Sequence[data.Task], seconds: float) -> None:
    print(f"tasks in {seconds:.0f} s")
    for task in tasks:
        counts = (
            f"{len(task.train)} train, {len(task.validation)} validation, {len(task.test)} test"
        )
        print(
            f"  {task.name:14s} {len(task.names)} classes, {counts};"
            f" first class: {task.classnames[0]!r}"
        )


def _report_plain_names(
    model: CLIPModel, words: clip.PreTrainedTokenizerFast, tasks: Sequence[data.Task], part: str
) -> None:
    """Report zero-shot accuracy with English names alone, to show the effect of nonce words."""
    plain = {task.name: clip.head(model, words, task.names) for task in tasks}
    scores = [clip.accuracy(model, plain, task, part=part) for task in tasks]
    cells = " ".join(f"{value:5.1f}" for value in scores)
    print(
        f"zero-shot with plain English names: {cells} {sum(scores) / len(scores):5.1f}", flush=True
    )


def _report(tables: Mapping[int, Mapping[str, evaluate.Row]], tasks: Sequence[data.Task]) -> None:
    checks = {seed: evaluate.conditions(rows) for seed, rows in tables.items()}
    for name in next(iter(tables.values())):
        means = [rows[name]["mean"] for rows in tables.values()]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        print(
            f"{name:24s} {statistics.mean(means):5.1f} +- {spread:.1f}   "
            + " ".join(f"{m:5.1f}" for m in means)
        )
    for name in next(iter(checks.values())):
        margins = [check[name] for check in checks.values()]
        word = "holds" if min(margins) >= 0 else "FAILS"
        print(f"{word}: {name}: margins " + " ".join(f"{margin:+.1f}" for margin in margins))
    figures = {
        "split": "test",
        "seeds": list(tables),
        "shipped_seed": SHIPPED_SEED,
        "images": {task.name: len(task.test) for task in tasks},
        "standard_error_of_mean": evaluate.standard_error(tasks),
        "margins": {str(seed): check for seed, check in checks.items()},
        "accuracy": {str(seed): rows for seed, rows in tables.items()},
    }
    (HERE / "figures.json").write_text(json.dumps(_rounded(figures), indent=1) + "\n")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(PUBLISHED_SEEDS))
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument(
        "--resume", action="store_true", help="resume from the cached pre-trained base"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
