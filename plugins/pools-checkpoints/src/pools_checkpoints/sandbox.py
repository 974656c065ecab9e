"""Work on untrusted data in a child process, under limits of time, memory and size.

A chat template or a regular expression comes with a model, runs where the model is read, and may
never end. A child process runs it and is killed if it exceeds a limit. The child starts at the
first request and answers one request after the other. Requests and answers are JSON; nothing from
the child is unpickled.
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

from pools_checkpoints._sandbox_child import LENGTH, Status

_SECONDS_TO_START, _SECONDS_TO_END = 120.0, 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request. A system without /proc enforces no memory limit."""

    seconds: float
    #: bytes on top of what the child holds when the request arrives
    memory: int
    #: bytes of the answer
    answer: int


class LimitExceeded(Exception):  # noqa: N818 - it says what happened
    """The child exceeded a limit, died or sent an invalid answer. It has been killed."""


class WorkFailed(Exception):  # noqa: N818 - it says what happened
    """The work itself raised an exception. The message is that exception's text."""


class SandboxedWorker:
    """A child process that does one kind of work under limits.

    The child calls `target`, "module:function", once. The function returns another one, which
    answers requests. A killed child is replaced at the next request, so the work must not rely on
    state in the child.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = Lock()
        self._child: _Child | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._drop_after_fork)

    def start(self) -> None:
        """Start the child without waiting for its imports."""
        with self._lock:
            self._running_child()

    def ask(self, request: object, limits: Limits) -> bytes:
        """Return the child's answer to a request, as JSON; the request is JSON data.

        Raises `LimitExceeded` for an exceeded limit or a dead child, and `WorkFailed` for an
        exception in the work.
        """
        with self._lock:
            try:
                status, answer = self._running_child().exchange(request, limits)
            except BaseException:  # an interrupt too: half an answer may be on its way
                self._end_child()
                raise
        if status == Status.REFUSED:
            raise WorkFailed(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end_child()

    def _running_child(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._target)
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _drop_after_fork(self) -> None:
        """Leave the child to the process that started it."""
        self._lock = Lock()
        if self._child is not None:
            self._child.connection.close()
            self._child = None


class _Child:
    """A child process and the connection to it."""

    def __init__(self, target: str) -> None:
        self.connection, child_socket = socket.socketpair()
        self._is_ready = False
        with child_socket:
            descriptor = child_socket.fileno()
            command = ["-P", "-m", "pools_checkpoints._sandbox_child", target, str(descriptor)]
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C goes to the parent
            )

    def exchange(self, request: object, limits: Limits) -> tuple[Status, bytes]:
        """Send a request and receive the answer; raise `LimitExceeded` if that fails."""
        if not self._is_ready:
            self._wait_for_start()
        message = {"request": request, "seconds": limits.seconds, "memory": limits.memory}
        deadline = time.monotonic() + limits.seconds
        try:
            content = json.dumps(message).encode()
            self._set_timeout(deadline)
            self.connection.sendall(len(content).to_bytes(LENGTH) + content)
            status, answer = self._receive(deadline, limits.answer)
        except TimeoutError:
            raise LimitExceeded(f"took more than {limits.seconds:g} seconds") from None
        except OSError:  # the connection is closed
            self._raise_exit_reason()
        if status == Status.MEMORY:
            raise LimitExceeded("took more memory than allowed")
        return status, answer

    def end(self) -> None:
        """Kill the process, which has nothing to lose."""
        self.connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)

    def _wait_for_start(self) -> None:
        try:
            status, text = self._receive(time.monotonic() + _SECONDS_TO_START, 2**16)
        except OSError as error:
            raise LimitExceeded(f"did not start: {type(error).__name__}") from error
        if status != Status.DONE:
            raise LimitExceeded(f"did not start: {text.decode(errors='replace')}")
        self._is_ready = True

    def _receive(self, deadline: float, largest: int) -> tuple[Status, bytes]:
        """Receive one message: its length, its status and its content."""
        size = int.from_bytes(self._receive_bytes(LENGTH, deadline))
        if size > largest:
            raise LimitExceeded(f"made more than {largest / 1e6:,.0f} MB")
        content = self._receive_bytes(size, deadline)
        try:
            return Status(content[:1]), content[1:]
        except ValueError:
            raise LimitExceeded("sent an invalid answer") from None

    def _receive_bytes(self, size: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._set_timeout(deadline)
            part = self.connection.recv(min(size - len(content), 2**20))
            if not part:
                self._raise_exit_reason()
            content += part
        return bytes(content)

    def _set_timeout(self, deadline: float) -> None:
        """Let the next call on the connection take the time that is left."""
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self.connection.settimeout(seconds)

    def _raise_exit_reason(self) -> Never:
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            raise LimitExceeded("closed its connection") from None
        if code >= 0:
            raise LimitExceeded(f"ended with exit code {code}")
        name = signal.Signals(-code).name
        suspicion = " (usually out of memory)" if name in {"SIGABRT", "SIGKILL"} else ""
        raise LimitExceeded(f"was ended by {name}{suspicion}")
