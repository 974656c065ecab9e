"""Scheduling of trials: each is claimed, run here or by an executor's workers, and saved."""

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

from fusion_core.commands import describe_run, resolve_device
from fusion_core.errors import FusionError, RecipeError, WorkerError
from fusion_core.weights import SerialExecutor, is_in_process
from fusion_sweep.evaluator import TrialEvaluator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    from fusion_core.commands import Plan
    from fusion_sweep.store import Store
    from fusion_sweep.trial import Trial

    Run = Callable[[Trial], Trial]

_SECONDS_TO_WAIT = 0.5  # for trials that end here, or that other processes run
_SLOTS = 8  # of an executor that does not say how many it has
_HINT = "Workers need this process's packages, versions and files, under the same paths."
_ONE_AT_A_TIME = Lock()


class TrialScheduler:
    """Runs trials on an executor, at most twice as many at once as it has slots.

    A context manager. On exit, it cancels trials that have not ended and releases their claims.
    """

    def __init__(self, store: Store, executor: Executor, run: Run) -> None:
        self._store = store
        self._executor = executor
        self._run = run
        self._running: dict[Future[Trial], tuple[str, ExitStack]] = {}
        #: finished and failed trials by id
        self._done: dict[str, Trial] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future, (_id, claim) in self._running.items():
            future.cancel()
            claim.close()

    @property
    def count(self) -> int:
        """The number of trials that have finished or failed."""
        return len(self._done)

    def finish(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Yield trials as they finish, here or in another process, which it waits for."""
        waiting = deque(trials)
        started: list[Trial] = []
        while waiting or started:
            if waiting and self._has_room:
                started.append(waiting.popleft())
                self._start(started[-1])
            else:
                self._wait_for_some()
                for trial in started:  # another process may have released or finished it
                    self._start(trial)
            ended = [trial for trial in started if trial.id in self._done]
            started = [trial for trial in started if trial.id not in self._done]
            for trial in ended:
                yield replace(self._done[trial.id], point=trial.point, seed=trial.seed)

    @property
    def _has_room(self) -> bool:
        if isinstance(self._executor, SerialExecutor):
            return not self._running
        return len(self._running) < 2 * getattr(self._executor, "slots", _SLOTS)

    def _start(self, trial: Trial) -> None:
        """Recall a trial's result, or submit it if there is room and no other process runs it."""
        is_running = any(trial.id == running_id for running_id, _ in self._running.values())
        if trial.id in self._done or is_running or not self._has_room:
            return
        if (recalled := self._store.recall(trial.id)) is not None:
            self._done[trial.id] = recalled
            return
        with ExitStack() as claim:
            is_ours = claim.enter_context(self._store.claim(trial))
            if not is_ours or self._store.recall(trial.id):  # another process may just have ended
                return
            future = self._executor.submit(self._run, trial)
            self._running[future] = trial.id, claim.pop_all()

    def _wait_for_some(self) -> None:
        """Wait briefly, and save the trials that ended."""
        if not self._running:
            time.sleep(_SECONDS_TO_WAIT)
        done, _ = wait(self._running, timeout=_SECONDS_TO_WAIT, return_when=FIRST_COMPLETED)
        for future in done:
            _id, claim = self._running.pop(future)
            with claim:
                try:
                    trial = future.result()
                except BrokenExecutor as error:
                    raise WorkerError(f"a worker died while it ran a trial: {error}") from error
                self._store.save(trial)
            self._done[trial.id] = trial


@contextmanager
def open_scheduler(
    planned: Plan, bench: TrialEvaluator, store: Store, run: Run
) -> Iterator[TrialScheduler]:
    """Make a scheduler on a plan's executor.

    Only executors of other processes run trials. With others, `run` runs trials in this process,
    one after the other. Raises `RecipeError` for a device that this process lacks, and for models
    in memory that workers cannot have.
    """
    executor: Executor = planned.resolved.executor.create()
    try:
        if is_in_process(executor):
            resolve_device(bench.options.device)
            scheduler = TrialScheduler(store, SerialExecutor(), run)
        else:
            _check_described(planned, executor)
            scheduler = TrialScheduler(store, executor, partial(run_in_worker, bench.to_bytes()))
        with scheduler:
            yield scheduler
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def run_in_worker(pickled_bench: bytes, trial: Trial) -> Trial:
    """Run a trial in a worker, on pools that stay open for the next trial.

    A process runs one trial at a time, whatever its number of threads, so that each has all cores
    and memory. Raises `WorkerError` if the trial would not be the same here.
    """
    with _ONE_AT_A_TIME:
        worker = f"a worker on {platform.node()}"
        try:
            bench = _cached_bench(pickled_bench)
            resolve_device(bench.options.device)
            planned = bench.plan(trial.recipe)
            is_same = bench.name(planned, trial.measured["on"]).id == trial.id
        except (FusionError, ImportError, AttributeError) as error:
            reason = error.message if isinstance(error, FusionError) else str(error)
            raise WorkerError(f"{worker} cannot run a trial: {reason}", hint=_HINT) from error
        if not is_same:
            raise WorkerError(f"{worker} has different code, versions or files", hint=_HINT)
        return bench.run(planned, trial)


_cached_bench = lru_cache(maxsize=1)(TrialEvaluator.from_bytes)


def _check_described(planned: Plan, executor: Executor) -> None:
    """Raise `RecipeError` unless the recipe and files alone determine the trials."""
    described: dict[str, Any] = {
        "the algorithm": all(stage.resolved for stage in planned.stages),
        "the model pool": planned.resolved.model_pool and describe_run(planned),
        "the task pool": planned.resolved.task_pool,
    }
    for component, is_described in described.items():
        if not is_described:
            raise RecipeError(
                f"{component} is in this process's memory, but the {type(executor).__name__} runs "
                "trials in other processes",
                hint="Name plugins and files instead of objects, or leave out the executor.",
            )
