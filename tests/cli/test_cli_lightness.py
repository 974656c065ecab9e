"""Help, listings and completion import nothing heavy: asserted on sys.modules of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins

HEAVY = ("torch", "transformers", "pydantic", "huggingface_hub", "rich", "numpy")

# Runs the program as its entry point does, then reports which modules it has imported.
PROGRAM = """
import atexit, sys
from fusion_core.cli.app import main
report = sys.argv.pop()
sys.argv[0] = "fuse"
atexit.register(lambda: print(*sorted(sys.modules), file=open(report, "w")))
main()
"""


def _modules(tmp_path: Path, *arguments: str, **environment: str) -> tuple[set[str], str]:
    report = tmp_path / "modules"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, str(report)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(report.read_text().split()), done.stdout


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("list-plugins",),
        ("list-plugins", "--json"),
        ("list", "algorithms"),
        ("list", "pools"),
        ("list", "tasks"),
        ("list", "executors"),
        ("list", "commands"),
    ],
    ids=" ".join,
)
def test_reading_commands_are_light(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    modules, out = _modules(tmp_path, *arguments)
    assert out
    assert not modules & set(HEAVY)


def test_options_are_shown_without_torch(tmp_path: Path) -> None:
    for option, *arguments in (
        ("density", "info", "ties"),
        ("density", "run", "--algo", "ties", "--help"),
        ("density", "schema"),
        ("workers", "info", "threads"),
    ):
        modules, out = _modules(tmp_path, *arguments)
        assert option in out
        assert not modules & {"torch", "transformers", "numpy"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fuse run --algo t", {"task-arithmetic", "ties"}),
        ("fuse run --pool checkp", {"checkpoints"}),
        ("fuse check --executor se", {"serial"}),
        ("fuse info weigh", {"weighted-average"}),
        ("fuse li", {"list-plugins", "list"}),
    ],
)
def test_completion_is_light(tmp_path: Path, typed: str, offered: set[str]) -> None:
    modules, out = _modules(
        tmp_path,
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split()) - 1),
        _FUSE_COMPLETE="complete_bash",
    )
    assert set(out.split()) >= offered
    assert not modules & set(HEAVY)
