"""Checks of distributions before a release, and the extra that installs all of them."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
METADATA = """Metadata-Version: 2.4
Name: toy
Version: 1
Summary: A toy.
Requires-Python: >=3.11
License-Expression: {licence}
Description-Content-Type: text/markdown
"""


def write(directory: Path, *, licence: str = "Apache-2.0", lacks: str = "") -> None:
    """Write a wheel and an sdist that lack one file."""
    wheel = {"toy/__init__.py", "toy/py.typed", "toy-1.dist-info/licenses/LICENSE"}
    with zipfile.ZipFile(directory / "toy-1-py3-none-any.whl", "w") as archive:
        archive.writestr("toy-1.dist-info/METADATA", METADATA.format(licence=licence))
        for name in sorted(wheel - {lacks}):
            archive.writestr(name, "")
    with tarfile.open(directory / "toy-1.tar.gz", "w:gz") as sdist:
        for name in ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"):
            if name != lacks:
                sdist.addfile(tarfile.TarInfo(f"toy-1/{name}"), io.BytesIO())


def check(directory: Path) -> tuple[int, str]:
    program = [sys.executable, "-I", ROOT / "release/check_distributions.py", directory]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_complete_distributions_pass(tmp_path: Path) -> None:
    write(tmp_path)
    assert check(tmp_path) == (0, "")


def test_every_fault_is_named_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, licence="MIT", lacks="toy/py.typed")
    (tmp_path / "toy-1.tar.gz").unlink()
    with (tmp_path / "other-1.tar.gz").open("wb") as file:
        tarfile.open(fileobj=file, mode="w:gz").close()
        file.truncate(26_000_000)
    code, faults = check(tmp_path)
    assert code == 1
    for fault in (
        "other: expected a wheel and an sdist, found one of them",
        "toy: expected a wheel and an sdist, found one of them",
        "toy-1-py3-none-any.whl: licence: expected Apache-2.0, got MIT",
        "toy-1-py3-none-any.whl: missing toy/py.typed",
        "other-1.tar.gz: 26000000 bytes, expected at most 25000000",
        "other-1.tar.gz: missing CHANGELOG.md",
    ):
        assert fault in faults


def test_one_extra_installs_all_plugins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plugins = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
    assert project["optional-dependencies"]["all"] == [f"{name}>=0.1,<0.2" for name in plugins]
