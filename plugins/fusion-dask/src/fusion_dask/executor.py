"""The executor: what is submitted becomes a task of a Dask scheduler.

Dask gives a task whose worker died to another worker, so units of work and trials have to bear
being done twice, and do: they give the same bytes. What Dask cannot mend comes back as a
`WorkerError`, after which a run can be resumed.
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
from fusion_dask.calls import Call, outcome
from fusion_dask.capacity import capacity
from fusion_dask.cluster import connected
from fusion_dask.logs import diverted, last_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client, Worker
    from distributed import Future as Task

    from fusion_dask.config import DaskConfig

ResultT = TypeVar("ResultT")

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_FIRST_WORKER = 0.05
#: How long workers may take to end what they have begun of a run that was cancelled.
_SECONDS_TO_END = 10.0
_GONE = {"closing", "closed"}
_START_ONE = "Start one: dask worker ADDRESS, with --resources if the run asks for some."
_INSTALL = "Install the packages of this run wherever workers run, in the same versions."
_MEND = "What workers log says more. If memory ran out, start fewer of them on a machine."


def make_dask(config: DaskConfig) -> Executor:
    """Connect to a scheduler, or start one, and wait for a worker.

    Raises `WorkerError` if no scheduler answers, or no worker comes in `config.patience` seconds.
    """
    with ExitStack() as stack:
        stack.enter_context(diverted())
        executor = DaskExecutor(stack.enter_context(connected(config)), config)
        executor.await_workers()
        executor.owned = stack.pop_all()
    return executor


class DaskExecutor(Executor):
    """Submits to the scheduler of a client; `owned` is closed with it.

    As Dask's own executor does, it cancels what waits when it is shut down with `wait=False`.
    """

    def __init__(self, client: Client, config: DaskConfig) -> None:
        self.one_machine = config.is_local
        self.slots = 0
        self.owned = ExitStack()
        self._client = client
        self._config = config
        self._name = f"fuse-{uuid.uuid4().hex}"
        self._numbers = count()
        self._tasks: dict[Future[Any], Task[Any]] = {}
        self._undecided: set[Future[Any]] = set()
        self._deciding = threading.Lock()
        assert client.scheduler is not None  # noqa: S101 - it is connected
        self._place = str(client.scheduler.address)
        self._trouble = f"the Dask scheduler at {self._place} is gone", _MEND
        self._some_cancelled = False
        self._is_shut = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fusion-dask", daemon=True)

    def submit(
        self,
        fn: Callable[..., ResultT],
        /,
        *args: Any,  # noqa: ANN401 - whatever `fn` takes
        **kwargs: Any,  # noqa: ANN401
    ) -> Future[ResultT]:
        """Have a worker call `fn`."""
        if self._is_shut.is_set():
            raise RuntimeError("it is shut down")
        task = self._client.submit(
            pickle.loads,
            pickle.dumps(Call(partial(fn, *args, **kwargs))),
            key=f"{self._name}-{next(self._numbers)}",
            resources=self._config.resources or None,
        )
        future: Future[ResultT] = Future()
        self._tasks[future] = task
        self._undecided.add(future)
        future.add_done_callback(self._cancel_task)
        task.add_done_callback(partial(self._settle, future))
        return future

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the scheduler; after an error or an interrupt nobody asks for what is under way."""
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in concurrent.futures
        """Wait for what is under way, or cancel it, and leave the scheduler."""
        if self._is_shut.is_set():
            return
        if cancel_futures or not wait:
            for future in [*self._tasks]:
                future.cancel()
        wait_for([*self._tasks])
        if wait and self._some_cancelled and self._client.status == "running":
            self._await_idle()
        self._is_shut.set()
        self._watcher.join(_SECONDS_TO_END)  # longer if the scheduler does not answer
        self.owned.close()

    def _await_idle(self) -> None:
        """Wait for workers to end what they have begun; not for one that hangs."""
        asker = threading.Thread(target=self._ask_workers, name="fusion-dask-idle", daemon=True)
        asker.start()
        asker.join(_SECONDS_TO_END)

    def _ask_workers(self) -> None:
        with suppress(Exception):  # the scheduler is gone, or was left meanwhile
            self._client.run(_until_idle, self._name, on_error="ignore")

    def await_workers(self) -> None:
        """Wait for a worker, and watch from then on whether one is left.

        Raises `WorkerError` if none comes in time.
        """
        until = time.monotonic() + self._config.patience
        while not self._look():
            if time.monotonic() > until:
                raise _error(*self._no_worker)
            time.sleep(_SECONDS_TO_FIRST_WORKER)
        self._watcher.start()

    def _look(self) -> int:
        workers = self._client.scheduler_info()["workers"]
        self.slots = capacity(workers.values(), self._config.resources)
        return self.slots

    def _watch(self) -> None:
        """Give up what waits when there has been no worker for some time: Dask would not."""
        patience = 0 if self._config.is_local else self._config.patience  # nobody starts another
        seen = time.monotonic()
        while not self._is_shut.wait(_SECONDS_BETWEEN_LOOKS):
            with suppress(Exception):  # the scheduler is gone, or does not answer
                self._look()
            if self.slots or not self._tasks:
                seen = time.monotonic()
            elif time.monotonic() - seen > patience:
                self._trouble = self._no_worker
                self._give_up()
            if self._client.status in _GONE:
                self._give_up()

    def _give_up(self) -> None:
        """Fail what waits, and then tell the scheduler, which may not answer."""
        tasks = dict(self._tasks)
        for future in tasks:
            if self._decide(future):
                future.set_exception(_error(*self._trouble))
            self._tasks.pop(future, None)
        with suppress(Exception):  # the connection may be gone
            self._client.cancel([*tasks.values()])

    def _cancel_task(self, future: Future[Any]) -> None:
        """Cancel the task of a future that was cancelled; nobody waits for Dask to say so."""
        task = self._tasks.get(future)
        if not future.cancelled() or task is None:
            return
        self._decide(future)
        self._tasks.pop(future, None)
        if not task.done():
            self._some_cancelled = True
            task.cancel()

    def _decide(self, future: Future[Any]) -> bool:
        """Return whether the future waits for its outcome, which the caller then has to give."""
        with self._deciding:
            if future not in self._undecided:
                return False
            self._undecided.discard(future)
        return future.set_running_or_notify_cancel()

    def _settle(self, future: Future[Any], task: Task[Any]) -> None:
        """Hand on what became of a task."""
        error: BaseException | None = None
        result = None
        try:
            result = outcome(task.result())
        except BaseException as raised:  # noqa: BLE001 - it is the future's to carry
            error = self._explained(raised, task)
        if self._decide(future):
            future.set_result(result) if error is None else future.set_exception(error)
        self._tasks.pop(future, None)

    def _explained(self, error: BaseException, task: Task[Any]) -> BaseException:
        """Tell what befell the workers from what the work itself raised."""
        if task.cancelled():
            message, hint = self._trouble
            logged = last_error()
            return _error(message, hint if logged is None else f"{hint}\nDask says: {logged}")
        if isinstance(error, KilledWorker | NoWorkerError | NoValidWorkerError):
            return WorkerError(f"a worker of the Dask scheduler died: {error}", hint=_MEND)
        if isinstance(error, ImportError):
            return WorkerError(f"a worker lacks what this run uses: {error}", hint=_INSTALL)
        return error

    @property
    def _no_worker(self) -> tuple[str, str]:
        if self._config.is_local:
            return "no worker on this machine is alive", _MEND
        asked = ", ".join(f"{name}={n:g}" for name, n in self._config.resources.items())
        who = f"no worker{asked and f' with {asked}'}"
        return f"the Dask scheduler at {self._place} has {who}", _START_ONE


def _error(message: str, hint: str) -> WorkerError:
    return WorkerError(message, hint=hint)


async def _until_idle(name: str, dask_worker: Worker) -> None:
    """Wait until a worker has ended what it had begun of an executor's tasks."""
    while any(str(key).startswith(name) for key in dask_worker.active_keys):  # noqa: ASYNC110 - which tells nobody
        await asyncio.sleep(_SECONDS_TO_FIRST_WORKER)
