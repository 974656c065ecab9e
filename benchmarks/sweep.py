"""Compare a sweep that is killed three times with as many `fuse run`s.

Run as `python benchmarks/sweep.py`. The sweep has five methods at three scales and two seeds on
`mini8`, selected on one half of the test images, or with `--on test` measured on all of them, as
`fuse run` does. SIGKILL ends the sweep's process three times after some more runs. At the end, the
finished runs must exist unchanged, with no others but the rest. Then `fuse run` makes `--runs` of
the same thirty recipes, and their mean stands for all. Processor time covers all children,
including killed ones. On a busy machine, it is more reliable than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("task-arithmetic", "ties", "dare", "breadcrumbs", "della")
SCALES = (0.2, 0.3, 0.4)
SEEDS = (0, 1)
KILLS = 3
FUSE = [sys.executable, "-c", "from fusion_core.cli.app import main; main()"]
FINISHED = (  # of the sweep itself: not the best one, once more on the other half
    "select t.id, t.finished, t.cpu from members m join trials t on t.id = m.trial "
    "where t.report is not null"
)


def main() -> None:
    """Run both, and print their times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="of the thirty, by fuse run")
    parser.add_argument("--on", choices=("half", "test"), default="half")
    options = parser.parse_args()
    count = options.runs
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        run_by_run(directory / "first", 1)  # which measures base and experts, for both
        swept = timed(lambda: sweep_and_kill(directory / "sweeps.sqlite", options.on))
        ran = timed(lambda: run_by_run(directory, count))
    total = len(METHODS) * len(SCALES) * len(SEEDS)
    ran = tuple(seconds * total / count for seconds in ran)
    print(f"{'':28}  wall s   CPU s")
    print(f"sweep, killed {KILLS} times        {swept[0]:7.1f} {swept[1]:7.1f}")
    print(f"{total} runs (mean of {count:2})          {ran[0]:7.1f} {ran[1]:7.1f}")
    print(f"sweep / runs                 {swept[0] / ran[0]:7.2f} {swept[1] / ran[1]:7.2f}")


def timed(work: Callable[[], None]) -> tuple[float, ...]:
    """Return wall time and processor time of ended children, in seconds."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def sweep_and_kill(store: Path, on: str) -> None:
    """Run the sweep and kill it three times; fail unless each run is made exactly once."""
    earlier: dict[str, tuple[str, float]] = {}
    total = len(METHODS) * len(SCALES) * len(SEEDS)
    for number in range(KILLS + 1):
        process = subprocess.Popen(command(store, on), stdout=subprocess.PIPE)
        while number < KILLS and process.poll() is None:
            if len(finished(store)) >= (number + 1) * total // (KILLS + 1):
                process.kill()
            time.sleep(0.05)
        shown, _ = process.communicate()
        now = finished(store)
        assert earlier.items() <= now.items(), "a finished run was made again"
        assert (process.returncode == 0) == (number == KILLS), process.returncode
        print(f"{len(now) - len(earlier):3} runs, then {'killed' if number < KILLS else 'done'}")
        earlier = now
    assert len(earlier) == total == len(json.loads(shown)["runs"]), len(earlier)


def command(store: Path, on: str) -> list[str]:
    """Return the command of the sweep."""
    scales = ",".join(map(str, SCALES))
    over = ["--over", f"algorithm.scale={scales}", "--seeds", str(len(SEEDS))]
    rest = ["--on", on, "--store", str(store), "--json", "-q"]
    return [*FUSE, "sweep", "--algo", ",".join(METHODS), "--pool", "mini8", *over, *rest]


def finished(store: Path) -> dict[str, tuple[str, float]]:
    """Return the end and the processor time of each finished run."""
    if not store.exists():
        return {}
    try:
        with sqlite3.connect(store, timeout=60) as file:
            return {name: (when, cpu) for name, when, cpu in file.execute(FINISHED)}
    except sqlite3.OperationalError:  # it has no tables yet
        return {}


def run_by_run(directory: Path, count: int) -> None:
    """Run `count` of the recipes, evenly spread, one process per recipe."""
    every = list(product(METHODS, SCALES, SEEDS))
    for number in range(count):
        method, scale, seed = every[number * len(every) // count]
        options = ["--set", f"algorithm.scale={scale}", "--seed", str(seed), "-q"]
        output = ["-o", str(directory / f"run-{number}")]
        command = [*FUSE, "run", "--algo", method, "--pool", "mini8", *options, *output]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
