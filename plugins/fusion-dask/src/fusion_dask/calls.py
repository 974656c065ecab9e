"""Calls that run on workers, and what comes back of them: as bytes, so that nothing is lost.

Dask decodes a worker's error on its own event loop. An error that cannot be decoded there, because
its class exists on the worker alone, leaves the task pending for ever. So a worker answers with
bytes, whatever happened, and this process decodes them where a failure is an error like any other.
"""

from __future__ import annotations

import pickle
import platform
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import get_worker
from tblib import pickling_support  # type: ignore[import-untyped]

from fusion_core.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_TEXT = 2_000
_MEND = "Install the packages of this run, in the same versions, on every worker."
_LOOK = "This process does not know the error's class. --traceback shows where it was raised."


class Call:
    """What a worker does when it unpickles this.

    The scheduler only hands the bytes on and needs no package. (A task of Dask that names a
    function is unpickled by the scheduler, too.)
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._pickled = pickle.dumps(function)

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return answer, (self._pickled,)


class Answer(NamedTuple):
    """The outcome of a call, sent as a plain tuple: Dask decodes nothing of it."""

    worker: str
    result: bytes | None
    error: bytes | None
    #: the error's type and message, and its traceback
    text: str
    traceback: str


class RemoteTraceback(Exception):  # noqa: N818 - it is no error of its own
    """The traceback of a worker's error that could not be decoded, as text."""


def answer(function: bytes) -> tuple[Any, ...]:
    """Call a pickled function on a worker; returns the fields of an `Answer`, and never raises."""
    try:
        result = pickle.dumps(pickle.loads(function)())  # noqa: S301 - the run's own
    except BaseException as error:  # noqa: BLE001 - the run decides what it means
        lines = "".join(traceback.format_exception(error))
        return (_worker(), None, _encoded(error), _text(error), lines)
    return (_worker(), result, None, "", "")


def outcome(given: tuple[Any, ...]) -> Any:  # noqa: ANN401 - whatever was called
    """Return the result of a call, or raise its error.

    Raises `WorkerError` naming the worker for a result or an error that cannot be decoded here, and
    for one that would end this process.
    """
    told = Answer(*given)
    if told.result is not None:
        try:
            return pickle.loads(told.result)  # noqa: S301 - a worker's
        except Exception as error:
            said = f"returned what cannot be read here: {_text(error)}"
            raise WorkerError(f"{told.worker} {said}", hint=_MEND) from error
    raised = None if told.error is None else _decoded(told.error)
    if raised is not None:
        raise raised
    raise WorkerError(f"{told.worker} failed: {told.text}", hint=_LOOK) from RemoteTraceback(
        f"\n{told.traceback}"
    )


def _worker() -> str:
    try:
        return f"the Dask worker at {get_worker().address} on {platform.node()}"
    except ValueError:  # called outside a task
        return f"a Dask worker on {platform.node()}"


def _encoded(error: BaseException) -> bytes | None:
    """Return an error with its traceback as bytes; None if it has none."""
    try:
        pickling_support.install(error)
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever a class of errors does when it is pickled
        return None


def _decoded(encoded: bytes) -> Exception | None:
    """Return an error as it was raised; None if this process cannot make it again."""
    try:
        error = pickle.loads(encoded)  # noqa: S301 - a worker's
    except Exception:  # noqa: BLE001 - whatever a class of errors does when it is made
        return None
    return error if isinstance(error, Exception) else None


def _text(error: BaseException) -> str:
    """Return an error's type and message, whatever the message does when it is asked for."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001
        message = ""
    kind = type(error).__name__
    return f"{kind}: {message}"[:_LONGEST_TEXT] if message else kind
