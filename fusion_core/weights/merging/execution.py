"""Run units of work on an executor: results in order, a few units ahead, each on one core."""

from __future__ import annotations

import hashlib
import pickle
import platform
import sys
from collections import deque
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from fusion_core.errors import CheckpointError, DiskError, RecipeError, WorkerError
from fusion_core.machine.attribution import forbid_exit
from fusion_core.machine.memory import retain_freed_pieces
from fusion_core.machine.versions import versions
from fusion_core.weights.source import assemble, check_variances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fusion_core.progress import Progress
    from fusion_core.weights.source import WeightSource

#: Units submitted ahead of the one whose result is awaited: their results are held in memory.
_WINDOW = 16
#: Tensors surveyed while the one before them is merged.
AHEAD = 2
#: Seconds that a thread waits for Python's lock before it asks for it.
_SWITCH_INTERVAL = 1e-4
#: Pieces per unit of work, a few and the most: for a thread and for another process. Each unit
#: wakes a worker, and each piece has a cost of its own.
_UNIT, _MESSAGE = (2, 64), (16, 512)
#: Fewer elements than this are not worth a unit. Of a matrix method, more are worth several.
_WORTH_A_UNIT = 2**16

PartT = TypeVar("PartT")


class SerialExecutor(Executor):
    """An executor that runs each call at once, on the thread that submits it."""

    def submit(
        self,
        fn: Callable[..., PartT],
        /,
        *args: Any,  # noqa: ANN401 - whatever `fn` takes
        **kwargs: Any,  # noqa: ANN401
    ) -> Future[PartT]:
        """Run `fn` now."""
        future: Future[PartT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future carries it
            future.set_exception(error)
        return future


class Threads(ThreadPoolExecutor):
    """Threads that hand Python's lock over sooner than by default.

    Each operation of torch releases the lock for some 30 us and then wants it back. With these
    threads, a waiting thread asks for it after 0.1 ms instead of 5 ms. With two threads, a merge by
    TIES took 5.8 s instead of 7.4 s, which is also what one thread took.
    """

    _open_pools: ClassVar[int] = 0
    _interval_before: ClassVar[float]
    _lock: ClassVar[Lock] = Lock()

    def __init__(self, workers: int, name: str = "fusion") -> None:
        super().__init__(workers, thread_name_prefix=name)
        self._is_open = True
        with Threads._lock:
            if not Threads._open_pools:
                Threads._interval_before = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH_INTERVAL)
            Threads._open_pools += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in concurrent.futures
        """Wait for running calls; the last pool restores the interval that the first one found."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        with Threads._lock:
            Threads._open_pools -= self._is_open
            if self._is_open and not Threads._open_pools:
                sys.setswitchinterval(Threads._interval_before)
            self._is_open = False


def run_all(
    executor: Executor,
    function: Callable[[Any], PartT],
    units: Iterable[Any],
    *,
    window: int = _WINDOW,
) -> Iterator[PartT]:
    """Run a function on every unit and yield the results in order.

    The first error cancels the units that have not begun and waits for those that have. Function,
    units and results are pickled unless the executor `is_in_process`. `window` units are submitted
    ahead, or twice as many as the executor has `slots`, if it has that attribute and that is more.
    """
    retain_freed_pieces()
    function = function if is_in_process(executor) else _Shipped.of(function, executor)
    if isinstance(executor, SerialExecutor):
        window = 1  # a submitted unit is done: running ahead would gain nothing
    waiting: deque[Future[PartT]] = deque()
    try:
        for unit in units:
            waiting.append(executor.submit(_run_on_one_core, function, unit))
            if len(waiting) >= max(window, 2 * getattr(executor, "slots", 0)):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor as error:
        raise WorkerError(
            f"a worker of the {type(executor).__name__} died",
            hint="If memory ran out, use fewer workers (--workers).",
        ) from error
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def map_on_cores(function: Callable[[Any], PartT], units: Iterable[Any]) -> Iterator[PartT]:
    """Run a function on every unit, one unit per thread of torch, and yield the results in order.

    This is for batches and tensors that are too small to share among cores. As soon as another
    program runs on one of the cores, the others wait for it at every operation. For 800 images of
    mini8 on two cores, one batch per core took 0.17 s, and every operation on both cores 0.19 s. On
    a busy machine they took 0.5 s and 2 to 16 s. Units are taken a few ahead of the awaited result.
    """
    with Threads(torch.get_num_threads()) as executor:
        yield from run_all(executor, function, units)


def is_in_process(executor: Executor) -> bool:
    """Tell whether an executor's workers share this process's memory.

    An executor class declares it by an attribute `in_process`. Without that attribute, only serial
    executors and the standard library's threads do.
    """
    known = isinstance(executor, SerialExecutor | ThreadPoolExecutor)
    return bool(getattr(executor, "in_process", known))


def group_into_units(
    pieces: Iterable[PartT],
    executor: Executor,
    elements_in: Callable[[PartT], int],
    *,
    fewest: int | None = None,
) -> Iterator[Sequence[PartT]]:
    """Group pieces of work into units that are worth submitting to an executor.

    `elements_in(piece)` is the number of elements of a piece. A unit holds `fewest` pieces, by
    default a few, or more if these are small.
    """
    few, most = _UNIT if is_in_process(executor) else _MESSAGE
    return group_by_size(pieces, elements_in, _WORTH_A_UNIT, fewest=fewest or few, most=most)


def group_by_size(
    items: Iterable[PartT],
    size_of: Callable[[PartT], int],
    enough: int,
    *,
    fewest: int = 1,
    most: int = sys.maxsize,
) -> Iterator[Sequence[PartT]]:
    """Group neighbours until they have `enough` together: at least `fewest`, at most `most`."""
    group: list[PartT] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if (size >= enough and len(group) >= fewest) or len(group) == most:
            yield group
            group, size = [], 0
    if group:
        yield group


def is_on_one_machine(executor: Executor) -> bool:
    """Tell whether all workers of an executor run on this machine.

    An executor class declares it by an attribute `one_machine`. Without that attribute, only
    in-process executors and the standard library's processes do.
    """
    known = is_in_process(executor) or isinstance(executor, ProcessPoolExecutor)
    return bool(getattr(executor, "one_machine", known))


@dataclass(frozen=True)
class _Shipped:
    """A function for other processes: pickled once, and unpickled once in each."""

    sha256: bytes
    pickled: bytes
    versions: Mapping[str, str]

    @classmethod
    def of(cls, function: Callable[[Any], Any], executor: Executor) -> _Shipped:
        try:
            pickled = pickle.dumps(function)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"the merge cannot be sent to the processes of {type(executor).__name__}: {error}",
                hint="Use --executor threads.",
            ) from error
        return cls(hashlib.sha256(pickled).digest(), pickled, versions())

    def __call__(self, unit: object) -> Any:  # noqa: ANN401 - what the function returns
        return _unpickle(self)(unit)

    def __hash__(self) -> int:
        return hash(self.sha256)


@lru_cache(maxsize=2)
def _unpickle(shipped: _Shipped) -> Callable[[Any], Any]:
    """Unpickle a function in a worker.

    Raises `WorkerError` if a package has another version here, since it might give other numbers,
    and if the worker lacks a package or a file of the run.
    """
    retain_freed_pieces()
    worker = f"a worker on {platform.node()}"
    installed = versions()
    for name, version in shipped.versions.items():
        if installed.get(name, version) != version:
            raise WorkerError(
                f"version mismatch: {worker} has {name} {installed[name]}, this run has {version}",
                hint="Install the same versions wherever workers run.",
            )
    try:
        function: Callable[[Any], Any] = pickle.loads(shipped.pickled)  # noqa: S301 - our own
    except (ImportError, AttributeError) as error:
        hint = "Install the packages of this run wherever workers run."
        raise WorkerError(f"{worker} cannot load its work: {error}", hint=hint) from error
    except (CheckpointError, DiskError) as error:
        hint = "Make the files of this run available to every worker, at the same paths."
        raise WorkerError(f"{worker}: {error.message}", hint=hint) from error
    return function


def survey_executor(executor: Executor) -> Executor:
    """Return threads for functions that submit work to an executor and wait for it.

    They are separate threads, so that no worker waits for another. A `SerialExecutor` is returned
    itself: nothing runs ahead.
    """
    if isinstance(executor, SerialExecutor):
        return executor
    return ThreadPoolExecutor(AHEAD, thread_name_prefix="fusion-survey")


def read_state_dict(
    source: WeightSource, executor: Executor, progress: Progress
) -> dict[str, torch.Tensor]:
    """Read every tensor of a source, as many at a time as an executor has workers."""
    source.prepare(executor)
    tensors = {}
    total = sum(info.nbytes for info in source.infos.values())
    with progress.track("merge", total=total, unit="B") as advance:
        flat_tensors = run_all(executor, partial(assemble, source), source.infos)
        for info, values in zip(source.infos.values(), flat_tensors, strict=True):
            check_variances(values, info, source)
            tensors[info.name] = values.reshape(info.shape)
            advance(info.nbytes)
    return tensors


@contextmanager
def on_one_core() -> Iterator[None]:
    """Limit torch to one core: workers use the others, and sums round the same everywhere."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@forbid_exit()  # here, since a traceback, which names the plugin, does not leave a process
def _run_on_one_core(function: Callable[[Any], PartT], unit: object) -> PartT:
    with on_one_core():
        return function(unit)
