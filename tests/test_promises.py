"""Every test that stands behind a promise exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = (ROOT / "docs/explanation/promises.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@cache
def list_tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("named", re.findall(r"`(\S+\.py::\S+)`", PROMISES))
def test_a_test_behind_a_promise_exists(named: str) -> None:
    file, _, name = named.partition("::")
    assert name in list_tests(file)


def test_every_promise_names_tests() -> None:
    _, *promises = re.split(
        r"^\*\*\d+\. ", PROMISES.partition("## Versions")[0], flags=re.MULTILINE
    )
    assert len(promises) == 10
    assert all("::test_" in promise for promise in promises)


def test_files_of_tests_that_the_security_policy_names_exist() -> None:
    named = re.findall(r"`(\S*test_\w+\.py)`", SECURITY)
    assert len(named) > 10
    assert [file for file in named if not (ROOT / file).is_file()] == []
