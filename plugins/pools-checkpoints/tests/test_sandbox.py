"""Work in a child process that oversteps a limit, dies or lies: an exception, and another child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pools_checkpoints.sandbox import LimitExceeded, Limits, SandboxedWorker, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits(seconds=30.0, memory=100_000_000, answer=1_000_000)
SHORT = Limits(seconds=0.3, memory=100_000_000, answer=1_000_000)
#: A module whose work is Python code.
WORK = """
import os, signal, socket, sys, time

def serve():
    return lambda code: eval(code)

def say(content):
    socket.socket(fileno=os.dup(int(sys.argv[2]))).sendall(content)
    time.sleep(60)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxedWorker]:
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = SandboxedWorker("work:serve")
    yield worker
    worker.close()


def answer(child: SandboxedWorker, code: str, limits: Limits = LIMITS) -> Any:
    return json.loads(child.ask(code, limits))


def process_of(child: SandboxedWorker) -> subprocess.Popen[bytes]:
    untyped: Any = child
    process: subprocess.Popen[bytes] = untyped._child._process  # noqa: SLF001
    return process


def test_one_child_answers_all_requests(child: SandboxedWorker) -> None:
    assert answer(child, "[1, None, 'ü']") == [1, None, "ü"]
    assert answer(child, "os.getpid()") == answer(child, "os.getpid()") != os.getpid()
    assert answer(child, "len('" + "x" * 3_000_000 + "')") == 3_000_000


@pytest.mark.parametrize(
    ("code", "limits", "message"),
    [
        ("[0 for _ in iter(int, 1)]", SHORT, "took more than 0.3 seconds|more memory"),
        ("time.sleep(60)", SHORT, "took more than 0.3 seconds"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", SHORT, "took more than 0.3 seconds"),
        ("len('x' * 300_000_000)", LIMITS, "took more memory than allowed"),
        ("'x' * 2_000_000", LIMITS, "made more than 1 MB"),
        ("os.kill(os.getpid(), signal.SIGKILL)", LIMITS, "was ended by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", LIMITS, "was ended by SIGSEGV"),
        ("os._exit(3)", LIMITS, "ended with exit code 3"),
        ("say((5).to_bytes(8) + b'?????')", LIMITS, "sent an invalid answer"),
        ("say((0).to_bytes(8))", LIMITS, "sent an invalid answer"),
        ("say(b'\\xff' * 8)", LIMITS, "made more than 1 MB"),
        ("say((100).to_bytes(8) + b'+')", SHORT, "took more than 0.3 seconds"),
    ],
)
def test_a_child_that_ends_is_reported_and_replaced(
    child: SandboxedWorker, code: str, limits: Limits, message: str
) -> None:
    with pytest.raises(LimitExceeded, match=message):
        child.ask(code, limits)
    assert answer(child, "1 + 1") == 2


def test_an_exception_of_the_work_is_passed_on_and_the_child_stays(child: SandboxedWorker) -> None:
    process = answer(child, "os.getpid()")
    for code, message in (("1 / 0", "division by zero"), ("{1}", "not JSON serializable")):
        with pytest.raises(WorkFailed, match=message):
            child.ask(code, LIMITS)
    assert answer(child, "os.getpid()") == process


def test_memory_is_freed_for_the_next_request(child: SandboxedWorker) -> None:
    for _ in range(4):
        assert answer(child, "len('x' * 60_000_000)") == 60_000_000


def test_a_child_that_cannot_start_gives_the_reason() -> None:
    with pytest.raises(LimitExceeded, match="did not start: No module named 'no_such_module'"):
        SandboxedWorker("no_such_module:serve").ask("1", LIMITS)


def test_the_working_directory_is_not_imported_from(
    child: SandboxedWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "work.py").write_text("raise SystemError('planted')")
    (tmp_path / "here" / "json.py").write_text("raise SystemError('planted')")
    monkeypatch.chdir(tmp_path / "here")
    assert answer(child, "1") == 1


def test_a_fork_starts_a_child_of_its_own(child: SandboxedWorker) -> None:
    process = answer(child, "os.getpid()")
    forked = os.fork()
    if not forked:
        os._exit(answer(child, "os.getpid()") == process)
    assert os.waitpid(forked, 0)[1] == 0
    assert answer(child, "os.getpid()") == process


def test_an_interrupt_leaves_no_half_answer(
    child: SandboxedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            child.ask("time.sleep(60)", LIMITS)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert answer(child, "'whole'") == "whole"


def test_no_child_outlives_a_program_that_ends(child: SandboxedWorker) -> None:
    program = (
        "from pools_checkpoints.sandbox import *\n"
        "child = SandboxedWorker('work:serve')\n"
        f"print(child.ask('os.getpid()', {LIMITS}).decode())\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not ended.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


def test_a_looping_child_ends_without_its_parent(child: SandboxedWorker) -> None:
    answer(child, "1")
    process = process_of(child)
    untyped: Any = child
    asked = {"request": "[0 for _ in iter(lambda: 0, 1) if 0]", "seconds": 0, "memory": 10**8}
    content = json.dumps(asked).encode()
    untyped._child.connection.sendall(len(content).to_bytes(8) + content)  # noqa: SLF001
    assert process.wait(60) == -signal.SIGXCPU
