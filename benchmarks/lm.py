"""Measure merging, building and evaluating at Llama-3-8B's widths, and estimate 8B and 70B.

    python benchmarks/lm.py --layers 2 --experts 3 --repeats 2

builds a base and experts of random weights in bf16, with Llama-3-8B's shapes but for the number of
layers, and tokenizers with as many invented tokens. Two layers are 3 GB per model, 70 % of it token
rows (13 % of the whole 8B). The disk needs at most the bytes of the experts and of three more
models. The benchmark measures, each in its own process and for one expert, two, and so on:

- `fuse run` on the pool `causal-lm`: linear, task arithmetic and TIES (by model: two passes);
- task arithmetic of experts with renumbered tokens, all shuffled, and additional ones
  (`tokenizer: union`): the worst case, where no two rows are adjacent;
- task arithmetic of LoRA adapters of rank 16 on all linear layers except the head;
- the floor of each: `cat` of the inputs, and writing and syncing as many bytes as the output has;
- linear, task arithmetic and TIES again without inputs in the page cache, to check the estimate;
- building the merge in bf16 and fp32, and `fuse evaluate`, which builds in fp32.

From these rates it estimates 8B and 70B on as many cores, with disks of three speeds. Targets: a
merge takes 300 MB above torch, and building and evaluating take 1.1 times the bytes of the built
model. Nothing is asserted. For a quick look, `--scale 16` divides all widths except the vocabulary.
This process does not import torch, because a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama import LLAMA_3_8B
from lm_merges import BARE, CHILDREN, LORA, PLAIN, TOKENS, Bench, Kind
from lm_paper import GB, MODELS, plan, span, wall
from measuring import MB, headings, row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEW_TOKENS = 64
LOADED = "bare transformers"
WORDS = "the quick brown fox jumps over a lazy dog and runs into an old forest by a path"


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    full = LLAMA_3_8B
    model = dataclasses.replace(
        full,
        hidden=full.hidden // options.scale,
        inner=full.inner // options.scale,
        layers=options.layers,
    )
    directory = Path(tempfile.mkdtemp(prefix="fuse-bench-", dir=options.directory))
    bench = Bench(directory, model, options.experts)
    try:
        _run(bench, options.repeats)
    finally:
        shutil.rmtree(directory)
    if options.json:
        bench.dump(options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=2, help="of Llama-3-8B's 32")
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4, 8, 16))
    parser.add_argument("--experts", type=int, default=3, choices=range(2, 6), help="at most")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="where the files go; default: TMPDIR")
    parser.add_argument("--json", type=Path, help="write every measure to this file")
    return parser.parse_args()


def _run(bench: Bench, repeats: int) -> None:
    bench.measure(BARE, [sys.executable, "-c", "import torch"])
    for _ in range(2):  # the first reads its code from the disk
        bench.measure(LOADED, [sys.executable, "-c", "from transformers import LlamaForCausalLM"])
    bench.make("plain", bench.shape, "base", *bench.experts)
    print(f"a model: {bench.model.bytes / GB:.2f} GB, {bench.model.layers} layers\n")
    print(headings(["merge", "experts", "floor", "ours", "ours / floor", "CPU: floor, ours",
                    "start-up", "peak above torch (target: 300 MB)"]))  # fmt: skip
    for kind in PLAIN:
        _merges(bench, kind, repeats)
        for _ in range(repeats):
            bench.cold(kind)
    lives = list(_lives(bench))
    for name in bench.experts:
        bench.make("renumbered", name, TOKENS.prefix + name, str(NEW_TOKENS))
        shutil.rmtree(bench.directory / name)
    _merges(bench, TOKENS, repeats)
    for name in bench.experts:
        shutil.rmtree(bench.directory / f"{TOKENS.prefix}{name}")
    bench.make("adapters", bench.shape, *(LORA.prefix + name for name in bench.experts))
    _merges(bench, LORA, repeats)
    _print_lives(lives)
    _print_plan(bench)


def _merges(bench: Bench, kind: Kind, repeats: int) -> None:
    """Measure a kind of merge with one expert, two, and so on; print one row for each."""
    for experts in bench.counts:
        for _ in range(repeats):
            bench.merge(kind, experts)
            bench.floor(f"{kind.name}, {experts}", bench.paths(kind, experts).values())
        print(row([kind.name, str(experts), *_cells(bench, kind, experts)]), flush=True)


def _cells(bench: Bench, kind: Kind, experts: int) -> Iterator[str]:
    label, floor = kind.label(experts), f"floor {kind.name}, {experts}"
    ours, least = bench.seconds(label), bench.seconds(floor)
    yield from (f"{least:.2f} s", f"{ours:.2f} s", f"{ours / least:.2f}")
    yield f"{bench.cpu(floor):.1f} s, {bench.cpu(label):.1f} s"
    yield f"{bench.start_up(kind.program):.1f} s"
    yield f"{bench.above(label) / MB:.0f} MB"


@dataclass(frozen=True)
class Live:
    """The cost of a built or evaluated model, above a process with transformers loaded."""

    name: str
    seconds: float
    above: int
    bytes: int


def _lives(bench: Bench) -> Iterator[Live]:
    """Build the last merge, and evaluate it."""
    merged, size = str(bench.directory / "ours"), bench.model.bytes
    for dtype, wide in (("bfloat16", size), ("float32", 2 * size)):
        command = [sys.executable, str(CHILDREN), "built", merged, dtype]
        yield _live(bench, f"build in {dtype}", command, wide)
    fuse = str(Path(sys.executable).with_name("fuse"))
    pool = ["--pool", "causal-lm", "--set", f"model_pool.models={json.dumps({'m': merged})}"]
    for kind, path in _texts(bench.directory):
        tasks = json.dumps({"task": {"kind": kind, "test": str(path)}})
        chosen = ["--task-pool", f"lm-{kind}", "--set", f"task_pool.datasets={tasks}"]
        small = ["--set", "task_pool.batch_size=2", "--fresh", "-q"]
        command = [fuse, "evaluate", merged, *pool, *chosen, *small]
        yield _live(bench, f"evaluate lm-{kind} in float32", command, 2 * size)


def _live(bench: Bench, name: str, command: Sequence[str], size: int) -> Live:
    bench.measure(name, command)
    seconds = bench.seconds(name) - bench.seconds(LOADED)
    return Live(name, seconds, bench.above(name, LOADED), size)


def _texts(directory: Path) -> Iterator[tuple[str, Path]]:
    """Write 16 questions and 16 texts."""
    words = WORDS.split()
    turned = [words[n:] + words[:n] for n in range(16)]
    questions = [
        {"question": " ".join(text[3:]), "choices": text[:3], "answer": 0} for text in turned
    ]
    lines = {"choice": questions, "perplexity": [{"text": " ".join(text)} for text in turned]}
    for kind, examples in lines.items():
        path = directory / f"{kind}.jsonl"
        path.write_text("\n".join(json.dumps(example) for example in examples))
        yield kind, path


def _print_lives(lives: Sequence[Live]) -> None:
    """Print the cost of live models, and estimates for larger ones."""
    print("\nAbove python with transformers loaded; target: a peak of 1.1 times the bytes\n")
    larger = [f"{size} (estimated)" for size in MODELS]
    print(headings(["", "bytes", "wall", "peak", "peak / bytes", *larger]))
    for live in lives:
        share = live.above / live.bytes
        cells = [live.name, f"{live.bytes / GB:.2f} GB", f"{live.seconds:.1f} s"]
        cells += [f"{live.above / GB:.2f} GB", f"{share:.2f}"]
        wide = 2 if "float32" in live.name else 1
        print(row([*cells, *(f"{share * wide * m.bytes / GB:.0f} GB" for m in MODELS.values())]))


def _print_plan(bench: Bench) -> None:
    cores = len(os.sched_getaffinity(0))
    _print_cold(bench, cores)
    rates = {kind.name: bench.rate(kind) for kind in (*PLAIN, LORA)}
    rates[TOKENS.name] = bench.rate_of_tokens()
    print(f"\nReckoned, start-up apart; cores: {cores}; every pass reads from the disk\n")
    print("\n".join(plan(rates, cores)))


def _print_cold(bench: Bench, cores: int) -> None:
    """Print estimated and measured costs of the merges that read from the disk."""
    print(
        "\nEstimates and merges from the disk. A second pass reads from memory if the inputs fit.\n"
    )
    heads = ["merge", "experts", "disk reads", "writes", "read: estimated, counted"]
    heads += ["CPU: estimated, counted", "wall: estimated", "measured", "off by"]
    print(headings(heads))
    for kind in PLAIN:
        print(row([kind.name, str(len(bench.experts)), *_cold_cells(bench, kind, cores)]))


def _cold_cells(bench: Bench, kind: Kind, cores: int) -> Iterator[str]:
    rate, experts = bench.rate(kind), len(bench.experts)
    cold = dataclasses.replace(kind, program="cold").label(experts)
    size, read = bench.model.bytes, rate.read(bench.model, experts)
    counted = max(usage.read for usage in bench.taken[cold])
    reading = read / rate.passes / bench.seconds(f"read {kind.name}")
    writing = size / bench.seconds(f"write {kind.name}")
    cpu, took = rate.seconds(bench.model, experts), bench.seconds(cold)
    best, worst = wall(cpu, counted / reading + size / writing, cores)
    yield from (f"{speed / GB:.2f} GB/s" for speed in (reading, writing))
    yield f"{read / GB:.2f} GB, {counted / GB:.2f} GB"
    yield f"{cpu:.1f} s, {bench.cpu(cold):.1f} s"
    yield from (span(best, worst), f"{took:.1f} s")
    yield f"{took / best - 1:+.0%}, {took / worst - 1:+.0%}"


if __name__ == "__main__":
    main()
