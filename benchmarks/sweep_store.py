"""Measure how the overhead of a sweep grows: `python benchmarks/sweep_store.py --trials 100000`.

A grid of scales and seeds on `mini8`. Trials are planned, named, claimed, stored and ranked as
usual, but a bench invents the figures instead of merging and measuring. After each tenth, the
benchmark prints milliseconds per trial and memory. Then it prints the time to resume a complete
sweep, and to read it as `fuse runs` does. `--plans N` makes N real plans, which cost time in the
core, not in the store.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from measuring import headings, row

from fusion_core import Progress, Report, RunOptions
from fusion_sweep.axes import parse_axis
from fusion_sweep.evaluator import Examples, TrialEvaluator
from fusion_sweep.runner import Sweep
from fusion_sweep.search import Search
from fusion_sweep.store import Store
from fusion_sweep.trial import Trial, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fusion_core.commands import Plan
    from fusion_sweep import SweepResult

FoundT = TypeVar("FoundT")

TASKS = ("latin", "greek", "shapes", "textures")
SEEDS = 10


def main() -> None:
    """Measure all parts, and print the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--plans", type=int, default=1000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweeps.sqlite"
        print(headings(["trials", "ms per trial, in the last tenth", "memory"]))
        seconds, swept = timed(lambda: run(path, options.trials, Tenths(options.trials)))
        assert len(swept.finished) == options.trials
        print(f"\n{options.trials} trials: {seconds:.0f} s; the store: {size(path) / 1e6:.0f} MB")
        seconds, again = timed(lambda: run(path, options.trials, Progress()))
        assert again.best().id == swept.best().id
        print(f"the same again, all of them known: {seconds:.0f} s")
        with Store(path) as store:
            for what in ("counts", "trials_of"):
                seconds, _ = timed(partial(getattr(store, what), swept.id))
                print(f"{what}: {seconds:.2f} s")
        seconds, _ = timed(lambda: len(swept.rows()))
        print(f"rows of all: {seconds:.1f} s; claims left: {left(path)}")
    print(f"a real plan: {planned(options.plans):.1f} ms")


class Simulated(TrialEvaluator):
    """A bench that plans once and invents figures."""

    planned: Plan | None = None
    recipe: Mapping[str, Any]

    def plan(self, recipe: Mapping[str, Any]) -> Plan:
        """Return the plan of the first recipe for every recipe."""
        self.recipe = recipe
        self.planned = self.planned or super().plan(recipe)
        return self.planned

    def name(self, planned: Plan, on: Examples) -> Trial:
        """Name a trial by its recipe."""
        recipe = planned.recipe_in(Path("/")) | {"seed": self.recipe["seed"]}
        recipe["algorithm"] = self.recipe["algorithm"]
        return Trial(digest({"recipe": recipe, "on": on}), recipe, {"on": on})

    def run(self, planned: Plan, trial: Trial) -> Trial:
        """Return a trial with invented figures."""
        del planned
        scale, seed = trial.recipe["algorithm"]["scale"], trial.recipe["seed"]
        rows = {
            task: {"accuracy": 0.5 + 0.3 * math.sin(3 * scale + number + seed / 9)}
            for number, task in enumerate(TASKS)
        }
        return replace(trial, report=Report(rows), seconds=0.1, cpu=0.1, finished="2026-01-01")


def run(path: Path, trials: int, progress: Progress) -> SweepResult:
    """Sweep over a grid of this many trials."""
    count = trials // SEEDS
    recipe = {
        "algorithm": {"name": "task-arithmetic"},
        "model_pool": "mini8",
        "task_pool": {"tasks": list(TASKS)},
    }
    axes = [parse_axis("algorithm.scale", [number / count for number in range(count)])]
    options = RunOptions(progress=progress)
    bench = Simulated(options=RunOptions())
    with Store(path) as store:
        swept = Sweep(recipe, axes, SEEDS, Search(), bench, store, options)
        swept.prepare(("average",), "test")
        return swept.run()


@dataclass
class Tenths(Progress):
    """A progress that prints a row after each tenth of the trials."""

    total: int

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Callable[..., None]]:
        """Follow the sweep."""
        del label, unit
        started, done, tenth = time.perf_counter(), 0, max(1, total // 10)

        def advance(count: int = 1, *, note: str = "") -> None:
            nonlocal started, done
            del note
            done += count
            if done % tenth == 0:
                spent, started = time.perf_counter() - started, time.perf_counter()
                memory = psutil.Process().memory_info().rss
                print(row([str(done), f"{1e3 * spent / tenth:.2f}", f"{memory / 1e6:.0f} MB"]))

        yield advance


def planned(count: int) -> float:
    """Return the milliseconds per real plan, on open pools."""
    bench = TrialEvaluator(options=RunOptions())
    recipe = {"algorithm": {"name": "task-arithmetic"}, "model_pool": "mini8"}
    bench.name(bench.plan(recipe), "half")  # opens them
    scales = [number / count for number in range(count)]
    recipes = [{**recipe, "algorithm": {"name": "task-arithmetic", "scale": s}} for s in scales]
    seconds, _ = timed(lambda: [bench.name(bench.plan(recipe), "half") for recipe in recipes])
    return 1e3 * seconds / count


def timed(work: Callable[[], FoundT]) -> tuple[float, FoundT]:
    """Return the seconds and the result of some work."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def size(store: Path) -> int:
    """Return the size of the store in bytes."""
    files = (path for path in store.parent.glob(f"{store.name}*") if path.is_file())
    return sum(file.stat().st_size for file in files)


def left(store: Path) -> int:
    """Return the number of remaining claim files."""
    return len(list(Path(f"{store}.claims").iterdir()))


if __name__ == "__main__":
    main()
