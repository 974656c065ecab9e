"""How `fuse` ends when it did not do what was asked.

In processes of their own where signals and streams are what ends them.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.cli.flags import set_up_logging
from fusion_core.cli.streams import guard_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome, Site

    Fuse = Callable[..., Outcome]

#: The method is in a module of its own, so that listings need not import torch.
PLUGIN = """
import os, signal, sys
from fusion_core import AlgorithmSpec, hookimpl

def act(code, context):
    exec(code)

@hookimpl
def fusion_register_algorithms():
    yield AlgorithmSpec(name="odd", summary="", target="odd:Odd", config="odd:Config")
"""
ALGORITHM = """
import odd_x
from fusion_core import Algorithm, ComponentConfig

class Config(ComponentConfig):
    code: str = ""

class Odd(Algorithm):
    config_class = Config
    def run(self, pool, context):
        odd_x.act(self.config.code, context)
        return next(iter(pool.experts.values()))
"""


@pytest.fixture(autouse=True)
def models(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("odd-x", PLUGIN, files={"odd.py": ALGORITHM})
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PYTHONPATH", str(site.path))
    save_file({"a": torch.ones(3)}, "x.safetensors")


def shell(command: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """Run `fuse` by a shell, so that its streams can be closed and redirected."""
    program = shlex.join([str(Path(sys.executable).with_name("fuse")), *shlex.split(command)])
    return subprocess.run(
        f"{program} {redirected}", shell=True, capture_output=True, text=True, check=False
    )


def run(code: str = "") -> str:
    """Return the command that runs the algorithm, which runs the code."""
    code = shlex.quote(f"algorithm.code={code!r}")
    pool = "--pool checkpoints --set model_pool.models=[x.safetensors]"
    return f"run -q --algo odd {pool} --set {code} -o out"


NOTHING_WRITTEN = "this command has written nothing\n"
ENDS = {
    "exit": ("sys.exit(0)", 3, "error: plugin odd-x 1.0 tried to end the program: SystemExit: 0"),
    "bug": ("{}['x']", 1, "error: a bug in plugin odd-x 1.0: KeyError: 'x'\nPlease report it"),
    "recursion": ("f = lambda: f(); globals().update(f=f); f()", 1, "a bug in plugin odd-x 1.0"),
    "no exception": ("raise BaseException('odd')", 1, "odd-x 1.0: BaseException: odd"),
    "memory": ("raise MemoryError", 1, "error: out of memory"),
    "interrupt": ("raise KeyboardInterrupt", 130, f"interrupted: {NOTHING_WRITTEN}"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("code", "exit_code", "message"), ENDS.values(), ids=ENDS)
def test_the_end_of_a_run_is_explained_without_a_traceback(
    fuse: Fuse, code: str, exit_code: int, message: str
) -> None:
    done = fuse(*shlex.split(run(code)))
    assert done.code == exit_code
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert os.listdir() == ["x.safetensors"]


def test_an_interrupt_that_leaves_work_says_how_to_go_on(fuse: Fuse) -> None:
    done = fuse(*shlex.split(run("(context.state / 'step').touch(); raise KeyboardInterrupt")))
    assert (done.code, done.out) == (130, "")
    assert done.err.startswith("interrupted\n")
    assert "--resume" in done.err


def test_a_signal_is_explained_without_a_traceback() -> None:
    done = shell(run("os.kill(os.getpid(), signal.SIGTERM); signal.pause()"), "")
    message = f"terminated: {NOTHING_WRITTEN}"
    assert (done.returncode, done.stdout, done.stderr) == (143, "", message)
    assert os.listdir() == ["x.safetensors"]


def test_the_command_that_is_named_shows_the_traceback(fuse: Fuse) -> None:
    last_line = fuse(*shlex.split(run("{}['x']"))).err.splitlines()[-1]
    command = last_line.partition("the output of: fuse ")[2]
    assert "Traceback" in fuse(*shlex.split(command)).err


def test_the_environment_can_ask_for_tracebacks(
    fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_TRACEBACK", "1")
    assert "Traceback" in fuse(*shlex.split(run("{}['x']"))).err


@pytest.mark.thorough
@pytest.mark.sampled(2)
@pytest.mark.parametrize("redirected", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_needs_no_stream(redirected: str) -> None:
    assert shell(run(), redirected).returncode == 0
    assert "model.safetensors" in os.listdir("out")


def test_a_full_stdout_is_an_error_that_names_the_complete_model() -> None:
    done = shell(run(), "> /dev/full")
    message = (
        "error: stdout cannot be written: No space left on device\nThe model is complete in out.\n"
    )
    assert (done.returncode, done.stderr) == (6, message)


@pytest.mark.parametrize("command", ["list algorithms", "--help"])
def test_lost_results_are_an_error(command: str) -> None:
    done = shell(command, "> /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)


def test_a_reader_that_has_enough_hears_nothing() -> None:
    done = shell("schema", "| head -c 1")
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize("command", ["evaluate", "clean"])
def test_a_path_that_the_system_refuses_is_no_bug(fuse: Fuse, command: str) -> None:
    done = fuse(command, "x" * 300)
    assert (done.code, done.err) == (6, f"error: {'x' * 300}: File name too long\n")


def test_control_characters_are_escaped_wherever_they_are_printed(fuse: Fuse) -> None:
    evil = "e\x1b]0;title\x07\x9b31m"
    done = fuse(*shlex.split(f"{run()}/{shlex.quote(evil)}"))
    assert done.code == 0
    assert done.out == "written: out/e\\x1b]0;title\\x07\\x9b31m\n"


def test_a_stream_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with guard_streams():
        print("a\x1b[31mb\x1b]0;c\x07\ttab é\r")  # noqa: T201
    assert capsys.readouterr().out == "a\\x1b[31mb\\x1b]0;c\\x07\ttab é\r\n"


@pytest.mark.parametrize("level", ["warning", "error"])
def test_logs_show_their_level_and_not_their_logger(
    capsys: pytest.CaptureFixture[str], level: str
) -> None:
    set_up_logging(verbose=False)
    getattr(logging.getLogger("fusion_core.running"), level)("\x1b[31m%s", "text")
    assert capsys.readouterr().err == f"{level}: \\x1b[31mtext\n"
