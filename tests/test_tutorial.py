"""The tutorial for authors: every file is written, every command run, every output compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorials" / "your-first-method.md"
_BLOCK = re.compile(r"<!-- (\w+)(?:: (\S+))? -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What a block is for (setup, run, fails, shows or file), of which file, and its text."""

    mark: str
    path: str
    text: str


def blocks() -> list[Block]:
    return [Block(*groups) for groups in _BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))]


def test_every_block_of_the_tutorial_is_marked() -> None:
    fences = re.findall(r"^```\w+$|^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks())
    assert {block.mark for block in blocks()} == {"setup", "run", "fails", "shows", "file"}


@pytest.mark.thorough
def test_the_tutorial_does_what_it_says(
    borrowed: Path,
    add_tools: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(borrowed))  # what `pip install` would fetch
    workspace, here = tmp_path / "work", "."
    workspace.mkdir()
    (workspace / "fusion-core").symlink_to(ROOT)
    ours, binaries = Path(sys.executable).parent, workspace / ".venv" / "bin"
    output = ""
    for block in blocks():
        match block.mark:
            case "file":
                target = workspace / block.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text, encoding="utf-8")
            case "shows":
                assert_shown(block.text, output)
            case "setup":
                run(block.text, workspace, ours, fails=False)
                add_tools(binaries, "pytest")
            case _:
                script = f"cd {here}\n{block.text}\npwd > {tmp_path / 'here'}\n"
                output = run(script, workspace, binaries, fails=block.mark == "fails")
                if block.mark == "run":
                    here = (tmp_path / "here").read_text().strip()
    assert (workspace / here / "merged" / "model.safetensors").is_file()
    run("ruff check . && ruff format --check .", workspace / here, ours, fails=False)


def run(script: str, directory: Path, binaries: Path, *, fails: bool) -> str:
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",  # what is needed is there; nothing may be fetched
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that it shall not isolate
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout


def assert_shown(text: str, output: str) -> None:
    """Find each line in the output, in order; numbers and spaces may differ."""
    printed = iter(plain(output))
    for line in plain(text):
        assert any(line in other for other in printed), f"{line!r} is not in:\n{output}"


def plain(text: str) -> list[str]:
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [re.sub(r"\d+(\.\d+)?", "N", line) for line in lines if line]


@pytest.mark.parametrize(
    ("text", "output", "good"),
    [
        ("a  1.5", "x\na 27\n", True),
        ("a\nb", "a\nc\nb\n", True),
        ("b\na", "a\nc\nb\n", False),
        ("a", "b", False),
    ],
)
def test_outputs_are_compared_line_by_line(text: str, output: str, good: bool) -> None:  # noqa: FBT001
    if good:
        assert_shown(text, output)
    else:
        with pytest.raises(AssertionError):
            assert_shown(text, output)
