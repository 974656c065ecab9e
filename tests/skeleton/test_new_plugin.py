"""`fuse new-plugin`: what it writes installs, is listed, runs, and passes its own checks.

Everything is tried as a stranger would: wheels of the core, of the plugins and of what was written,
in a virtual environment of their own, from another directory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.commands import read_provenance
from fusion_core.errors import OutputError, RecipeError
from fusion_testing.skeleton import Kind, Names, core_range, write_plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Outcome

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[2]
#: Libraries register nothing, and so have no entry point.
LIBRARIES = {"fusion-adapting", "fusion-thresholds"}
PLUGINS = sorted(
    path.parent
    for path in ROOT.glob("plugins/*/pyproject.toml")
    if path.parent.name not in LIBRARIES
)
NAMES = {kind: f"fusion-try-{kind}" for kind in Kind}
COMMON = {
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "src/{package}/__init__.py",
    "src/{package}/plugin.py",
    "src/{package}/py.typed",
    "tests/test_conformance.py",
}


@dataclass(frozen=True)
class World:
    """A generated package of each kind, and an environment in which their wheels are installed."""

    root: Path
    bin: Path

    def home(self, kind: Kind) -> Path:
        return self.root / NAMES[kind]

    def run(self, *command: object, cwd: Path) -> str:
        done = subprocess.run(
            [str(self.bin / str(command[0])), *map(str, command[1:])],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{self.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    our_wheels: list[Path],
    build_wheels: Callable[..., Path],
    make_environment: Callable[..., Path],
) -> World:
    root = tmp_path_factory.mktemp("world")
    written = [write_plugin(name, kind, root / name) for kind, name in NAMES.items()]
    wheels = [*our_wheels, *build_wheels(root / "built", *written).iterdir()]
    return World(root, make_environment(root / "environment", *wheels))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", Kind)
def test_the_generated_package_passes_its_own_tests(world: World, kind: Kind) -> None:
    out = world.run("pytest", "-q", "-p", "no:cacheprovider", cwd=world.home(kind))
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    least = {Kind.COMMAND: 9, Kind.FORMAT: 18}
    assert int(passed[1]) > least.get(kind, 20)
    assert not re.search(r"failed|error|xfailed", out), out


#: Calls `fuse info` for every name in one process.
DESCRIBE = """
import sys
from fusion_core.cli.app import app
from typer.testing import CliRunner
for name in sys.argv[1:]:
    done = CliRunner().invoke(app, ["info", name])
    assert done.exit_code == 0, done.output
    print(done.output, end="\\0")
