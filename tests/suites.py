"""Suites run on planted faults, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def expressions(caught_by: Mapping[str, set[str]]) -> list[str]:
    """Choose the checks that are about each fault, and all of them for what is sound."""
    every = " or ".join(sorted(set().union(*caught_by.values())))
    faults = (f"(Test_{fault} and ({' or '.join(checks)}))" for fault, checks in caught_by.items())
    return [f"(Test_sound and ({every}))", *faults]


def run_suites(root: Path, tests: str, checks: list[str]) -> dict[str, dict[str, str]]:
    """Run a test file in a process of its own; return what failed: class -> check -> message."""
    (root / "test_planted.py").write_text(textwrap.dedent(tests))
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=found.xml"]
    selected = ["-k", " or ".join(checks)] if checks else []
    done = subprocess.run(
        [sys.executable, *command, *selected, "test_planted.py"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (root / "found.xml").is_file(), done.stdout + done.stderr
    failures: dict[str, dict[str, str]] = {}
    for case in ET.parse(root / "found.xml").iter("testcase"):
        fault = case.attrib["classname"].rpartition(".")[2].removeprefix("Test_")
        failed = failures.setdefault(fault, {})
        for failure in (*case.iter("failure"), *case.iter("error")):
            failed[case.attrib["name"].partition("[")[0]] = failure.text or ""
    return failures
