"""A folder with an installation of the plugin `toys`, and a folder with its models."""

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
    site_packages = tmp_path_factory.mktemp("site")
    (site_packages / "toys.py").symlink_to(TESTS / "toys.py")
    metadata = site_packages / "toys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toys\nVersion: 1.0\nRequires-Dist: fusion-core>=0.1,<0.2\n"
    )
    (metadata / "entry_points.txt").write_text("[fusion_core.plugins]\ntoys = toys\n")
    return site_packages


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the plugin `toys` on the path, for one test."""
    monkeypatch.syspath_prepend(site)
    load_plugins.cache_clear()
    yield site
    load_plugins.cache_clear()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and three experts."""
    models = tmp_path_factory.mktemp("models")
    for name, source in tiny_pool().by_name.items():
        (models / name).mkdir()
        save_file(source.state_dict(), models / name / "model.safetensors")
    return models


@pytest.fixture
def recipe(installed: Path, folder: Path) -> dict[str, Any]:
    assert installed
    return {"algorithm": "scaled", "model_pool": {"name": "toys", "folder": str(folder)}}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file to which each run of the method appends its scale."""
    monkeypatch.setenv("TOYS_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    """Return the environment of a process that knows the plugin."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
