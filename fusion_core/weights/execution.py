"""How units of work run on an executor: in order, a few ahead, each on one core."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Units submitted ahead of the one whose result is awaited: their results are held in memory.
_WINDOW = 16
#: Tensors surveyed while the one before them is merged.
AHEAD = 2

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


def run_all(
    executor: Executor,
    function: Callable[[Any], PartT],
    units: Iterable[Any],
    *,
    window: int = _WINDOW,
) -> Iterator[PartT]:
    """Run a function on every unit and yield the results in order.

    The first error cancels the units that have not begun and waits for those that have.
    """
    _keep_freed_memory()
    waiting: deque[Future[PartT]] = deque()
    try:
        for unit in units:
            waiting.append(executor.submit(_single_threaded, function, unit))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def surveyors(executor: Executor) -> Executor:
    """Return threads for functions that have work done on an executor and wait for it.

    On threads of their own, no worker waits for another. Beside a `SerialExecutor` they are one,
    too: nothing runs ahead.
    """
    if isinstance(executor, SerialExecutor):
        return executor
    return ThreadPoolExecutor(AHEAD, thread_name_prefix="fusion-survey")


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Free one large block: glibc then keeps what is freed below that size for the next unit.

    By default it gives every piece's memory back to the system and faults it in again, which takes
    as long as merging. Documented in mallopt(3); elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _single_threaded(function: Callable[[Any], PartT], unit: object) -> PartT:
    """Run a unit on one core: workers share the others, and sums round the same everywhere."""
    before = torch.get_num_threads()
    if before == 1:
        return function(unit)
    torch.set_num_threads(1)
    try:
        return function(unit)
    finally:
        torch.set_num_threads(before)
