"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from filelock import FileLock

from fusion_core.cli.app import main
from fusion_core.plugins.distributions import BLOCK_VARIABLE
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


ROOT = Path(__file__).parents[1]


@dataclass
class Site:
    """A directory on sys.path in which tests install distributions."""

    path: Path
    modules: list[str] = field(default_factory=list)

    def install(  # noqa: PLR0913 - what a distribution's metadata says
        self,
        distribution: str,
        code: str,
        *,
        module: str | None = None,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
        entry_points: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> str:
        """Write a module and the .dist-info that registers it; return the module's name."""
        module = module or distribution.lower().replace("-", "_")
        (self.path / f"{module}.py").write_text(textwrap.dedent(code))
        for name, content in (files or {}).items():
            (self.path / name).write_text(textwrap.dedent(content))
        self.modules += [module, *(Path(name).stem for name in files or {})]
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {distribution}", f"Version: {version}", "Summary: A fake."]
        lines += [f"Requires-Dist: {require}" for require in requires]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        declared = {"main": module} if entry_points is None else entry_points
        points = "\n".join(f"{name} = {value}" for name, value in declared.items())
        (info / "entry_points.txt").write_text(f"[fusion_core.plugins]\n{points}\n")
        return module


@pytest.fixture
def fresh_plugins() -> Iterator[None]:
    """Discover plugins anew in a test that installs or blocks one, and after it."""
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_plugins: None) -> Iterator[Site]:
    """Return an empty site directory, first on sys.path."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    monkeypatch.delenv(BLOCK_VARIABLE, raising=False)
    directory = Site(path)
    yield directory
    for name in directory.modules:
        sys.modules.pop(name, None)


@pytest.fixture
def import_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return what imports a module of `benchmarks`, whose modules import each other by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def fuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Return what runs the command line in this process, as it would in one of its own."""
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # or typer calls it pytest
    level = logging.root.level

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fuse", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return Outcome(int(code or 0), out, err)

    yield run
    logging.root.setLevel(level)  # `-v` has changed it


@pytest.fixture(scope="session")
def make_site() -> type[Site]:
    """Return the class of site directories, for fixtures that outlive a test."""
    return Site


#: Builds the wheels of projects as `pip wheel` would, which starts two processes for each.
BUILD = """
import os, sys
from hatchling.build import build_wheel
for project in sys.argv[2:]:
    os.chdir(project)
    build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="session")
def build_wheels() -> Callable[..., Path]:
    """Return what builds wheels of projects into a directory; a project may be given as files."""

    def build(root: Path, *projects: Path, files: Mapping[str, str] | None = None) -> Path:
        for name, content in (files or {}).items():
            path = root / "project" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(content), encoding="utf-8")
        sources = [*projects, *([root / "project"] if files else [])]
        subprocess.run([sys.executable, "-c", BUILD, root / "dist", *sources], check=True)
        return root / "dist"

    return build


@pytest.fixture(scope="session")
def our_wheels(
    tmp_path_factory: pytest.TempPathFactory, build_wheels: Callable[..., Path]
) -> list[Path]:
    """Return the wheels of the core and of every plugin, built once for all processes of a run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with FileLock(root / "wheels.lock"):
        if not (root / "wheels").exists():
            plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
            build_wheels(root / "our-wheels", ROOT, *plugins).rename(root / "wheels")
    return sorted((root / "wheels").iterdir())


@pytest.fixture(scope="session")
def install_wheels() -> Callable[..., None]:
    """Return what installs wheels into a directory, without what they require."""

    def install(site: Path, *wheels: Path) -> None:
        pip("install", "--no-deps", "--no-index", "--target", site, *wheels)

    return install


@pytest.fixture(scope="session")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with torch and the like, and no project of this repository."""
    packages = tmp_path_factory.mktemp("borrowed")
    ours = ("fusion_", "formats_", "pools_", "recipes_")
    ours += ("_fusion_", "_pools_", "_editable", "__editable")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(ours):
            (packages / path.name).symlink_to(path)
    return packages


@pytest.fixture(scope="session")
def make_environment(borrowed: Path, add_tools: Callable[..., None]) -> Callable[..., Path]:
    """Return what makes a virtual environment with some wheels installed, as users do.

    All else is borrowed. Returns its `bin`, which has `python`, `fuse`, `pip` and `pytest`.
    """

    def make(home: Path, *wheels: Path) -> Path:
        venv.create(home, with_pip=False)
        site = next((home / "lib").glob("python*")) / "site-packages"
        (site / "borrowed.pth").write_text(f"{borrowed}\n")
        pip("--python", home / "bin" / "python", "install", "--no-index", *wheels)
        add_tools(home / "bin", "pip", "pytest")
        return home / "bin"

    return make


@pytest.fixture(scope="session")
def add_tools() -> Callable[..., None]:
    """Return what adds commands for modules that an environment has borrowed."""

    def add(binaries: Path, *tools: str) -> None:
        for tool in tools:
            script = binaries / tool
            script.write_text(f'#!/bin/sh\nexec "{binaries / "python"}" -m {tool} "$@"\n')
            script.chmod(0o755)

    return add


def pip(*arguments: str | Path) -> None:
    """Run pip, quietly."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


@pytest.fixture
def models() -> dict[str, dict[str, torch.Tensor]]:
    """Return a base and three experts, small but of every kind of shape."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {
        "layer.weight": normal(7, 5),
        "layer.bias": normal(7),
        "embedding.weight": normal(11, 3),
        "scale": normal(),
        "empty": torch.zeros(0, 4),
        "steps": torch.tensor(3),
    }
    weights = {"base": base}
    for expert in ("a", "b", "c"):
        weights[expert] = {
            name: value + 0.1 * normal(*value.shape) if value.is_floating_point() else value
            for name, value in base.items()
        }
    return weights
