"""The executor: each submitted call becomes a task of a Dask scheduler.

Dask repeats a task on another worker if its worker died. So units of work and trials may run twice,
which gives the same bytes. Failures that Dask cannot recover from become a `WorkerError`, and the
run can be resumed.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
import uuid
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import KilledWorker
from distributed.scheduler import NoValidWorkerError, NoWorkerError

from fusion_core.errors import WorkerError
from fusion_dask.calls import Call, decode_answer
from fusion_dask.cluster import connect
from fusion_dask.logs import divert_logs, last_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from distributed import Client, Worker
    from distributed import Future as Task

    from fusion_dask.config import DaskConfig

ResultT = TypeVar("ResultT")

_SECONDS_BETWEEN_CHECKS = 2.0
_SECONDS_TO_FIRST_WORKER = 0.05
#: Seconds that workers may take to finish the started tasks of a cancelled run.
_SECONDS_TO_END = 10.0
_DISCONNECTED = {"closing", "closed"}
_START_WORKER = "Start one: dask worker ADDRESS, with --resources if the run asks for resources."
_INSTALL = "Install the packages of this run on every worker, in the same versions."
_SEE_LOGS = "See the logs of the workers. If memory ran out, start fewer workers per machine."


def make_dask(config: DaskConfig) -> Executor:
    """Connect to a scheduler or start one, and wait for a worker.

    Raises `WorkerError` if no scheduler answers, or if no worker appears in `config.patience`
    seconds.
    """
    with ExitStack() as stack:
        stack.enter_context(divert_logs())
        executor = DaskExecutor(stack.enter_context(connect(config)), config)
        executor.await_workers()
        executor.cleanup = stack.pop_all()
    return executor


def count_slots(workers: Iterable[Mapping[str, Any]], needs: Mapping[str, float]) -> int:
    """Return how many tasks that need resources a scheduler's workers can run at once."""
    slots = 0
    for worker in workers:
        has = worker["resources"]
        limits = (int(has.get(name, 0) // value) for name, value in needs.items())
        slots += min([worker["nthreads"], *limits])
    return slots


class DaskExecutor(Executor):
    """Submits calls to the scheduler of a client.

    Like Dask's own executor, it cancels waiting calls when it is shut down with `wait=False`.
    """

    def __init__(self, client: Client, config: DaskConfig) -> None:
        self.one_machine = config.is_local
        self.slots = 0
        #: closed at shutdown
        self.cleanup = ExitStack()
        self._client = client
        self._config = config
        self._key_prefix = f"fuse-{uuid.uuid4().hex}"
        self._numbers = count()
        self._tasks: dict[Future[Any], Task[Any]] = {}
        #: futures that have no outcome yet
        self._undecided: set[Future[Any]] = set()
        self._lock = threading.Lock()
        assert client.scheduler is not None  # noqa: S101 - it is connected
        self._address = str(client.scheduler.address)
        #: the message and hint of the error for cancelled tasks
        self._failure = f"lost the connection to the Dask scheduler at {self._address}", _SEE_LOGS
        self._some_cancelled = False
        self._is_shut = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fusion-dask", daemon=True)

    def submit(
        self,
        fn: Callable[..., ResultT],
        /,
        *args: Any,  # noqa: ANN401 - the arguments of `fn`
        **kwargs: Any,  # noqa: ANN401
    ) -> Future[ResultT]:
        """Let a worker call `fn`."""
        if self._is_shut.is_set():
            raise RuntimeError("the executor is shut down")
        task = self._client.submit(
            pickle.loads,
            pickle.dumps(Call(partial(fn, *args, **kwargs))),
            key=f"{self._key_prefix}-{next(self._numbers)}",
            resources=self._config.resources or None,
        )
        future: Future[ResultT] = Future()
        self._tasks[future] = task
        self._undecided.add(future)
        future.add_done_callback(self._cancel_task)
        task.add_done_callback(partial(self._settle, future))
        return future

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the scheduler; after an error or an interrupt, cancel the unfinished calls."""
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in concurrent.futures
        """Wait for unfinished calls or cancel them, and leave the scheduler."""
        if self._is_shut.is_set():
            return
        if cancel_futures or not wait:
            for future in [*self._tasks]:
                future.cancel()
        wait_for([*self._tasks])
        if wait and self._some_cancelled and self._client.status == "running":
            self._await_idle()
        self._is_shut.set()
        self._watcher.join(_SECONDS_TO_END)  # it takes longer if the scheduler does not answer
        self.cleanup.close()

    def _await_idle(self) -> None:
        """Wait for workers to finish their started tasks, but not for ever."""

        def ask_workers() -> None:
            with suppress(Exception):  # the connection may be gone or closed meanwhile
                self._client.run(_until_idle, self._key_prefix, on_error="ignore")

        thread = threading.Thread(target=ask_workers, name="fusion-dask-idle", daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_END)

    def await_workers(self) -> None:
        """Wait for a worker, and start to watch whether one is left.

        Raises `WorkerError` if none appears in time.
        """
        until = time.monotonic() + self._config.patience
        while not self._update_slots():
            if time.monotonic() > until:
                raise _worker_error(*self._no_worker)
            time.sleep(_SECONDS_TO_FIRST_WORKER)
        self._watcher.start()

    def _update_slots(self) -> int:
        workers = self._client.scheduler_info()["workers"]
        self.slots = count_slots(workers.values(), self._config.resources)
        return self.slots

    def _watch(self) -> None:
        """Fail waiting calls when there is no worker for some time; Dask would wait for ever."""
        patience = 0 if self._config.is_local else self._config.patience  # local ones stay dead
        last_seen = time.monotonic()
        while not self._is_shut.wait(_SECONDS_BETWEEN_CHECKS):
            with suppress(Exception):  # the scheduler is gone, or does not answer
                self._update_slots()
            if self.slots or not self._tasks:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > patience:
                self._failure = self._no_worker
                self._fail_waiting()
            if self._client.status in _DISCONNECTED:
                self._fail_waiting()

    def _fail_waiting(self) -> None:
        """Fail waiting calls, and then tell the scheduler, which may not answer."""
        tasks = dict(self._tasks)
        for future in tasks:
            if self._decide(future):
                future.set_exception(_worker_error(*self._failure))
            self._tasks.pop(future, None)
        with suppress(Exception):  # the connection may be gone
            self._client.cancel([*tasks.values()])

    def _cancel_task(self, future: Future[Any]) -> None:
        """Cancel the task of a cancelled future, without waiting for Dask to confirm."""
        task = self._tasks.get(future)
        if not future.cancelled() or task is None:
            return
        self._decide(future)
        self._tasks.pop(future, None)
        if not task.done():
            self._some_cancelled = True
            task.cancel()

    def _decide(self, future: Future[Any]) -> bool:
        """Return whether the caller must set the future's outcome; true for one caller only."""
        with self._lock:
            if future not in self._undecided:
                return False
            self._undecided.discard(future)
        return future.set_running_or_notify_cancel()

    def _settle(self, future: Future[Any], task: Task[Any]) -> None:
        """Set a future's outcome from its finished task."""
        error: BaseException | None = None
        result = None
        try:
            result = decode_answer(task.result())
        except BaseException as raised:  # noqa: BLE001 - the future carries it
            error = self._translate(raised, task)
        if self._decide(future):
            future.set_result(result) if error is None else future.set_exception(error)
        self._tasks.pop(future, None)

    def _translate(self, error: BaseException, task: Task[Any]) -> BaseException:
        """Return a `WorkerError` for a failure of the workers, and the call's own errors as is."""
        if task.cancelled():
            message, hint = self._failure
            logged = last_error()
            return _worker_error(message, hint if logged is None else f"{hint}\nDask: {logged}")
        if isinstance(error, KilledWorker | NoWorkerError | NoValidWorkerError):
            return WorkerError(f"a worker of the Dask scheduler died: {error}", hint=_SEE_LOGS)
        if isinstance(error, ImportError):
            return WorkerError(f"a worker lacks a package of this run: {error}", hint=_INSTALL)
        return error

    @property
    def _no_worker(self) -> tuple[str, str]:
        if self._config.is_local:
            return "all workers on this machine have died", _SEE_LOGS
        needs = ", ".join(f"{name}={n:g}" for name, n in self._config.resources.items())
        worker = f"no worker{needs and f' with {needs}'}"
        return f"the Dask scheduler at {self._address} has {worker}", _START_WORKER


def _worker_error(message: str, hint: str) -> WorkerError:
    return WorkerError(message, hint=hint)


async def _until_idle(key_prefix: str, dask_worker: Worker) -> None:
    """Wait until a worker has finished the started tasks of an executor."""
    while any(str(key).startswith(key_prefix) for key in dask_worker.active_keys):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(_SECONDS_TO_FIRST_WORKER)
