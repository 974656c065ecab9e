"""The plugin `toys` is installed in a folder, and its models are saved in another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

from fusion_core.commands import load_plugins
from fusion_testing import tiny_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an installation of the plugin `toys`."""
    place = tmp_path_factory.mktemp("site")
    (place / "toys.py").symlink_to(TESTS / "toys.py")
    about = place / "toys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toys\nVersion: 1.0\nRequires-Dist: fusion-core>=0.1,<0.2\n"
    )
    (about / "entry_points.txt").write_text("[fusion_core.plugins]\ntoys = toys\n")
    return place


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the plugin `toys` on the path, for one test."""
    monkeypatch.syspath_prepend(site)
    load_plugins.cache_clear()
    yield site
    load_plugins.cache_clear()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a base and three experts."""
    place = tmp_path_factory.mktemp("models")
    for name, source in tiny_pool().by_name.items():
        (place / name).mkdir()
        save_file(source.state_dict(), place / name / "model.safetensors")
    return place


@pytest.fixture
def recipe(installed: Path, folder: Path) -> dict[str, Any]:
    assert installed
    return {"algorithm": "scaled", "model_pool": {"name": "toys", "folder": str(folder)}}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file to which each run of the method adds its scale."""
    monkeypatch.setenv("TOYS_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    """Return the environment of a process that knows the plugin."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
