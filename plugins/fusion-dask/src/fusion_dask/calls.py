"""Calls on workers, whose results and errors travel as bytes.

Dask decodes a worker's error on its own event loop. If that fails, because the error's class exists
on the worker alone, the task stays pending for ever. So a worker always answers with bytes, and
this process decodes them where a failure is an ordinary error.
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
_INSTALL = "Install the packages of this run, in the same versions, on every worker."
_UNKNOWN_CLASS = "The error's class is unknown here. --traceback shows where it was raised."


class Call:
    """A function that a worker calls when it unpickles this object.

    The scheduler only forwards the bytes, so it needs none of the packages. It would unpickle the
    function of an ordinary Dask task.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._pickled = pickle.dumps(function)

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return answer, (self._pickled,)


class Answer(NamedTuple):
    """The outcome of a call. It is sent as a plain tuple, so that Dask decodes none of it."""

    worker: str
    result: bytes | None
    error: bytes | None
    #: the error's type and message, and its traceback
    text: str
    traceback: str


class RemoteTraceback(Exception):  # noqa: N818 - only the cause of another error
    """The traceback of a worker's error that could not be decoded, as text."""


def answer(function: bytes) -> tuple[Any, ...]:
    """Call a pickled function on a worker; return the fields of an `Answer`, and never raise."""
    try:
        result = pickle.dumps(pickle.loads(function)())  # noqa: S301 - from the run itself
    except BaseException as error:  # noqa: BLE001 - the run handles it
        lines = "".join(traceback.format_exception(error))
        return (_worker_name(), None, _encode(error), _describe(error), lines)
    return (_worker_name(), result, None, "", "")


def decode_answer(fields: tuple[Any, ...]) -> Any:  # noqa: ANN401 - any result
    """Return the result of a call, or raise its error.

    Raises `WorkerError` naming the worker for a result or an error that cannot be decoded here, and
    for an error that would end this process.
    """
    received = Answer(*fields)
    if received.result is not None:
        try:
            return pickle.loads(received.result)  # noqa: S301 - from a worker
        except Exception as error:
            raise WorkerError(
                f"{received.worker} returned a result that cannot be decoded: {_describe(error)}",
                hint=_INSTALL,
            ) from error
    decoded = None if received.error is None else _decode(received.error)
    if decoded is not None:
        raise decoded
    raise WorkerError(
        f"{received.worker} failed: {received.text}", hint=_UNKNOWN_CLASS
    ) from RemoteTraceback(f"\n{received.traceback}")


def _worker_name() -> str:
    try:
        return f"the Dask worker at {get_worker().address} on {platform.node()}"
    except ValueError:  # called outside a task
        return f"a Dask worker on {platform.node()}"


def _encode(error: BaseException) -> bytes | None:
    """Return an error with its traceback as bytes, or None if it cannot be pickled."""
    try:
        pickling_support.install(error)
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - a class of errors may raise anything when pickled
        return None


def _decode(encoded: bytes) -> Exception | None:
    """Return a decoded error, or None if this process cannot decode it."""
    try:
        error = pickle.loads(encoded)  # noqa: S301 - from a worker
    except Exception:  # noqa: BLE001 - a class of errors may raise anything when unpickled
        return None
    return error if isinstance(error, Exception) else None


def _describe(error: BaseException) -> str:
    """Return an error's type and message; computing the message may fail."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001
        message = ""
    kind = type(error).__name__
    return f"{kind}: {message}"[:_LONGEST_TEXT] if message else kind
