"""The child's side of `confined`: answers requests, each under limits of its own.

A program of its own: `python -m fusion_core.machine._confined TARGET SOCKET`.
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

#: The bytes that say how long a message is.
LENGTH = 8
_PAGES_OF_DATA = 5
_STATM = Path("/proc/self/statm")
#: Characters of an exception's text that are passed on.
_LONGEST = 2000


class Status(Enum):
    """How a request went: the first byte of an answer."""

    DONE = b"+"
    #: the work raised an exception
    REFUSED = b"-"
    MEMORY = b"m"


def main(target: str, number: int) -> None:
    """Answer requests until the connection is closed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=number) as connection:
        try:
            module, _, name = target.partition(":")
            answer: Callable[[Any], Any] = getattr(import_module(module), name)()
        except Exception as error:  # noqa: BLE001 - the parent says it
            _send(connection, Status.REFUSED, _in_words(error))
            return
        _send(connection, Status.DONE, b"")
        while size := _received(connection, LENGTH):
            asked = json.loads(_received(connection, int.from_bytes(size)))
            _send(connection, *_answer_to(asked, answer))


def _answer_to(asked: dict[str, Any], answer: Callable[[Any], Any]) -> tuple[Status, bytes]:
    _limit(asked["seconds"], asked["memory"])
    try:
        return Status.DONE, json.dumps(answer(asked["request"])).encode()
    except MemoryError:
        return Status.MEMORY, b""
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        return Status.REFUSED, _in_words(error)
    finally:
        _set(resource.RLIMIT_DATA, math.inf)


def _limit(seconds: float, memory: int) -> None:
    """Limit what follows; time too, for the case that the parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds) + 1)
    if _STATM.exists():
        pages = int(_STATM.read_text().split()[_PAGES_OF_DATA])
        _set(resource.RLIMIT_DATA, pages * resource.getpagesize() + memory)


def _set(kind: int, wanted: float) -> None:
    _, most = resource.getrlimit(kind)
    highest = math.inf if most == resource.RLIM_INFINITY else most
    soft = min(wanted, highest)
    resource.setrlimit(kind, (most if soft == math.inf else int(soft), most))


def _in_words(error: Exception) -> bytes:
    return (str(error) or type(error).__name__)[:_LONGEST].encode(errors="replace")


def _send(connection: socket.socket, status: Status, content: bytes) -> None:
    message = status.value + content
    connection.sendall(len(message).to_bytes(LENGTH) + message)


def _received(connection: socket.socket, size: int) -> bytes:
    """Receive so many bytes; none where the connection is closed."""
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(size - len(found), 2**20))
        if not part:
            return b""
        found += part
    return bytes(found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
