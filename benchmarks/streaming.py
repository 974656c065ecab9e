"""Merging checkpoints at disk speed: `fuse run` against its floor and against mergekit, in one run.

    python benchmarks/streaming.py --size 4 --repeats 3 --mergekit PATH/TO/VENV

builds a base and three experts of random weights, shaped as a Llama's (bf16, `--size` GB in all),
and times, interleaved and each after a `sync`:

- the floor of each method: `cat` of its inputs, writing and syncing a file of its output's size;
- `fuse run`, from the command line. Its start-up (what `--print-config` takes, which loads, checks
  and plans everything) is shown apart;
- mergekit, if `--mergekit` names a virtual environment of its own that has it, less what its
  `--help` takes.

What it prints are medians. Times of different runs, or machines, do not compare: ratios do; where a
machine has other work, compare processor times too. This process imports no torch: what a child's
peak memory counts begins with its parent's.
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
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EXPERTS = ("x", "y", "z")
CHILDREN = Path(__file__).with_name("streaming_children.py")
MB = 1_000_000
_BUFFER = os.urandom(16 * MB)


@dataclass(frozen=True)
class Method:
    """One merge, as ours and as mergekit's."""

    name: str
    flags: tuple[str, ...]
    mergekit: str | None
    parameters: dict[str, float] = field(default_factory=dict)
    #: of each model, for mergekit
    each: dict[str, float] = field(default_factory=lambda: {"weight": 1.0})
    has_base: bool = True


_TIES = {"density": 0.2, "weight": 1.0}
METHODS = (
    Method("linear", ("simple-average",), "linear", has_base=False),
    Method("task arithmetic", ("task-arithmetic",), "task_arithmetic", {"lambda": 0.3}),
    # mergekit takes plus where trimmed entries cancel
    Method(
        "TIES, scope tensor",
        ("ties", "--set", "algorithm.scope=tensor", "--set", "algorithm.zero_sign=positive"),
        "ties",
        each=_TIES,
    ),
    Method("TIES, scope model", ("ties",), None),
)


@dataclass(frozen=True)
class Usage:
    """What a process took."""

    seconds: float
    cpu: float
    peak: int


