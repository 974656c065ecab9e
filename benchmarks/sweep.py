"""A sweep that is killed three times, beside as many `fuse run`s: `python benchmarks/sweep.py`.

Five methods at three scales and two seeds on `mini8`, chosen on a half of the test images, or with
`--on test` measured on all of them, as the runs are. The sweep's
process is killed by SIGKILL whenever it has finished some more runs; what it finished must still be
there at the end, untouched, and nothing else but the rest. Then `--runs` of the same thirty recipes
are run by `fuse run`, and their mean stands for all. Seconds of the processor are those of all
children, killed ones included: on a busy machine they say more than the clock's.
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
    """Run both, and print times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="of the thirty, by fuse run")
    parser.add_argument("--on", choices=("half", "test"), default="half")
    given = parser.parse_args()
    count = given.runs
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        run_by_run(directory / "first", 1)  # which measures base and experts, for both
        swept = timed(lambda: sweep_and_kill(directory / "sweeps.sqlite", given.on))
        ran = timed(lambda: run_by_run(directory, count))
    total = len(METHODS) * len(SCALES) * len(SEEDS)
    ran = tuple(seconds * total / count for seconds in ran)
    print(f"{'':28}  wall s   CPU s")
    print(f"sweep, killed {KILLS} times        {swept[0]:7.1f} {swept[1]:7.1f}")
    print(f"{total} runs (mean of {count:2})          {ran[0]:7.1f} {ran[1]:7.1f}")
    print(f"sweep / runs                 {swept[0] / ran[0]:7.2f} {swept[1] / ran[1]:7.2f}")


def timed(work: Callable[[], None]) -> tuple[float, ...]:
    """Return seconds on the clock, and of the processor by children that have ended."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def sweep_and_kill(store: Path, on: str) -> None:
    """Run the sweep, killing it three times; fails unless each run is made exactly once."""
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
    """Return the command of the sweep, which is the same after each kill."""
    scales = ",".join(map(str, SCALES))
    over = ["--over", f"algorithm.scale={scales}", "--seeds", str(len(SEEDS))]
    rest = ["--on", on, "--store", str(store), "--json", "-q"]
    return [*FUSE, "sweep", "--algo", ",".join(METHODS), "--pool", "mini8", *over, *rest]


def finished(store: Path) -> dict[str, tuple[str, float]]:
    """Return when each run was finished, and what it took."""
    if not store.exists():
        return {}
    try:
        with sqlite3.connect(store, timeout=60) as file:
            return {name: (when, cpu) for name, when, cpu in file.execute(FINISHED)}
    except sqlite3.OperationalError:  # it has no tables yet
        return {}


def run_by_run(directory: Path, count: int) -> None:
    """Run some of the recipes, spread over all, each by itself."""
    every = list(product(METHODS, SCALES, SEEDS))
    for number in range(count):
        method, scale, seed = every[number * len(every) // count]
        options = ["--set", f"algorithm.scale={scale}", "--seed", str(seed), "-q"]
        output = ["-o", str(directory / f"run-{number}")]
        command = [*FUSE, "run", "--algo", method, "--pool", "mini8", *options, *output]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
