"""Crashes at every fault point, disk failures at every call, races, and full disks.

`FUSION_FAULTS=nightly` (`nox -s faults`) runs the larger sizes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from signed import sign, statement_of

from fusion_core import run_fusion
from fusion_core.errors import DiskError, OutputError
from fusion_core.planning.run_options import RunOptions
from fusion_core.weights import CheckpointSource, StateDictSource, materialise, stage_output
from fusion_core.weights.writing import _fault as fault
from fusion_core.weights.writing import _journal as journal_module
from fusion_core.weights.writing import workspace as workspace_module
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing.disk import target_of
from fusion_core.weights.writing.workspace import find_workspaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.plugins

NIGHTLY = os.environ.get("FUSION_FAULTS") == "nightly"

Files = dict[str, bytes]
CARD = "README.md"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a working directory, in memory if possible, where syncing is fast."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared)) if shared.is_dir() else tmp_path
    monkeypatch.chdir(root)
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1)  # journal every tensor
    yield root
    shutil.rmtree(root)


@pytest.fixture
def inputs(workspace: Path, models: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    (workspace / "in").mkdir()
    for name, state in models.items():
        save_file(state, workspace / "in" / f"{name}.safetensors")
    names = [model for model in models if model != "base"]
    experts = {name: f"in/{name}.safetensors" for name in names}
    return {"base": "in/base.safetensors", "models": experts}


def files_in(directory: Path) -> Files:
    """Return what a run committed, without the details of the run in the provenance.

    A model card is written after the commit, so a killed run may lack it, or leave a part of it in
    a temporary file, which `fuse clean` removes.
    """
    names = {path.name: target_of(path) or path for path in directory.iterdir()}
    files = {name: (directory / name).read_bytes() for name in names if names[name].name != CARD}
    if "provenance.json" in files:
        statement = json.loads(files["provenance.json"])
        statement.get("predicate", statement).pop("run", None)
        files["provenance.json"] = json.dumps(statement).encode()
    return files


# --- crashes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def at_fault_point(number: int, stop: Callable[[], None]) -> Iterator[list[str]]:
    """Call `stop` at the fault point with this number. Yields the names of the points reached."""
    reached: list[str] = []
    lock = threading.Lock()

    def listen(name: str) -> None:
        with lock:
            reached.append(name)
            is_the_one = len(reached) == number
        if is_the_one:
            stop()

    fault.listener, before = listen, fault.listener
    try:
        yield reached
    finally:
        fault.listener = before


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_in_child(action: Callable[[], object]) -> int:
    """Run an action in a child process. Return its exit code, negative if a signal ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has no other threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent only sees the code
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(number: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed at a fault point. Return False if it ended before."""

    def child() -> None:
        with at_fault_point(number, kill_self):
            action()

    code = run_in_child(child)
    assert code in {0, -signal.SIGKILL}
    return code != 0


@dataclass
class Case:
    """A repeatable run and its expected files."""

    workspace: Path
    recipe: dict[str, Any]
    replaces: bool
    expected: Files = field(default_factory=dict)
    before: Files = field(default_factory=dict)

    def run(self, *, resume: bool = True, output: str = "out") -> None:
        options = RunOptions(executor="serial", overwrite=self.replaces, resume=resume)
        run_fusion(
            {**self.recipe, "output": {**self.recipe["output"], "path": output}}, options=options
        )

    def reset(self) -> None:
        """Restore the state before the first run."""
        for path in self.workspace.iterdir():
            if path.name != "in":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.replaces:
            (self.workspace / "out").mkdir()
            (self.workspace / "out" / "old").write_text("as it was")
            sign(self.workspace / "out")
            self.before = files_in(self.workspace / "out")

    @property
    def visible(self) -> Files:
        """The output as another program sees it."""
        return files_in(self.workspace / "out") if (self.workspace / "out").exists() else {}

    def check_after_a_crash(self) -> None:
        """Check that no half-written model is visible. A replacement in two steps may show none."""
        in_between = {} if any(self.workspace.glob(".out.fuse-*/old")) else self.before
        assert self.visible in (self.before, self.expected, in_between)

    def check_finished(self) -> None:
        assert self.visible == self.expected
        assert sorted(path.name for path in self.workspace.iterdir()) == ["in", "out"]

    def resume_once(self) -> bool:
        """Resume, as a user would. Return False if only the cleanup was missing."""
        try:
            self.run()
        except OutputError:
            assert not self.replaces
            assert self.visible == self.expected
            return False
        return True

    def finish(self) -> None:
        """Resume until the run is finished."""
        if not self.resume_once():
            clean(self.workspace)
        self.check_finished()


def clean(workspace: Path) -> None:
    from fusion_core.weights.writing.leftovers import find_leftovers

    assert all(leftover.remove() for leftover in find_leftovers(workspace))


ALGORITHMS: dict[str, dict[str, Any]] = {
    "task-arithmetic": {"name": "task-arithmetic", "scale": 0.3},
    "ties-model": {"name": "ties", "density": 0.3, "scope": "model"},
    "ties-tensor": {"name": "ties", "density": 0.3, "scope": "tensor"},
}
SHARDS = {"single": 10**9, "sharded": 150}
OUTPUTS = ("new", "replaced at once", "replaced in two steps")
ALL = list(itertools.product(ALGORITHMS, SHARDS, OUTPUTS))
FEW = [
    ("ties-model", "sharded", "new"),
    ("task-arithmetic", "single", "replaced at once"),
    ("ties-tensor", "sharded", "replaced in two steps"),
    ("ties-tensor", "single", "new"),
    ("ties-model", "single", "replaced in two steps"),
]


@pytest.fixture
def case(
    request: pytest.FixtureRequest,
    workspace: Path,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Case:
    algorithm, shards, output = request.param
    if output == "replaced in two steps":
        monkeypatch.setattr(workspace_module, "exchange_atomically", lambda *_: False)
    recipe = {
        "algorithm": ALGORITHMS[algorithm],
        "model_pool": {"name": "checkpoints", **inputs},
        "output": {"shard_size": SHARDS[shards]},
    }
    case = Case(workspace, recipe, replaces=output != "new")
    case.run(resume=False, output="once")
    case.expected = files_in(workspace / "once")
    return case


@pytest.mark.parametrize("case", ALL if NIGHTLY else FEW[:2], indirect=True, ids="-".join)
def test_run_killed_at_any_fault_point_resumes_to_the_same_bytes(case: Case) -> None:
    """One run per fault point. A push takes one in eight points of two cases."""
    kills, step = 0, 1 if NIGHTLY else 8
    first = 2 if case.replaces and not NIGHTLY else 1
    for number in itertools.count(first, step):
        case.reset()
        if not kill_at(number, lambda: case.run(resume=False)):
            break
        kills += 1
        case.check_after_a_crash()
        case.finish()
    case.check_finished()  # of the run that nobody killed
    assert kills >= 35 // step


@pytest.mark.thorough
@pytest.mark.parametrize("case", ALL if NIGHTLY else FEW[:1], indirect=True, ids="-".join)
def test_repeatedly_killed_run_resumes_to_the_same_bytes(case: Case) -> None:
    """One to five kills in a row, at random fault points."""
    chance = random.Random(7)
    for _ in range(45 if NIGHTLY else 8):
        case.reset()
        for _ in range(chance.randint(1, 5)):
            kill_at(chance.randint(1, 60), case.resume_once)
            case.check_after_a_crash()
        case.finish()


@pytest.mark.parametrize("case", FEW[:1], indirect=True, ids="-".join)
def test_torn_journal_and_changed_tensors_are_written_again(case: Case) -> None:
    """The journal is cut at many lengths, and the recorded tensors have changed."""
    case.reset()
    assert kill_at(30, lambda: case.run(resume=False))
    (left,) = find_workspaces(case.workspace)
    assert len(Journal(left.journal).tensors) >= 3
    content = left.journal.read_bytes()
    copy = case.workspace / "in" / "kept"
    shutil.copytree(left.path, copy)
    for length in range(0, len(content), 1 if NIGHTLY else 60):
        case.reset()
        shutil.copytree(copy, left.path)
        left.journal.write_bytes(content[:length] + b"\x00\xff"[: length % 3])
        for shard in left.model.glob("*.safetensors"):
            shard.write_bytes(bytes(len(shard.read_bytes())))
        case.finish()


def test_interrupt_at_any_fault_point_leaves_resumable_or_complete_output(workspace: Path) -> None:
    """In any thread. The run is resumed, and interrupted again at one of the first points."""
    write(workspace / "once", resume=False)
    expected = files_in(workspace / "once")

    def interrupt() -> None:
        raise KeyboardInterrupt

    for second in (None, 1, 2, 4) if NIGHTLY else (None, 2):
        for number in itertools.count(1):
            with (
                contextlib.suppress(KeyboardInterrupt),
                at_fault_point(number, interrupt) as reached,
            ):
                write(workspace / "out", resume=False)
            if second is not None and not (workspace / "out").exists():
                with contextlib.suppress(KeyboardInterrupt), at_fault_point(second, interrupt):
                    write(workspace / "out", resume=True)
            if not (workspace / "out").exists():
                write(workspace / "out", resume=True)
            assert files_in(workspace / "out") == expected
            clean(workspace)
            assert sorted(os.listdir(workspace)) == ["once", "out"]
            shutil.rmtree(workspace / "out")
            if len(reached) < number:
                break
        assert number > 30


# --- a failing disk -----------------------------------------------------------------------------

FUNCTIONS = (
    "open",
    "posix_fallocate",
    "pwrite",
    "fdatasync",
    "fsync",
    "mkdir",
    "rename",
    "replace",
    "unlink",
)
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)

STATE = {
    "a": torch.arange(300.0).reshape(30, 10),
    "b": torch.arange(7.0).bfloat16(),
    "n": torch.tensor(5),
    "empty": torch.zeros(0, 3),
    "z": torch.arange(300.0).half(),
}


def write(output: Path, *, resume: bool, overwrite: bool = False) -> None:
    with stage_output(output, overwrite=overwrite, plan=b"{}", resume=resume) as staging:
        materialise(StateDictSource(STATE), staging, shard_size=700)
        staging.add("config.json", b"{}")
        files = sorted(os.listdir(staging.directory))
        staging.add("provenance.json", json.dumps(statement_of(*files)).encode())
        staging.commit(overwrite=overwrite)


class Fault:
    """Makes the Nth call of a function of `os` fail, and all later ones if it `lasts`."""

    def __init__(
        self, patch: pytest.MonkeyPatch, function: str, nth: int, error: OSError, *, lasts: bool
    ) -> None:
        self.fired = False
        calls, real = itertools.count(1), getattr(os, function)

        def call(*arguments: Any, **keys: Any) -> Any:
            number = next(calls)
            if number == nth or (lasts and number > nth):
                self.fired = True
                raise error
            return real(*arguments, **keys)

        patch.setattr(os, function, call)


class Target:
    """A new or replaced output on a failing disk."""

    def __init__(self, workspace: Path, *, overwrite: bool) -> None:
        self.output = workspace / "here" / "out"
        self.overwrite = overwrite
        self.before: Files = {}
        write(workspace / "once", resume=False)
        self.expected = files_in(workspace / "once")

    def reset(self) -> None:
        shutil.rmtree(self.output.parent, ignore_errors=True)
        if self.overwrite:
            self.output.mkdir(parents=True)
            (self.output / "old").write_text("as it was")
            sign(self.output)
            self.before = files_in(self.output)

    def write(self, *, resume: bool = False) -> None:
        write(self.output, resume=resume, overwrite=self.overwrite)

    @property
    def visible(self) -> Files:
        return files_in(self.output) if self.output.exists() else {}

    def check(self, outcome: DiskError | None, code: int) -> None:
        """Check that a fault gave a helpful error, and the output is unchanged or complete."""
        if outcome is None:  # nothing needed that call
            assert self.visible == self.expected
            return
        assert outcome.exit_code == 6
        assert os.strerror(code) in outcome.message
        if "read back" not in outcome.message:
            assert ("bytes are free" in str(outcome)) == (code in {errno.ENOSPC, errno.EDQUOT})
        aside = any(self.output.parent.glob(".out.fuse-*/old"))
        assert self.visible in (self.before, self.expected) or (aside and not self.output.exists())

    def resume(self) -> None:
        if self.overwrite or self.visible != self.expected:
            self.write(resume=True)
        else:
            clean(self.output.parent)
        assert self.visible == self.expected
        assert os.listdir(self.output.parent) == ["out"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("output", OUTPUTS if NIGHTLY else OUTPUTS[::2])
def test_disk_failure_is_reported_and_run_resumes(
    workspace: Path, output: str, *, lasts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of every function fails. A push takes one errno."""
    if output == "replaced in two steps":
        monkeypatch.setattr(workspace_module, "exchange_atomically", lambda *_: False)
    target = Target(workspace, overwrite=output != "new")
    cases = 0
    for function, code in itertools.product(FUNCTIONS, CODES if NIGHTLY else CODES[:1]):
        for nth in itertools.count(1):
            target.reset()
            with pytest.MonkeyPatch.context() as patch:
                fault = Fault(patch, function, nth, OSError(code, os.strerror(code)), lasts=lasts)
                outcome = None
                try:
                    target.write()
                except DiskError as error:
                    outcome = error
            try:
                target.check(outcome, code)
                target.resume()
            except BaseException as error:
                error.add_note(f"after call {nth} of {function}: {os.strerror(code)}")
                raise
            if not fault.fired:
                break
            cases += 1
        is_unused = function == "rename" and output == "replaced at once"
        assert (nth == 1) == is_unused, f"{function} was called {nth - 1} times"
    assert cases >= 30 * len(CODES if NIGHTLY else CODES[:1])


def test_tensors_of_failed_sync_are_never_recorded(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a failed sync once. The next sync of the file would succeed."""
    recorded: list[str] = []
    add = Journal.add

    def add_noted(journal: Journal, tensors: dict[str, str]) -> None:
        recorded.append("failed" if fault.fired else "synced")
        add(journal, tensors)

    monkeypatch.setattr(Journal, "add", add_noted)
    for nth in itertools.count(1):
        recorded.clear()
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, "fdatasync", nth, OSError(errno.EIO, "broken"), lasts=False)
            with contextlib.suppress(DiskError):
                write(workspace / f"out{nth}", resume=False)
        assert (workspace / f"out{nth}").exists() == (not fault.fired)
        assert "failed" not in recorded
        if not fault.fired:
            break
    assert nth > 6
    assert recorded.count("synced") >= 2


@pytest.mark.parametrize("most", [1, 7, 64, 1000])
def test_short_writes_are_continued(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    write(workspace / "expected", resume=False)
    real, chance = os.pwrite, random.Random(most)
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: real(fd, data[: chance.randint(1, most)], at)
    )
    for attempt in range(25):
        write(workspace / f"out{attempt}", resume=False)
        assert files_in(workspace / f"out{attempt}") == files_in(workspace / "expected")


# --- a full disk --------------------------------------------------------------------------------

FULL = """
import gc, subprocess, sys
from pathlib import Path
import torch
from fusion_core.errors import DiskError
from fusion_core.weights import StateDictSource, materialise, stage_output

class Unread(StateDictSource):
    def read(self, name, start, stop):
        raise AssertionError("a weight is read")

disk = Path(sys.argv[1])
source = Unread({"x": torch.zeros(4, 2**20)})
for size in (1, 2, 4, 8):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", disk], check=True)
    try:
        with stage_output(disk / "out", plan=b"{}") as staging:
            materialise(source, staging, shard_size=10**9)
    except DiskError as error:
        assert not list(disk.iterdir())
        print(error.exit_code, error)
    gc.collect()  # from Python 3.13 on, contextlib leaves errors and their frames to it
    subprocess.run(["umount", disk], check=True)
"""


def test_full_disk_is_found_before_any_weight_is_read(tmp_path: Path) -> None:
    """On file systems in memory of 1 to 8 MB, for 16 MB of weights."""
    alone = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = [*alone, "mount", "-t", "tmpfs", "none", tmp_path]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED: this system lets nobody but its administrator mount a tmpfs")
    script = [*alone, sys.executable, "-c", FULL, tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    messages = re.findall(
        r"6 .*No space left on device\n([\d,]+) bytes are needed, ([\d,]+) bytes are free",
        done.stdout,
    )
    assert [int(needed.replace(",", "")) // 2**20 for needed, _ in messages] == [16] * 4
    free = [int(free.replace(",", "")) / 2**20 for _, free in messages]
    assert all(size / 2 < space <= size for space, size in zip(free, (1, 2, 4, 8), strict=True))


# --- races --------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_only_one_of_several_runs_writes_an_output(workspace: Path, count: int) -> None:
    """The others fail at once and name the winner, which waits until they all have failed."""
    for attempt in range(35 if NIGHTLY else 3):
        output = workspace / "deep" / f"out{attempt}"
        told, tell = os.pipe()
        go, start = os.pipe()
        children = {}

        def child(number: int, output: Path = output, told: int = told, go: int = go) -> None:
            os.read(go, 1)
            state = {"x": torch.full((5,), float(number))}
            with stage_output(output, plan=str(number).encode()) as staging:
                materialise(StateDictSource(state), staging, shard_size=10**9)
                for _ in range(count - 1):
                    os.read(told, 1)
                staging.commit(overwrite=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for number in range(count):
                pid = os.fork()
                if pid == 0:
                    compete(lambda number=number: child(number), tell, workspace / f"{number}")
                children[pid] = number
        os.write(start, b"!" * count)
        with kill_overdue(children):
            ended = [os.wait() for _ in children]
        (winner,) = (pid for pid, status in ended if status == 0)
        for pid, status in ended:
            if pid == winner:
                continue
            assert os.waitstatus_to_exitcode(status) == 7
            message = (workspace / str(children[pid])).read_text()
            assert f"is being written by process {winner} on {socket.gethostname()}" in message
        assert CheckpointSource(output).tensor("x").tolist() == [float(children[winner])] * 5
        assert set(os.listdir(workspace / "deep")) == {f"out{n}" for n in range(attempt + 1)}
        for descriptor in (told, tell, go, start):
            os.close(descriptor)


@contextlib.contextmanager
def kill_overdue(children: Iterable[int]) -> Iterator[None]:
    """Kill children that do not end, and fail: a loser that waited would wait for ever."""

    def give_up(*_: object) -> None:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail("the competitors wait for each other")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def compete(action: Callable[[], None], tell: int, message_file: Path) -> None:
    """Run a competitor. One that loses writes its error to a file."""
    code = 1
    try:
        action()
        code = 0
    except OutputError as error:
        message_file.write_text(str(error))
        code = error.exit_code
        os.write(tell, b"!")
    except BaseException:  # noqa: BLE001 - the parent only sees the code
        traceback.print_exc()
    finally:
        os._exit(code)