class Bench:
    """Inputs on disk, and the measures taken of them."""

    def __init__(self, directory: Path, mergekit: Path | None) -> None:
        self.directory = directory
        self.mergekit = mergekit
        self.taken: dict[str, list[Usage]] = defaultdict(list)

    def models(self, method: Method) -> dict[str, str]:
        """Return the paths of a method's inputs, base first."""
        names = ("base", *EXPERTS) if method.has_base else EXPERTS
        return {name: str(self.directory / name) for name in names}

    def measure(self, label: str, command: Sequence[str]) -> Usage:
        """Run a command from quiet disks, and keep what it took."""
        os.sync()
        started = time.perf_counter()
        with (self.directory / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{label} failed: {' '.join(command)}\n{(self.directory / 'log').read_text()}")
        taken = Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        self.taken[label].append(taken)
        return taken

    def floor(self, method: Method) -> None:
        """Read the inputs once, and write and sync as many bytes as the output has."""
        files = [str(Path(each) / "model.safetensors") for each in self.models(method).values()]
        os.sync()
        started, cpu = time.perf_counter(), sum(os.times()[:4])
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        self._write(Path(files[0]).stat().st_size)
        seconds = time.perf_counter() - started
        taken = Usage(seconds, sum(os.times()[:4]) - cpu, 0)
        self.taken[f"floor {method.name}"].append(taken)
        (self.directory / "floor").unlink()

    def _write(self, size: int) -> None:
        descriptor = os.open(self.directory / "floor", os.O_WRONLY | os.O_CREAT)
        while size > 0:
            size -= os.write(descriptor, _BUFFER[: min(size, len(_BUFFER))])
        os.fsync(descriptor)
        os.close(descriptor)

    def ours(self, method: Method) -> None:
        """Run `fuse run`, and what of it is start-up."""
        out = self.directory / f"ours-{method.name}"
        shutil.rmtree(out, ignore_errors=True)
        models = self.models(method)
        base = models.pop("base", None)
        sources = ["--set", f"model_pool.models={json.dumps(models)}"]
        sources += ["--set", f"model_pool.base={base}"] if base else []
        fuse = str(Path(sys.executable).with_name("fuse"))
        algorithm = ["--algo", *method.flags, "--pool", "checkpoints"]
        command = [fuse, "run", *algorithm, *sources, "-q", "-o", str(out)]
        self.measure("start-up ours", [*command, "--print-config"])
        self.measure(f"ours {method.name}", command)

    def theirs(self, method: Method) -> None:
        """Run mergekit on the same files, computing in fp32 as we do."""
        if self.mergekit is None or method.mergekit is None:
            return
        out = self.directory / f"theirs-{method.name}"
        shutil.rmtree(out, ignore_errors=True)
        models = self.models(method)
        base = models.pop("base", None)
        config = {
            "merge_method": method.mergekit,
            "models": [{"model": path, "parameters": method.each} for path in models.values()],
            "parameters": method.parameters,
            "dtype": "float32",
            "out_dtype": "bfloat16",
            **({"base_model": base} if base else {}),
        }
        recipe = self.directory / "mergekit.json"  # JSON is YAML
        recipe.write_text(json.dumps(config))
        program = str(self.mergekit / "bin" / "mergekit-yaml")
        self.measure("start-up mergekit", [program, "--help"])
        flags = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
        self.measure(f"mergekit {method.name}", [program, str(recipe), str(out), *flags])

    def seconds(self, label: str) -> float:
        """Return the median wall time of a measure, less its program's start-up."""
        start = self.start_up(label.partition(" ")[0])
        return statistics.median(usage.seconds for usage in self.taken[label]) - start

    def cpu(self, label: str) -> float:
        """Return the median processor time of a measure, less its program's start-up."""
        start = [usage.cpu for usage in self.taken[f"start-up {label.partition(' ')[0]}"]]
        taken = [usage.cpu for usage in self.taken[label]]
        return statistics.median(taken) - statistics.median(start or [0.0])

    def start_up(self, program: str) -> float:
        """Return the median time that a program takes to start; the floor's is none."""
        taken = self.taken[f"start-up {program}"]
        return statistics.median(usage.seconds for usage in taken) if taken else 0.0

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
    parser.add_argument("--method", action="append", choices=[each.name for each in METHODS])
    parser.add_argument("--directory", type=Path, help="where the files go; default: TMPDIR")
    parser.add_argument("--json", type=Path, help="write every measure to this file")
    return parser.parse_args()


def _run(bench: Bench, options: argparse.Namespace) -> None:
    methods = [each for each in METHODS if not options.method or each.name in options.method]
    _child("build", str(bench.directory), str(options.size / (1 + len(EXPERTS))))
    for number in range(options.repeats):
        for method in methods:
            bench.floor(method)
            bench.ours(method)
            bench.floor(method)
            if number < options.mergekit_repeats:
                bench.theirs(method)
    bench.measure("bare", [sys.executable, "-c", "import torch"])
    _print_table(bench, methods)
    agreed = [_agreement(bench, method) for method in methods]
    print("\n".join(line for line in agreed if line))
    print(_child("plan", str(bench.directory)))
    if options.json:
        _dump(bench, options.json)


def _print_table(bench: Bench, methods: Sequence[Method]) -> None:
    headings: tuple[str, ...] = (
        "method",
        "floor",
        "ours",
        "ours / floor",
        "CPU: floor, ours",
        "peak above torch",
    )
    headings += ("mergekit", "mergekit / ours", "mergekit's peak") if bench.mergekit else ()
    print(_row(headings), _row("---" for _ in headings), sep="\n")
    bare = bench.peak("bare")
    for method in methods:
        floor, ours = (bench.seconds(f"{who} {method.name}") for who in ("floor", "ours"))
        above = (bench.peak(f"ours {method.name}") - bare) / MB
        cells = [method.name, f"{floor:.2f} s", f"{ours:.2f} s", f"{ours / floor:.2f}"]
        cpu = (bench.cpu(f"{who} {method.name}") for who in ("floor", "ours"))
        cells += [", ".join(f"{each:.1f} s" for each in cpu), f"{above:.0f} MB"]
        if label := _theirs(bench, method):
            theirs = bench.seconds(label)
            cells += [f"{theirs:.1f} s", f"{theirs / ours:.1f}", f"{bench.peak(label) / MB:.0f} MB"]
        print(_row(cells))
    for program in ("ours", *(["mergekit"] if bench.mergekit else [])):
        print(f"start-up of {program}: {bench.start_up(program):.2f} s")
    print(f"python with torch loaded: {bare / MB:.0f} MB; load: {os.getloadavg()[1]:.1f}")


def _theirs(bench: Bench, method: Method) -> str | None:
    label = f"mergekit {method.name}"
    return label if bench.taken[label] else None


def _agreement(bench: Bench, method: Method) -> str | None:
    """Compare the two results; only entries whose magnitude ties a threshold may differ."""
    if _theirs(bench, method) is None:
        return None
    density = str(method.each.get("density", 1.0))
    outputs = (f"{who}-{method.name}" for who in ("ours", "theirs"))
    found = _child("compare", str(bench.directory), *outputs, density)
    return f"{method.name}: {found}"


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
