"""The child process of a `SandboxedWorker`: it answers requests, each under limits of its own.

Run as a program: `python -m pools_checkpoints._sandbox_child TARGET SOCKET`.
"""

from __future__ import annotations

import json
import math
import resource
import socket
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of the length in front of each message.
LENGTH = 8
_STATM = Path("/proc/self/statm")
_STATM_DATA_PAGES = 5
_LONGEST_ERROR = 2000


class Status(Enum):
    """The outcome of a request: the first byte of an answer."""

    DONE = b"+"
    #: the work raised an exception
    REFUSED = b"-"
    MEMORY = b"m"


def main(target: str, descriptor: int) -> None:
    """Answer requests until the parent closes the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as stream:
        try:
            module, _, name = target.partition(":")
            answer: Callable[[Any], Any] = getattr(import_module(module), name)()
        except Exception as error:  # noqa: BLE001 - the parent reports it
            _send(connection, Status.REFUSED, _error_text(error))
            return
        _send(connection, Status.DONE, b"")
        while size := stream.read(LENGTH):
            message = json.loads(stream.read(int.from_bytes(size)))
            _limit_resources(message["seconds"], message["memory"])
            _send(connection, *_answer(answer, message["request"]))


def _answer(answer: Callable[[Any], Any], request: object) -> tuple[Status, bytes]:
    try:
        return Status.DONE, json.dumps(answer(request)).encode()
    except MemoryError:
        return Status.MEMORY, b""
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        return Status.REFUSED, _error_text(error)
    finally:
        _set_soft_limit(resource.RLIMIT_DATA, math.inf)


def _limit_resources(seconds: float, memory: int) -> None:
    """Limit the next request; its time too, in case the parent has died."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    _set_soft_limit(resource.RLIMIT_CPU, limit)
    if _STATM.exists():
        pages = int(_STATM.read_text().split()[_STATM_DATA_PAGES])
        _set_soft_limit(resource.RLIMIT_DATA, pages * resource.getpagesize() + memory)


def _set_soft_limit(kind: int, limit: float) -> None:
    """Set a soft limit, at most the hard one."""
    _, hard = resource.getrlimit(kind)
    soft = min(limit, math.inf if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(kind, (hard if soft == math.inf else int(soft), hard))


def _error_text(error: Exception) -> bytes:
    return (str(error) or type(error).__name__)[:_LONGEST_ERROR].encode(errors="replace")


def _send(connection: socket.socket, status: Status, content: bytes) -> None:
    message = status.value + content
    connection.sendall(len(message).to_bytes(LENGTH) + message)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
