"""Work on untrusted data in a child process, under limits of time, memory and size.

A chat template or a regular expression comes with a model, runs where it is read, and may never
end. So a child runs it, and one that oversteps a limit is killed. The child is started once, when
it is first needed, and answers one request after the other. Requests and answers are JSON; nothing
that a child sends is unpickled.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Never

from fusion_core.machine._confined import LENGTH, Status

_SECONDS_TO_START, _SECONDS_TO_END = 120.0, 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take; a system without /proc enforces no memory."""

    seconds: float
    #: bytes beyond those that the child holds when the request comes
    memory: int
    #: bytes of the answer
    answer: int


class Overrun(Exception):  # noqa: N818 - it says what happened
    """The child overstepped a limit, died, or answered what makes no sense; it is gone."""


class Refused(Exception):  # noqa: N818 - it says what happened
    """The work itself raised an exception, whose text this is."""


class Confined:
    """A child process that does one kind of work under limits.

    `target`, "module:function", is called once in the child and returns the function that answers
    requests. A child that is gone is replaced by the next request, so what it remembers may be
    lost at any time.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = Lock()
        self._child: _Child | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Start the child, and do not wait for it: it imports what it needs meanwhile."""
        with self._lock:
            self._running()

    def ask(self, request: object, limits: Limits) -> bytes:
        """Return the answer to a request, as JSON; both are JSON's data.

        Raises `Overrun` for a limit or a dead child, `Refused` for an exception in the work.
        """
        with self._lock:
            try:
                status, answer = self._running().exchange(request, limits)
            except BaseException:  # an interrupt too: half an answer may be under way
                self._end()
                raise
        if status == Status.REFUSED:
            raise Refused(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._target)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _forget(self) -> None:
        """Leave the child to the process that started it, after a fork."""
        self._lock = Lock()
        if self._child is not None:
            self._child.connection.close()
            self._child = None


class _Child:
    """A process, and the connection to it."""

    def __init__(self, target: str) -> None:
        self.connection, theirs = socket.socketpair()
        self._is_ready = False
        with theirs:
            number = theirs.fileno()
            command = ["-P", "-m", "fusion_core.machine._confined", target, str(number)]
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(number,),
                start_new_session=True,  # Ctrl-C is the parent's
            )

    def exchange(self, request: object, limits: Limits) -> tuple[Status, bytes]:
        """Send a request, and receive the answer; raises `Overrun`."""
        if not self._is_ready:
            self._await_start()
        asked = {"request": request, "seconds": limits.seconds, "memory": limits.memory}
        until = time.monotonic() + limits.seconds
        try:
            content = json.dumps(asked).encode()
            self._wait_until(until)
            self.connection.sendall(len(content).to_bytes(LENGTH) + content)
            return self._receive(until, limits.answer)
        except TimeoutError:
            raise Overrun(f"took more than {limits.seconds:g} seconds") from None
        except OSError:  # the connection is cut
            self._say_how_it_ended()

    def end(self) -> None:
        """Kill the process; it has nothing to lose."""
        self.connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)

    def _await_start(self) -> None:
        try:
            status, said = self._receive(time.monotonic() + _SECONDS_TO_START, 2**16)
        except OSError as error:
            raise Overrun(f"did not start: {type(error).__name__}") from error
        if status != Status.DONE:
            raise Overrun(f"did not start: {said.decode(errors='replace')}")
        self._is_ready = True

    def _receive(self, until: float, largest: int) -> tuple[Status, bytes]:
        """Receive one message: its length, how it went, and its content."""
        size = int.from_bytes(self._read(LENGTH, until))
        if size > largest:
            raise Overrun(f"made more than {largest / 1e6:,.0f} MB")
        content = self._read(size, until)
        with suppress(ValueError):
            status = Status(content[:1])
            if status != Status.MEMORY:
                return status, content[1:]
            raise Overrun("took more memory than it may")
        raise Overrun("gave an answer that makes no sense")

    def _read(self, size: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait_until(until)
            part = self.connection.recv(min(size - len(found), 2**20))
            if not part:
                self._say_how_it_ended()
            found += part
        return bytes(found)

    def _wait_until(self, until: float) -> None:
        """Give the next call on the connection the time that is left."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)

    def _say_how_it_ended(self) -> Never:
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            raise Overrun("closed its connection") from None
        if code >= 0:
            raise Overrun(f"ended with exit code {code}")
        name = signal.Signals(-code).name
        of_memory = " (out of memory, as a rule)" if name in {"SIGABRT", "SIGKILL"} else ""
        raise Overrun(f"was ended by {name}{of_memory}")
