"""How `fuse` ends when it did not do what was asked: in processes of their own, as users see it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from conftest import Site

ALGORITHM = """
import os, signal, sys
from fusion_core import Algorithm, AlgorithmSpec, ComponentConfig, hookimpl

class Config(ComponentConfig):
    code: str = ""

class Odd(Algorithm):
    config_class = Config
    def run(self, pool, context):
        exec(self.config.code)
        return next(iter(pool.experts.values()))

@hookimpl
def fusion_register_algorithms():
    yield AlgorithmSpec(name="odd", summary="", target="odd_x:Odd", config="odd_x:Config")
"""


@pytest.fixture(autouse=True)
def models(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("odd-x", ALGORITHM)
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PYTHONPATH", str(site.path))
    save_file({"a": torch.ones(3)}, "x.safetensors")


def fuse(command: str, redirected: str = "") -> subprocess.CompletedProcess[str]:
    """Run `fuse` by a shell, so that its streams can be closed and redirected."""
    program = shlex.join([str(Path(sys.executable).with_name("fuse")), *shlex.split(command)])
    return subprocess.run(
        f"{program} {redirected}", shell=True, capture_output=True, text=True, check=False
    )


def run(code: str = "", redirected: str = "") -> subprocess.CompletedProcess[str]:
    code = shlex.quote(f"algorithm.code={code!r}")
    pool = "--pool checkpoints --set model_pool.models=[x.safetensors]"
    return fuse(f"run -q --algo odd {pool} --set {code} -o out", redirected)


ENDS = {
    "exit": ("sys.exit(0)", 3, "error: plugin odd-x 1.0 tried to end the program: SystemExit: 0"),
    "bug": ("{}['x']", 1, "error: a bug in plugin odd-x 1.0: KeyError: 'x'\nPlease report it"),
    "recursion": ("f = lambda: f(); globals().update(f=f); f()", 1, "a bug in plugin odd-x 1.0"),
    "no exception": ("raise BaseException('odd')", 1, "odd-x 1.0: BaseException: odd"),
    "memory": ("raise MemoryError", 1, "error: out of memory"),
    "interrupt": ("raise KeyboardInterrupt", 130, "interrupted: nothing was written or kept\n"),
    "SIGTERM": (
        "os.kill(os.getpid(), signal.SIGTERM); signal.pause()",
        143,
        "terminated: nothing was written or kept\n",
    ),
}


@pytest.mark.parametrize(("code", "exit_code", "said"), ENDS.values(), ids=ENDS)
def test_whatever_ends_a_run_is_said_without_a_traceback(
    code: str, exit_code: int, said: str
) -> None:
    done = run(code)
    assert done.returncode == exit_code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert os.listdir() == ["x.safetensors"]


def test_the_command_that_is_named_shows_the_traceback() -> None:
    said = run("{}['x']").stderr.splitlines()[-1]
    command = said.partition("what this shows: fuse ")[2]
    assert "Traceback" in fuse(command).stderr


def test_the_environment_can_ask_for_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_TRACEBACK", "1")
    assert "Traceback" in run("{}['x']").stderr


@pytest.mark.parametrize("redirected", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_needs_no_stream(redirected: str) -> None:
    assert run("", redirected).returncode == 0
    assert min(os.listdir("out")) == "model.safetensors"


def test_a_full_stdout_is_said_and_that_the_model_is_complete() -> None:
    done = run("", "> /dev/full")
    said = (
        "error: stdout cannot be written: No space left on device\nThe model is complete in out.\n"
    )
    assert (done.returncode, done.stderr) == (6, said)


@pytest.mark.parametrize("command", ["list algorithms", "--help", "run --help", "schema"])
def test_lost_results_are_an_error(command: str) -> None:
    done = fuse(command, "> /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)


def test_a_reader_that_has_enough_hears_nothing() -> None:
    done = fuse("schema", "| head -c 1")
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize("command", ["compare", "evaluate", "clean"])
def test_a_path_that_the_system_refuses_is_no_bug(command: str) -> None:
    done = fuse(f"{command} {'x' * 300}")
    assert (done.returncode, done.stderr) == (6, f"error: {'x' * 300}: File name too long\n")
