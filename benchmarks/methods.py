"""Streamed merges: `fuse run` against its floor and against mergekit, method by method, in one run.

    python benchmarks/methods.py --size 4 --repeats 3 --mergekit PATH/TO/VENV

builds a base and three experts of random weights, shaped as a Llama's (bf16, `--size` GB in all),
and times every registered merge, transform and calibration of fusion-linear and fusion-ties, or
those of `--methods`. Each in turn, every measure after a `sync`:

- `fuse run`, from the command line. Its start-up (what `--print-config` takes, which loads, checks
  and plans everything) is shown apart;
- the method's floor, three times: `cat` of its inputs, which are in the page cache by then, and
  writing and syncing a file of its output's size;
- mergekit, if `--mergekit` names a virtual environment of its own that has it, less what its
  `--help` takes; and whether it found the same values.

Every time is the best of its repeats: other work only adds. Times of different runs, or machines,
do not compare: ratios do; where a machine has other work, compare processor times too. This process
imports no torch: what a child's peak memory counts begins with its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods_known import Method, methods_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHILDREN = Path(__file__).with_name("methods_children.py")
MB = 1_000_000
MODELS = 4
FLOORS = 3
_BUFFER = os.urandom(16 * MB)


@dataclass(frozen=True)
class Usage:
    """What a process took."""

    seconds: float
    cpu: float
    peak: int = 0


class Bench:
    """Inputs on disk, and the measures taken of them."""

    def __init__(self, directory: Path, mergekit: Path | None) -> None:
        self.directory = directory
        self.mergekit = mergekit
        self.taken: dict[str, list[Usage]] = defaultdict(list)

    def paths(self, method: Method) -> dict[str, str]:
        """Return the paths of a method's inputs, base first."""
        return {name: str(self.directory / name) for name in method.models}

    def measure(self, label: str, command: Sequence[str]) -> None:
        """Run a command from quiet disks, and keep what it took."""
        os.sync()
        started = time.perf_counter()
        with (self.directory / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{label} failed: {' '.join(command)}\n{(self.directory / 'log').read_text()}")
        cpu = usage.ru_utime + usage.ru_stime
        self.taken[label].append(Usage(seconds, cpu, usage.ru_maxrss * 1024))

    def floor(self, method: Method) -> None:
        """Read the inputs once, and write and sync as many bytes as the output has."""
        files = [str(Path(each) / "model.safetensors") for each in self.paths(method).values()]
        size = sum(each.stat().st_size for each in (self.directory / "ours").iterdir())
        os.sync()
        started, cpu = time.perf_counter(), sum(os.times()[:4])
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        self._write(size)
        seconds = time.perf_counter() - started
        self.taken[f"floor {method.label}"].append(Usage(seconds, sum(os.times()[:4]) - cpu))
        (self.directory / "floor").unlink()

    def _write(self, size: int) -> None:
        descriptor = os.open(self.directory / "floor", os.O_WRONLY | os.O_CREAT)
        while size > 0:
            size -= os.write(descriptor, _BUFFER[: min(size, len(_BUFFER))])
        os.fsync(descriptor)
        os.close(descriptor)

    def ours(self, method: Method) -> None:
        """Run `fuse run`, and what of it is start-up."""
        models = self.paths(method)
        base = {"base": models.pop("base")} if method.has_base else {}
        pool = {"name": "checkpoints", **base, "models": models}
        recipe = self._recipe({"algorithm": method.algorithm, "model_pool": pool})
        fuse = str(Path(sys.executable).with_name("fuse"))
        command = [fuse, "run", recipe, "-q", "-o", self._emptied("ours")]
        self.measure("start-up ours", [*command, "--print-config"])
        self.measure(f"ours {method.label}", command)

    def theirs(self, method: Method) -> None:
        """Run mergekit on the same files, if it has the method."""
        if self.mergekit is None or method.mergekit is None:
            return
        recipe = self._recipe(method.for_mergekit(self.paths(method)))
        program = str(self.mergekit / "bin" / "mergekit-yaml")
        self.measure("start-up mergekit", [program, "--help"])
        flags = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
        command = [program, recipe, self._emptied("theirs"), *flags]
        self.measure(f"mergekit {method.label}", command)

    def _recipe(self, content: dict[str, Any]) -> str:
        path = self.directory / "recipe.yaml"  # JSON is YAML
        path.write_text(json.dumps(content))
        return str(path)

    def _emptied(self, name: str) -> str:
        shutil.rmtree(self.directory / name, ignore_errors=True)
        return str(self.directory / name)

    def seconds(self, label: str) -> float:
        """Return the best wall time of a measure, less its program's start-up."""
        return self._best(label, "seconds")

    def cpu(self, label: str) -> float:
        """Return the best processor time of a measure, less its program's start-up."""
        return self._best(label, "cpu")

    def _best(self, label: str, what: str) -> float:
        start = self.taken.get(f"start-up {label.partition(' ')[0]}", ())
        least = min((getattr(each, what) for each in start), default=0.0)
        return float(min(getattr(each, what) for each in self.taken[label]) - least)

    def start_up(self, program: str) -> float:
        """Return the least time that a program took to start."""
        return min(each.seconds for each in self.taken[f"start-up {program}"])

    def peak(self, label: str) -> int:
        """Return the highest peak of memory of a measure, in bytes."""
        return max(usage.peak for usage in self.taken[label])


def main() -> None:
    """Measure, and print a table."""
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
    bench.measure("bare", [sys.executable, "-c", "import torch"])
    _print_headings(bench)
    for method in methods:
        _measure(bench, method, options)
        print(_row(_cells(bench, method)), flush=True)
    _print_start_up(bench)
    print(_child("plan", str(bench.directory)))
    if options.json:
        _dump(bench, options.json)


def _measure(bench: Bench, method: Method, options: argparse.Namespace) -> None:
    for number in range(options.repeats):
        bench.ours(method)
        for _ in range(FLOORS):
            bench.floor(method)
        if number < options.mergekit_repeats:
            bench.theirs(method)


def _print_headings(bench: Bench) -> None:
    headings = ["method", "floor", "ours", "ours / floor", "CPU: floor, ours", "peak above torch"]
    headings += (
        ["mergekit", "its CPU", "mergekit / ours", "its peak", "values"] if bench.mergekit else []
    )
    print(_row(headings), _row("---" for _ in headings), sep="\n")


def _cells(bench: Bench, method: Method) -> list[str]:
    floor, ours = (bench.seconds(f"{who} {method.label}") for who in ("floor", "ours"))
    above = (bench.peak(f"ours {method.label}") - bench.peak("bare")) / MB
    cells = [method.label, f"{floor:.2f} s", f"{ours:.2f} s", f"{ours / floor:.2f}"]
    spent = (bench.cpu(f"{who} {method.label}") for who in ("floor", "ours"))
    cells += [", ".join(f"{each:.1f} s" for each in spent), f"{above:.0f} MB"]
    label = f"mergekit {method.label}"
    if bench.taken[label]:
        theirs, cpu = bench.seconds(label), bench.cpu(label)
        cells += [f"{theirs:.1f} s", f"{cpu:.1f} s", f"{theirs / ours:.1f}"]
        cells.append(f"{bench.peak(label) / MB:.0f} MB")
        cells.append(_agreement(bench, method))
    return cells


def _agreement(bench: Bench, method: Method) -> str:
    """Compare the two results; only entries whose magnitude ties a threshold may differ."""
    if method.random:
        return "random"
    return _child("compare", str(bench.directory), *method.models, *map(str, method.edges))


def _print_start_up(bench: Bench) -> None:
    for program in ("ours", *(["mergekit"] if bench.taken["start-up mergekit"] else [])):
        print(f"start-up of {program}: {bench.start_up(program):.2f} s")
    bare, load = bench.peak("bare") / MB, os.getloadavg()[1]
    print(f"python with torch loaded: {bare:.0f} MB; load: {load:.1f}")


def _child(*arguments: str) -> str:
    command = [sys.executable, str(CHILDREN), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip()


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _dump(bench: Bench, path: Path) -> None:
    taken = {label: [vars(each) for each in usages] for label, usages in bench.taken.items()}
    path.write_text(json.dumps(taken, indent=1))


if __name__ == "__main__":
    main()
