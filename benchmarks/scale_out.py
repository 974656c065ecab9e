"""Compare one Dask worker with two, in turns: `python benchmarks/scale_out.py --size 4`.

TIES of a base and three experts in bf16, with the shapes of a Llama. One scheduler has one worker,
another has two, with one thread per worker. Dask's own programs start them, and a first merge warms
them up, so start-up is not timed. The output has some thirty shards, and a worker writes one shard
at a time. Each result is compared byte by byte with one from a single process. Processor time is
that of the workers and of this process, which hashes. On busy cores, wall times say less.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from measuring import child, headings, row

from fusion_core import RunOptions, run_fusion

SHARDS = 48
ALONE, TOGETHER = 1, 2


def main() -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1, help="GB of inputs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scope", choices=("model", "tensor"), default="model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuse-bench-") as folder, ExitStack() as stack:
        directory = Path(folder)
        child(
            Path(__file__).with_name("methods_children.py"), "build", folder, str(options.size / 4)
        )
        Measured(directory, options, stack).print_table(options.repeats)


class Measured:
    """A scheduler with one worker, another with two, and merges on both."""

    def __init__(self, directory: Path, options: argparse.Namespace, stack: ExitStack) -> None:
        self.directory = directory
        size = int(options.size * 1e9 / 4 / SHARDS)
        self.recipe: dict[str, Any] = {
            "algorithm": {"name": "ties", "scope": options.scope},
            "model_pool": {
                "base": str(directory / "base"),
                "models": {name: str(directory / name) for name in "xyz"},
            },
            "output": {"shard_size": size},
        }
        self.workers = [
            worker for count in (ALONE, TOGETHER) for worker in self._start_cluster(stack, count)
        ]

    def print_table(self, repeats: int) -> None:
        """Merge on one worker and on two in turns, and print the times and their ratio."""
        self._merge("alone", "serial")
        for workers in (ALONE, TOGETHER):
            self.timed(workers)
        print(headings(["one worker", "two workers", "one / two", "CPU: one, two", "CPU here"]))
        ratios = []
        for _ in range(repeats):
            one, one_cpu, here = self.timed(ALONE)
            two, two_cpu, here_too = self.timed(TOGETHER)
            ratios.append(one / two)
            cells = [f"{one:.2f} s", f"{two:.2f} s", f"{one / two:.2f}"]
            cells += [f"{one_cpu:.1f} s, {two_cpu:.1f} s", f"{here:.1f} s, {here_too:.1f} s"]
            print(row(cells), flush=True)
        print(f"\nmedian: {median(ratios):.2f}; all bytes are those of one process")

    def timed(self, workers: int) -> tuple[float, float, float]:
        """Merge on one worker or on two.

        Return wall time, processor time of the workers, and processor time of this process, all in
        seconds.
        """
        started, cpu, here = time.perf_counter(), self._cpu(), time.process_time()
        self._merge("merged", {"name": "dask", "scheduler_file": str(self._file_of(workers))})
        seconds = time.perf_counter() - started
        taken = seconds, self._cpu() - cpu, time.process_time() - here
        self._compare()
        return taken

    def _merge(self, name: str, executor: Any) -> None:  # noqa: ANN401 - a name, or with options
        options = RunOptions(executor=executor, overwrite=True, evaluate=False)
        output = {**self.recipe["output"], "path": str(self.directory / name)}
        run_fusion(self.recipe, output=output, options=options)

    def _compare(self) -> None:
        names = [path.name for path in (self.directory / "alone").glob("*.safetensors")]
        same, _, _ = filecmp.cmpfiles(
            self.directory / "alone", self.directory / "merged", names, shallow=False
        )
        if len(same) < len(names):
            sys.exit(f"{len(same)} of {len(names)} shards are the same")

    def _cpu(self) -> float:
        return sum(sum(psutil.Process(worker.pid).cpu_times()[:2]) for worker in self.workers)

    def _file_of(self, workers: int) -> Path:
        return self.directory / f"scheduler-of-{workers}.json"

    def _start_cluster(self, stack: ExitStack, count: int) -> list[subprocess.Popen[bytes]]:
        where = self._file_of(count)
        flags = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        self._start(stack, "scheduler", *flags, "--scheduler-file", str(where))
        while not where.exists():
            time.sleep(0.1)
        options = ("--scheduler-file", str(where), "--no-nanny", "--nthreads", "1")
        return [self._start(stack, "worker", *options) for _ in range(count)]

    def _start(self, stack: ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments]
        log = stack.enter_context((self.directory / f"{arguments[0]}.log").open("ab"))
        process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process


if __name__ == "__main__":
    main()
