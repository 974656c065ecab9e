"""The format of the page for authors: its package is installed, passes the suite and is merged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import Site

pytestmark = pytest.mark.plugins

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "read-another-format.md"
BLOCKS = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, make_site: type[Site]) -> Path:
    """Install the page's package in a directory of its own, with its tests beside it."""
    root = tmp_path_factory.mktemp("npz")
    source, plugin, _, tests = BLOCKS
    (root / "site" / "fusion_npz").mkdir(parents=True)
    for name, text in (("__init__", ""), ("source", source), ("plugin", plugin)):
        (root / "site" / "fusion_npz" / f"{name}.py").write_text(text)
    (root / "site" / "fusion_npz" / "py.typed").touch()
    make_site(root / "site").install(
        "fusion-npz",
        "",
        module="unused",
        requires=("fusion-core>=0.1,<0.2",),
        entry_points={"npz": "fusion_npz.plugin"},
    )
    (root / "test_npz.py").write_text(tests)
    return root


def run(package: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of Python where the package is installed."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=package,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(package / "site")},
        capture_output=True,
        text=True,
        check=False,
    )


def fuse(package: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    program = "from fusion_core.cli.app import main; main()"
    done = run(package, "-c", program, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def models(package: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one", "two")]
    for number, path in enumerate(paths):
        path.mkdir()
        np.savez(path / "model.npz", weight=np.full((3, 4), 1.0 + 2 * number, "float32"))
    return paths


def test_the_format_of_the_page_is_short() -> None:
    lines = [line for block in BLOCKS[:2] for line in block.splitlines() if line.strip()]
    assert len(lines) < 60


@pytest.mark.thorough
def test_the_format_of_the_page_passes_its_suite(package: Path) -> None:
    done = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_npz.py")
    assert re.search(r"^1\d passed in", done.stdout, re.MULTILINE), done.stdout + done.stderr


@pytest.mark.sampled(2)
@pytest.mark.parametrize("executor", ["threads", "serial"])
def test_models_of_the_format_are_merged(
    package: Path, models: list[Path], tmp_path: Path, executor: str
) -> None:
    out = tmp_path / "out"
    models_option = f"model_pool.models={[str(path) for path in models]}"
    pool = ("--pool", "checkpoints", "--set", models_option)
    fuse(package, "run", "--algo", "simple-average", *pool, "--executor", executor, "-o", out)
    assert load_file(out / "model.safetensors")["weight"].eq(2).all()
    provenance = (out / "provenance.json").read_text()
    assert '"fusion-npz": "1.0"' in provenance
    assert '"model.npz"' in provenance


@pytest.mark.thorough
def test_other_processes_read_the_format(
    package: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package / "site"))
    monkeypatch.syspath_prepend(package / "site")
    from fusion_npz.source import NpzSource  # type: ignore[import-not-found]

    from fusion_core.weights import Location

    source = NpzSource(Location(models[0], "one"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert executor.submit(source.read, "weight", 3, 5).result().tolist() == [1.0, 1.0]


def test_the_format_is_listed_and_described(package: Path) -> None:
    listed = fuse(package, "list", "formats").stdout
    assert re.search(r"^npz +\*\.npz +Arrays of", listed, re.MULTILINE)
    assert "files: *.npz" in fuse(package, "info", "npz").stdout
    assert re.search(r"^fusion-npz .* npz$", fuse(package, "list-plugins").stdout, re.MULTILINE)


def test_a_format_can_be_blocked(package: Path, models: list[Path]) -> None:
    models_option = f"model_pool.models={[str(path) for path in models]}"
    pool = ("--pool", "checkpoints", "--set", models_option)
    done = fuse(
        *(package, "--no-plugin", "fusion-npz", "check", "--algo", "simple-average", *pool), code=4
    )
    assert "it has model.npz, in the format of another library" in done.stderr
