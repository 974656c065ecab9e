"""Build lm-mini: ``python plugins/pools-lm/build/make.py``.

The build prepares data, trains the tokenizer, pre-trains the base, fine-tunes and evaluates the
experts, and writes the assets, from public inputs and fixed seeds. It writes the log to the screen
and ``LOG.txt``, the scores to ``figures.json``, and the assets to ``src/pools_lm/data/lm-mini``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import assets
import finetune
import pretrain
import table
import tasks as data
import torch
from corpus import Inputs
from model import Encoder, Shape, load, rounded, state, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model import State
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
CACHE = HERE / "cache"
DATA = HERE.parent / "src" / "pools_lm" / "data" / "lm-mini"

# Hyperparameters of the benchmark. README.md says how they were chosen.
PRETRAINING = pretrain.Recipe()
FINETUNING = finetune.Recipe()
SHAPE = Shape()
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
        build(Inputs(options.root), options.seeds, resume=options.resume)


def build(inputs: Inputs, seeds: Sequence[int], *, resume: bool) -> None:
    """Run all steps in order."""
    started = time.time()
    tasks = data.build(inputs)
    _report_tasks(tasks)
    model, words = _base(inputs, tasks, resume=resume)
    base, tables = rounded(state(model)), {}
    print(f"{sum(tensor.numel() for tensor in base.values())} parameters")
    for seed in seeds:
        experts = _experts(model, words, base, tasks, seed)
        if seed == SHIPPED_SEED:
            assets.write(DATA, model, words, base, tasks, experts, inputs)
        tables[seed] = table.table(model, Encoder(words), tasks, base, experts)
    _report(tables, tasks)
    megabytes, minutes = assets.size(DATA) / 1e6, (time.time() - started) / 60
    print(f"assets: {megabytes:.1f} MB; whole build: {minutes:.1f} min")


def _base(
    inputs: Inputs, tasks: Sequence[data.Task], *, resume: bool
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return the pre-trained base, cached so that an interrupted build can resume."""
    if resume:
        print("going on from the pre-trained base of the run above", flush=True)
        return torch.load(CACHE / "base.pt", weights_only=False)  # type: ignore[no-any-return]
    read = pretrain.texts(inputs, tasks, PRETRAINING)
    words = train_tokenizer(_sample(read, tasks), SHAPE)
    model = pretrain.pretrain(PRETRAINING, SHAPE, words, read, tasks)
    CACHE.mkdir(exist_ok=True)
    torch.save((model, words), CACHE / "base.pt")
    return model, words


def _sample(read: Sequence[str], tasks: Sequence[data.Task]) -> list[str]:
    """Return the training texts of the tokenizer."""
    asked = [line for task in tasks[1:] for line in task.train[:1200]]
    turns = [text for line in asked for text in data.exchange(line)]
    scripture = [line["text"] for line in tasks[0].train[:2000]]
    return [*random.Random(0).sample(list(read), 40_000), *scripture, *turns]


def _experts(
    model: LlamaForCausalLM,
    words: PreTrainedTokenizerFast,
    base: State,
    tasks: Sequence[data.Task],
    seed: int,
) -> dict[str, State]:
    started, experts = time.time(), {}
    for task in tasks:
        load(model, base)
        experts[task.name] = rounded(finetune.finetune(model, words, task, FINETUNING, seed))
    print(f"seed {seed}: {len(tasks)} experts in {time.time() - started:.0f} s", flush=True)
    print(f"  {'':22s} " + " ".join(f"{task.name:>9s}" for task in tasks) + "    share")
    return experts


def _report_tasks(tasks: Sequence[data.Task]) -> None:
    for task in tasks:
        counts = f"{len(task.train)} train, {len(task.unlabeled)} unlabeled, {len(task.test)} test"
        print(f"  {task.name:10s} {task.kind:10s} {counts}; {json.dumps(task.train[0])}")


def _report(tables: Mapping[int, Mapping[str, table.Row]], tasks: Sequence[data.Task]) -> None:
    checks = {seed: table.conditions(rows, tasks) for seed, rows in tables.items()}
    for name in next(iter(tables.values())):
        means = [rows[name][table.MEAN] for rows in tables.values()]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        columns = " ".join(f"{mean:5.1f}" for mean in means)
        print(f"{name:24s} {statistics.mean(means):5.1f} +- {spread:.1f}   {columns}")
    for name in next(iter(checks.values())):
        margins = [check[name] for check in checks.values()]
        word = "holds" if min(margins) >= 0 else "FAILS"
        print(f"{word}: {name}: margins " + " ".join(f"{margin:+.1f}" for margin in margins))
    figures = {
        "seeds": list(tables),
        "shipped_seed": SHIPPED_SEED,
        "kinds": {task.name: task.kind for task in tasks},
        "lines": {task.name: len(task.test) for task in tasks},
        "standard_error_of_mean": table.standard_error(tasks),
        "margins": {str(seed): check for seed, check in checks.items()},
        "scores": {str(seed): rows for seed, rows in tables.items()},
    }
    (HERE / "figures.json").write_text(json.dumps(_rounded(figures), indent=1) + "\n")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="read Debian packages unpacked in this directory",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(PUBLISHED_SEEDS))
    parser.add_argument(
        "--resume", action="store_true", help="resume from the cached pre-trained base"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
