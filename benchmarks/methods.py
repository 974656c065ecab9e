"""Compare `fuse run` with its floor and with mergekit, method by method, in one run.

    python benchmarks/methods.py --size 4 --repeats 3 --mergekit PATH/TO/VENV

builds a base and three experts of random weights with the shapes of a Llama (bf16, `--size` GB in
all). It times every registered merge, transform and calibration of fusion-linear and fusion-ties,
or those of `--methods`. For each method in turn, with a `sync` before every measurement:

- `fuse run` from the command line, once with torch alone (`FUSION_KERNELS=torch`) and once with the
  kernels that are installed. Both must give the same tensors. Start-up (measured by
  `--print-config`, which loads, checks and plans everything) is shown separately.
- The floor of the method, three times: `cat` of its inputs, which are in the page cache by then,
  and writing and syncing a file of the output's size.
- mergekit, if `--mergekit` names a virtual environment that has it, minus the time of its `--help`,
  and whether it gives the same values.

Every time is the best of its repeats, because other work only adds. Only ratios compare across runs
and machines. On a busy machine, compare processor times too. This process does not import torch,
because a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import MB, Measures, child, headings, row, size_of
from methods_known import Method, methods_of

from fusion_core.commands import read_provenance

CHILDREN = Path(__file__).with_name("methods_children.py")
MODELS = 4
FLOORS = 3


class Bench(Measures):
    """Inputs on disk, and the measurements of merging them."""

    def __init__(self, directory: Path, mergekit: Path | None) -> None:
        super().__init__(directory)
        self.mergekit = mergekit

    def paths(self, method: Method) -> dict[str, str]:
        """Return the paths of a method's inputs, the base first."""
        return {name: str(self.directory / name) for name in method.models}

    def ours(self, method: Method) -> None:
        """Measure `fuse run` with torch alone and with kernels; the tensors must be equal."""
        models = self.paths(method)
        base = {"base": models.pop("base")} if method.has_base else {}
        pool = {"name": "checkpoints", **base, "models": models}
        recipe = {"algorithm": method.algorithm, "model_pool": pool}
        digests = set()
        for program, kernels in (("torch", "torch"), ("ours", "")):
            self.fuse_run(program, method.label, recipe, FUSION_KERNELS=kernels)
            digests.add(read_provenance(self.directory / "ours").outputs.tensors_blake3)
        if len(digests) > 1:
            sys.exit(f"{method.label} differs with kernels and without them")

    def theirs(self, method: Method) -> None:
        """Run mergekit on the same files, if it has the method."""
        if self.mergekit is None or method.mergekit is None:
            return
        recipe = self.recipe(method.for_mergekit(self.paths(method)))
        program = str(self.mergekit / "bin" / "mergekit-yaml")
        self.measure("start-up mergekit", [program, "--help"])
        flags = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
        command = [program, recipe, self.emptied("theirs"), *flags]
        self.measure(f"mergekit {method.label}", command)


def main() -> None:
    """Measure all methods, and print a table."""
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="fuse-bench-", dir=options.directory))
    try:
        _run(Bench(directory, options.mergekit), options)
    finally:
        shutil.rmtree(directory)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1, help="GB of inputs: 0.3, 1, 4, 16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", type=Path, help="a virtual environment that has mergekit")
    parser.add_argument("--mergekit-repeats", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=[], help="names; default: all")
    parser.add_argument("--directory", type=Path, help="where the files go; default: TMPDIR")
    parser.add_argument("--json", type=Path, help="write every measure to this file")
    return parser.parse_args()


def _run(bench: Bench, options: argparse.Namespace) -> None:
    methods = list(methods_of(json.loads(_child("registered")), options.methods))
    _child("build", str(bench.directory), str(options.size / MODELS))
    bench.output = size_of(bench.directory / "base")
    bench.measure("bare", [sys.executable, "-c", "import torch"])
    _print_headings(bench)
    for method in methods:
        _measure(bench, method, options)
        print(row(_cells(bench, method)), flush=True)
    _print_start_up(bench)
    print(_child("plan", str(bench.directory)))
    if options.json:
        bench.dump(options.json)


def _measure(bench: Bench, method: Method, options: argparse.Namespace) -> None:
    for number in range(options.repeats):
        bench.ours(method)
        for _ in range(FLOORS):
            bench.floor(method.label, bench.paths(method).values())
        if number < options.mergekit_repeats:
            bench.theirs(method)


def _print_headings(bench: Bench) -> None:
    cells = ["method", "floor", "torch alone", "ours", "torch alone / ours", "ours / floor"]
    cells += ["CPU: floor, torch alone, ours", "peak above torch"]
    cells += (
        ["mergekit", "its CPU", "mergekit / ours", "its peak", "values"] if bench.mergekit else []
    )
    print(headings(cells))


def _cells(bench: Bench, method: Method) -> list[str]:
    programs = ("floor", "torch", "ours")
    floor, plain, ours = (bench.seconds(f"{program} {method.label}") for program in programs)
    above = (bench.peak(f"ours {method.label}") - bench.peak("bare")) / MB
    cells = [method.label, *(f"{seconds:.2f} s" for seconds in (floor, plain, ours))]
    cells += [f"{plain / ours:.2f}", f"{ours / floor:.2f}"]
    spent = (bench.cpu(f"{program} {method.label}") for program in programs)
    cells += [", ".join(f"{seconds:.1f} s" for seconds in spent), f"{above:.0f} MB"]
    label = f"mergekit {method.label}"
    if bench.taken[label]:
        theirs, cpu = bench.seconds(label), bench.cpu(label)
        cells += [f"{theirs:.1f} s", f"{cpu:.1f} s", f"{theirs / ours:.1f}"]
        cells.append(f"{bench.peak(label) / MB:.0f} MB")
        cells.append(_agreement(bench, method))
    return cells


def _agreement(bench: Bench, method: Method) -> str:
    """Compare both results, without entries whose magnitude equals a threshold."""
    if method.random:
        return "random"
    return _child("compare", str(bench.directory), *method.models, *map(str, method.edges))


def _print_start_up(bench: Bench) -> None:
    for program in ("ours", *(["mergekit"] if bench.taken["start-up mergekit"] else [])):
        print(f"start-up of {program}: {bench.start_up(program):.2f} s")
    bare, load = bench.peak("bare") / MB, os.getloadavg()[1]
    print(f"python with torch loaded: {bare:.0f} MB; load: {load:.1f}")


def _child(*arguments: str) -> str:
    return child(CHILDREN, *arguments)


if __name__ == "__main__":
    main()