"""


@pytest.mark.thorough
def test_they_are_listed_and_described(world: World, tmp_path: Path) -> None:
    listed = json.loads(world.run("fuse", "list-plugins", "--json", cwd=tmp_path))
    rows = {row["name"]: row for row in listed}
    assert all(row["status"] == "loaded" for row in rows.values())
    names = [f"try-{kind}" for kind in Kind]
    described = world.run("python", "-c", DESCRIBE, *names, cwd=tmp_path).split("\0")
    for kind, text in zip(Kind, described, strict=False):
        row = rows[NAMES[kind]]
        assert (row["version"], row["detail"]) == ("0.1.0", "")
        name = f"try-{kind}"
        provided = ["model-pool", "task-pool"] if kind is Kind.POOLS else [kind]
        assert row["components"] == [
            {"kind": part.removeprefix("text-").replace("-", " "), "name": name}
            for part in provided
        ]
        assert name in text


@pytest.mark.thorough
def test_they_merge_measure_and_read_the_models_of_mini8(world: World, tmp_path: Path) -> None:
    out = world.run(
        *("fuse", "run", "--algo", "try-algorithm", "--pool", "mini8", "-o", "merged", "--json"),
        *("--task-pool", "try-task-pool", "--set", "model_pool.tasks=[shapes, latin]"),
        cwd=tmp_path,
    )
    report = json.loads(out)["report"]
    assert set(report["tasks"]) == {"stripes", "blots"}
    assert 0 < report["average"] <= 1
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    recorded = read_provenance(tmp_path / "merged").plugins
    assert recorded["fusion-try-algorithm"] == "0.1.0"
    assert "try-command" in world.run("fuse", "--help", cwd=tmp_path)
    out = world.run("fuse", "try-command", "merged", cwd=tmp_path)
    assert out == "algorithm: try-algorithm\nmodel_pool: mini8\n"


@pytest.mark.thorough
def test_the_model_pool_merges_the_checkpoints_of_mini8(world: World, tmp_path: Path) -> None:
    (data,) = world.bin.parent.glob("lib/*/site-packages/pools_mini/data/experts")
    base, one, two = (data / name for name in ("latin", "greek", "shapes"))
    models = f"model_pool.models={{one: {one}, two: {two}}}"
    world.run(
        *("fuse", "run", "--algo", "simple-average", "--pool", "try-model-pool", "-o", "merged"),
        *("--set", f"model_pool.base={base}", "--set", models),
        cwd=tmp_path,
    )
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.thorough
def test_the_pools_are_merged_and_measured_without_any_option(world: World, tmp_path: Path) -> None:
    out = world.run(
        *("fuse", "run", "--algo", "simple-average", "--pool", "try-pools", "-o", "merged"),
        "--json",
        cwd=tmp_path,
    )
    report = json.loads(out)["report"]
    base, experts = (mean_of(report["reference"][row]) for row in ("base", "experts"))
    assert base < report["average"] <= experts


def mean_of(row: dict[str, dict[str, float]]) -> float:
    main = [next(iter(figures.values())) for figures in row.values()]
    return sum(main) / len(main)


@pytest.mark.thorough
def test_style_and_types_are_clean(world: World) -> None:
    for home in map(world.home, Kind):
        tool("ruff", "check", "--no-cache", ".", cwd=home)
        tool("ruff", "format", "--check", "--no-cache", ".", cwd=home)
        cache = f"--cache-dir={ROOT / '.mypy_cache'}"  # where `checks` has analysed torch already
        tool("mypy", cache, "src", "tests", cwd=home, MYPYPATH="src")


def tool(name: str, *arguments: str, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the shape of a plugin ----------------------------------------------------------------------


def shape(files: Mapping[str, Any] | Path, package: str) -> set[str]:
    return {path.format(package=package) for path in COMMON} - {
        path.relative_to(files).as_posix() for path in Path(files).rglob("*")
    }


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_of_this_repository_have_the_shape_of_the_skeleton(plugin: Path) -> None:
    package = plugin.name.replace("-", "_")
    registers = "fusion_register_" in (plugin / "src" / package / "plugin.py").read_text("utf-8")
    lacks = set() if registers else {"tests/test_conformance.py"}  # suites are of components
    assert shape(plugin, package) == lacks
    ours = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))
    for_pytest = {"pytest11"} if plugin.name == "fusion-testing" else set()
    assert set(ours["project"]["entry-points"]) == {"fusion_core.plugins", *for_pytest}
    (module,) = ours["project"]["entry-points"]["fusion_core.plugins"].values()
    assert module == f"{package}.plugin"
    assert "fusion-plugin" in ours["project"]["keywords"]
    assert ours["project"]["requires-python"] == ">=3.11"
    requirement = f"fusion-core{core_range('0.1.0')}"
    assert requirement in ours["project"]["dependencies"]


@pytest.mark.parametrize("kind", Kind)
def test_the_skeleton_itself_has_it(tmp_path: Path, kind: Kind) -> None:
    home = write_plugin(NAMES[kind], kind, tmp_path / "x")
    assert shape(home, NAMES[kind].replace("-", "_")) == set()


def test_its_rules_of_style_are_ours(tmp_path: Path) -> None:
    home = write_plugin("fusion-x", Kind.ALGORITHM, tmp_path / "x")
    theirs = tomllib.loads((home / "pyproject.toml").read_text())["tool"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert theirs["ruff"]["lint"]["select"] == ours["ruff"]["lint"]["select"] == ["ALL"]
    assert set(theirs["ruff"]["lint"]["ignore"]) <= set(ours["ruff"]["lint"]["ignore"])
    assert theirs["ruff"]["line-length"] == ours["ruff"]["line-length"]
    assert theirs["mypy"]["strict"] is True
    of_packages = {"overrides", "untyped_calls_exclude"}
    assert theirs["mypy"] == {k: v for k, v in ours["mypy"].items() if k not in of_packages}


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "distribution", "package", "component", "class_name"),
    [
        ("fusion-median", "fusion-median", "fusion_median", "median", "Median"),
        ("Fusion_Geo.Median", "fusion-geo-median", "fusion_geo_median", "geo-median", "GeoMedian"),
        ("pools-birds", "pools-birds", "pools_birds", "birds", "Birds"),
        ("acme-drop", "acme-drop", "acme_drop", "acme-drop", "AcmeDrop"),
        ("fusion-2bit", "fusion-2bit", "fusion_2bit", "2bit", "The2bit"),
    ],
)
def test_everything_is_called_after_the_distribution(
    name: str, distribution: str, package: str, component: str, class_name: str
) -> None:
    names = Names.of(name)
    derived = (names.distribution, names.package, names.component, names.class_name)
    assert derived == (distribution, package, component, class_name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "invalid name for a distribution"),
        ("-x", "invalid name for a distribution"),
        ("a b", "invalid name for a distribution"),
        ("../x", "invalid name for a distribution"),
        ("2bit", "cannot be imported"),
        ("class", "cannot be imported"),
        ("torch", "already exists"),
        ("fusion-core", "already exists"),
    ],
)
def test_names_that_cannot_work_are_refused(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        write_plugin(name, Kind.ALGORITHM, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    home = write_plugin("fusion-x", Kind.ALGORITHM, tmp_path / "deep" / "x")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="already exists"):
        write_plugin("fusion-y", Kind.TASK_POOL, home)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert [path.name for path in home.parent.iterdir()] == ["x"]


def test_the_command_says_what_comes_next(
    fuse: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = fuse("new-plugin", "fusion-median").out
    assert out.startswith("written: fusion-median\n")
    assert "pip install -e ." in out
    assert (tmp_path / "fusion-median" / "src" / "fusion_median" / "method.py").is_file()
    again = fuse("new-plugin", "fusion-median")
    assert (again.code, again.out, "already exists" in again.err) == (7, "", True)
    printed = fuse("new-plugin", "fusion-checkpoints", "--kind", "model-pool").err
    assert "warning: pools-checkpoints/checkpoints also has the name 'checkpoints'" in printed
    assert fuse("new-plugin", "fusion-mini8").err == ""  # another kind


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ">=0.1,<0.2"), ("0.2.3.dev1", ">=0.2,<0.3"), ("1.4.0rc1", ">=1.4,<1.5")],
)
def test_the_range_of_the_core_is_its_minor_version(version: str, expected: str) -> None:
    assert core_range(version) == expected
