"""How units of work run on an executor: in order, a few ahead, each on one core."""

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
from fusion_core.machine.memory import keep_freed_pieces
from fusion_core.machine.versions import versions
from fusion_core.weights.source import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fusion_core.progress import Progress
    from fusion_core.weights.source import WeightSource

#: Units submitted ahead of the one whose result is awaited: their results are held in memory.
_WINDOW = 16
#: Tensors surveyed while the one before them is merged.
AHEAD = 2

#: How long a thread waits for Python's lock before it asks for it.
_SECONDS_TO_ASK = 1e-4
#: Pieces that are given to a thread, or to another process, at once: each unit wakes whoever waits.
_PIECES_A_UNIT, _PIECES_A_MESSAGE = 2, 16

PartT = TypeVar("PartT")


class SerialExecutor(Executor):
    """Runs each call at once, on the thread that submits it."""

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
        except Exception as error:  # noqa: BLE001 - it is the future's to carry
            future.set_exception(error)
        return future


class Threads(ThreadPoolExecutor):
    """Threads that hand Python's lock over sooner than they do by default.

    Each of torch's operations gives it up for some 30 us and wants it back. Whoever waits for it
    then asks for it after 0.1 ms, not 5: two threads merged by TIES in 5.8 s instead of 7.4, which
    is what one took.
    """

    _open: ClassVar[int] = 0
    _before: ClassVar[float]
    _lock: ClassVar[Lock] = Lock()

    def __init__(self, workers: int, name: str = "fusion") -> None:
        super().__init__(workers, thread_name_prefix=name)
        self._is_open = True
        with Threads._lock:
            if not Threads._open:
                Threads._before = sys.getswitchinterval()
                sys.setswitchinterval(_SECONDS_TO_ASK)
            Threads._open += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in concurrent.futures
        """Wait for what is under way; the last one leaves Python's lock as the first found it."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        with Threads._lock:
            Threads._open -= self._is_open
            if self._is_open and not Threads._open:
                sys.setswitchinterval(Threads._before)
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
    units and results are pickled unless the executor `is_in_process`. Of an executor that says how
    many `slots` it has, twice as many units are submitted ahead, if that is more than `window`.
    """
    keep_freed_pieces()
    function = function if is_in_process(executor) else _Shipped.of(function, executor)
    if isinstance(executor, SerialExecutor):
        window = 1  # what is submitted is done: nothing is gained by waiting
    waiting: deque[Future[PartT]] = deque()
    try:
        for unit in units:
            waiting.append(executor.submit(_single_threaded, function, unit))
            if len(waiting) >= max(window, 2 * getattr(executor, "slots", 0)):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor as error:
        raise WorkerError(
            f"a worker of the {type(executor).__name__} died",
            hint="If memory ran out, use fewer workers: --workers.",
        ) from error
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def on_cores(function: Callable[[Any], PartT], units: Iterable[Any]) -> Iterator[PartT]:
    """Run a function on every unit, as many at a time as torch has threads; yields in order.

    For work on batches and tensors that are too small to share among cores: as soon as something
    else runs on one of them, the others wait for it at every operation. Measured for 800 images of
    mini8 on two cores: idle, 0.17 s with a batch a core and 0.19 s with every operation on both;
    busy, 0.5 s and 2 to 16 s. Units are taken a few ahead of the result that is awaited.
    """
    with Threads(torch.get_num_threads()) as executor:
        yield from run_all(executor, function, units)


def is_in_process(executor: Executor) -> bool:
    """Tell whether an executor's workers share our memory, which only known kinds are trusted to.

    An executor class may say so itself by an attribute `in_process`.
    """
    known = isinstance(executor, SerialExecutor | ThreadPoolExecutor)
    return bool(getattr(executor, "in_process", known))


def in_units(pieces: Sequence[PartT], executor: Executor) -> Iterator[Sequence[PartT]]:
    """Yield pieces of work a few at a time, as many as an executor is given at once."""
    size = _PIECES_A_UNIT if is_in_process(executor) else _PIECES_A_MESSAGE
    return (pieces[start : start + size] for start in range(0, len(pieces), size))


def is_on_one_machine(executor: Executor) -> bool:
    """Tell whether all workers are on this machine, which only known kinds are trusted to be.

    An executor class may say so itself by an attribute `one_machine`.
    """
    known = is_in_process(executor) or isinstance(executor, ProcessPoolExecutor)
    return bool(getattr(executor, "one_machine", known))


@dataclass(frozen=True)
class _Shipped:
    """A function on its way to other processes: pickled once, unpickled once in each."""

    sha256: bytes
    pickled: bytes
    versions: Mapping[str, str]

    @classmethod
    def of(cls, function: Callable[[Any], Any], executor: Executor) -> _Shipped:
        try:
            pickled = pickle.dumps(function)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"what is merged cannot be sent to the {type(executor).__name__}'s processes: "
                f"{error}",
                hint="Use --executor threads.",
            ) from error
        return cls(hashlib.sha256(pickled).digest(), pickled, versions())

    def __call__(self, unit: object) -> Any:  # noqa: ANN401 - what the function returns
        return _unpickled(self)(unit)

    def __hash__(self) -> int:
        return hash(self.sha256)


@lru_cache(maxsize=2)
def _unpickled(shipped: _Shipped) -> Callable[[Any], Any]:
    """Take a function up; raises `WorkerError` where this process is not as the one that sent it.

    Another version might give other numbers.
    """
    keep_freed_pieces()
    here = f"a worker on {platform.node()}"
    own = versions()
    for name, version in shipped.versions.items():
        if own.get(name, version) != version:
            raise WorkerError(
                f"{here} has {name} {own[name]}, and this run {version}",
                hint="Install the same versions wherever workers run.",
            )
    try:
        function: Callable[[Any], Any] = pickle.loads(shipped.pickled)  # noqa: S301 - our own
    except (ImportError, AttributeError) as error:
        hint = "Install the packages of this run wherever workers run."
        raise WorkerError(f"{here} cannot take the work up: {error}", hint=hint) from error
    except (CheckpointError, DiskError) as error:
        hint = "Workers read and write the files of this run: their paths have to lead there."
        raise WorkerError(f"{here}: {error.message}", hint=hint) from error
    return function


def surveyors(executor: Executor) -> Executor:
    """Return threads for functions that have work done on an executor and wait for it.

    On threads of their own, no worker waits for another. Beside a `SerialExecutor` they are one,
    too: nothing runs ahead.
    """
    if isinstance(executor, SerialExecutor):
        return executor
    return ThreadPoolExecutor(AHEAD, thread_name_prefix="fusion-survey")


def state_dict_of(
    source: WeightSource, executor: Executor, progress: Progress
) -> dict[str, torch.Tensor]:
    """Read every tensor of a source, as many at a time as an executor has workers."""
    source.prepare(executor)
    found = {}
    total = sum(info.nbytes for info in source.infos.values())
    with progress.track("merge", total=total, unit="B") as advance:
        read = run_all(executor, partial(assemble, source), source.infos)
        for info, values in zip(source.infos.values(), read, strict=True):
            found[info.name] = values.reshape(info.shape)
            advance(info.nbytes)
    return found


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let torch use one core: workers share the others, and sums round the same everywhere."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@forbid_exit()  # here, where it is still known whose it is: a traceback does not leave a process
def _single_threaded(function: Callable[[Any], PartT], unit: object) -> PartT:
    with on_one_core():
        return function(unit)
