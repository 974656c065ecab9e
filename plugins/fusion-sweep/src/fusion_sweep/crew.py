"""Trials under way: claimed and kept by this process, and run here or by an executor's workers."""

from __future__ import annotations

import platform
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from fusion_core.commands import describe_run, device_of
from fusion_core.errors import FusionError, RecipeError, WorkerError
from fusion_core.weights import SerialExecutor, is_in_process
from fusion_sweep.bench import bench_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    from fusion_core.commands import Plan
    from fusion_sweep.bench import Bench
    from fusion_sweep.store import Store
    from fusion_sweep.trial import Trial

    Run = Callable[[Trial], Trial]

_SECONDS_TO_WAIT = 0.5  # for trials that end here, or that other processes run
_UNDER_WAY = 16  # on an executor that does not say how many `slots` it has
_HINT = "Workers need this process's packages, versions and files, under the same paths."
_ONE_AT_A_TIME = Lock()


class Crew:
    """Finishes trials on an executor, a few more at once than it has slots; a context manager.

    When it is left, what has not ended is cancelled and its claims are given up.
    """

    def __init__(self, store: Store, executor: Executor, run: Run) -> None:
        self._store = store
        self._executor = executor
        self._run = run
        self._running: dict[Future[Trial], tuple[str, ExitStack]] = {}
        #: what is finished or failed, by name
        self._done: dict[str, Trial] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future, (_id, claim) in self._running.items():
            future.cancel()
            claim.close()

    @property
    def count(self) -> int:
        """How many trials are finished or have failed."""
        return len(self._done)

    def finish(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Yield trials as they are measured, here or by another process; waits for those."""
        left = deque(trials)
        begun: list[Trial] = []
        while left or begun:
            if left and self._has_room:
                begun.append(left.popleft())
                self._settle(begun[-1])
            else:
                self._await_some()
                for trial in begun:  # those that other processes had
                    self._settle(trial)
            ended = [trial for trial in begun if trial.id in self._done]
            begun = [trial for trial in begun if trial.id not in self._done]
            for trial in ended:
                yield replace(self._done[trial.id], point=trial.point, seed=trial.seed)

    @property
    def _has_room(self) -> bool:
        if isinstance(self._executor, SerialExecutor):
            return not self._running
        return len(self._running) < 2 * getattr(self._executor, "slots", _UNDER_WAY // 2)

    def _settle(self, trial: Trial) -> None:
        """Learn what is known of a trial; one that is not is begun, where there is room."""
        is_under_way = any(trial.id == name for name, _ in self._running.values())
        if trial.id in self._done or is_under_way or not self._has_room:
            return
        if (found := self._store.recall(trial.id)) is not None:
            self._done[trial.id] = found
        else:
            self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Begin a trial, unless another process has."""
        with ExitStack() as claim:
            is_ours = claim.enter_context(self._store.claim(trial))
            if not is_ours or self._store.recall(trial.id):  # somebody may just have finished it
                return
            future = self._executor.submit(self._run, trial)
            self._running[future] = trial.id, claim.pop_all()

    def _await_some(self) -> None:
        """Wait a little, and keep the trials that ended."""
        if not self._running:
            time.sleep(_SECONDS_TO_WAIT)
        done, _ = wait(self._running, timeout=_SECONDS_TO_WAIT, return_when=FIRST_COMPLETED)
        for future in done:
            _id, claim = self._running.pop(future)
            with claim:
                trial = _result(future)
                self._store.keep(trial)
            self._done[trial.id] = trial


@contextmanager
def crew_for(planned: Plan, bench: Bench, store: Store, run: Run) -> Iterator[Crew]:
    """Make a crew on a plan's executor: other processes run trials, threads only each merge.

    Here trials are run by `run`, one after the other. Raises `RecipeError` for a device that is not
    here, and for models in memory that workers elsewhere cannot have.
    """
    executor: Executor = planned.resolved.executor.create()
    try:
        if is_in_process(executor):
            device_of(bench.options.device)
            made = Crew(store, SerialExecutor(), run)
        else:
            _check_is_described(planned, executor)
            made = Crew(store, executor, partial(measure, bench.pickled()))
        with made:
            yield made
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def measure(bench: bytes, trial: Trial) -> Trial:
    """Run a trial in a worker, on its own pools, which are kept for the next trial.

    One at a time in a process, whatever threads it has: a trial has its cores and its memory to
    itself. Raises `WorkerError` where it would not be the same trial.
    """
    with _ONE_AT_A_TIME:
        here = f"a worker on {platform.node()}"
        try:
            own = _bench(bench)
            device_of(own.options.device)
            planned = own.plan(trial.recipe)
            is_same = own.name(planned, trial.measured["on"]).id == trial.id
        except (FusionError, ImportError, AttributeError) as error:
            said = error.message if isinstance(error, FusionError) else str(error)
            raise WorkerError(f"{here} cannot run a trial: {said}", hint=_HINT) from error
        if not is_same:
            raise WorkerError(
                f"{here} has other code or versions, or reads other files", hint=_HINT
            )
        return own.run(planned, trial)


_bench = lru_cache(maxsize=1)(bench_of)


def _result(future: Future[Trial]) -> Trial:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise WorkerError(f"a worker died that ran a trial: {error}") from error


def _check_is_described(planned: Plan, executor: Executor) -> None:
    """Raise `RecipeError` unless a recipe alone makes the trials, with what lies in files."""
    found: dict[str, Any] = {
        "the algorithm": all(stage.resolved for stage in planned.stages),
        "the model pool": planned.resolved.model_pool and describe_run(planned),
        "the task pool": planned.resolved.task_pool,
    }
    for what, is_described in found.items():
        if not is_described:
            raise RecipeError(
                f"{what} is in this process's memory, and the {type(executor).__name__} runs "
                "trials in others",
                hint="Name plugins and files, not objects, or leave out the executor.",
            )
