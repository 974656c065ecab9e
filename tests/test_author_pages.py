"""The pages about testing and publishing a plugin: pytest runs the one, a shell the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fusion_testing.skeleton import Kind, write_plugin

pytestmark = pytest.mark.plugins

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
#: The declaration that the page calls wrong.
WRONG = "TestWithRoles::test_the_order_of_experts_does_not_matter"


def blocks(page: str, language: str) -> list[str]:
    text = (HOW_TO / page).read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_page(directory: Path, *selection: str) -> str:
    """Run the page about testing as a file of tests."""
    (directory / "test_page.py").write_text("\n".join(blocks("test-a-plugin.md", "python")))
    return run([sys.executable, "-m", "pytest", "-q", "-rA", *selection], directory).stdout


def find_failed(outcome: str) -> set[str]:
    return set(re.findall(r"^(?:FAILED|ERROR) test_page.py::([^\[\s]+)", outcome, re.MULTILINE))


@pytest.mark.thorough
def test_the_suite_that_the_page_shows_passes(tmp_path: Path) -> None:
    outcome = run_page(tmp_path)
    passed = re.findall(r"^PASSED test_page.py::TestTies::", outcome, re.MULTILINE)
    assert len(passed) > 60
    assert find_failed(outcome) == {WRONG}, outcome


@pytest.mark.thorough
def test_the_declaration_that_it_calls_wrong_is_all_that_fails(tmp_path: Path) -> None:
    outcome = run_page(tmp_path, "-k", "test_it or (mlp and (order or scale or degenerate))")
    assert find_failed(outcome) == {WRONG}, outcome
    for passed in (
        "TestTies::test_the_order_of_experts_does_not_matter",
        "test_it_is_listed",
        "test_it_runs_on_tiny_models_and_is_measured",
    ):
        assert f"PASSED test_page.py::{passed}" in outcome


@pytest.fixture
def median(tmp_path: Path) -> Path:
    return write_plugin("fusion-median", Kind.ALGORITHM, tmp_path / "fusion-median")


def test_what_the_page_says_of_a_project_is_what_is_generated(median: Path) -> None:
    (source,) = blocks("publish-a-plugin.md", "toml")
    project = tomllib.loads((median / "pyproject.toml").read_text())["project"]
    shown: dict[str, Any] = tomllib.loads(source)["project"]
    assert shown.pop("keywords") == project["keywords"][:1]
    assert {key: project[key] for key in shown} == shown


@pytest.mark.thorough
def test_a_wheel_is_tried_as_the_page_says(
    median: Path,
    our_wheels: list[Path],
    borrowed: Path,
) -> None:
    (script,) = blocks("publish-a-plugin.md", "sh")
    done = run(
        ["bash", "-e", "-c", script],
        median,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=str(borrowed),  # what pip would fetch
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(our_wheels[0].parent),
        PIP_NO_BUILD_ISOLATION="0",  # which is how pip spells that it shall not isolate
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^fusion-median +0\.1\.0 +loaded +median", done.stdout, re.MULTILINE)
    assert "written: outputs/" in done.stdout
    assert list(median.parent.glob("try/outputs/*/model.safetensors"))
