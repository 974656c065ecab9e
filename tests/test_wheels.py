"""The built wheels, in a fresh environment and another working directory, as a user has them."""

from __future__ import annotations

import json
import subprocess
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "fusion-core": ROOT,
    "fusion-linear": ROOT / "plugins" / "fusion-linear",
    "fusion-regmean": ROOT / "plugins" / "fusion-regmean",
    "fusion-ties": ROOT / "plugins" / "fusion-ties",
}

STRANGER = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "stranger-methods"
        version = "4.5"
        dependencies = ["fusion-core>=0.1,<0.2"]

        [project.entry-points."fusion_core.plugins"]
        stranger = "stranger.plugin"

        [tool.hatch.build.targets.wheel]
        packages = ["src/stranger"]
    """,
    "src/stranger/__init__.py": "",
    "src/stranger/plugin.py": """
        from fusion_core import AlgorithmSpec, hookimpl

        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="largest", summary="The largest entry.",
                target="stranger.largest:Largest", config="stranger.largest:Config",
            )
    """,
    "src/stranger/largest.py": """
        from fusion_core import ComponentConfig, TensorwiseAlgorithm

        class Config(ComponentConfig):
            plus: float = 0.0

        class Largest(TensorwiseAlgorithm[Config]):
            config_class = Config

            def merge(self, piece):
                return piece.experts.amax(dim=0) + self.config.plus
    """,
}

PROGRAM = """
    import json
    import torch
    from safetensors.torch import load_file, save_file
    import fusion_core
    from fusion_core import run_fusion
    from fusion_core.plugins.manager import load_plugins

    save_file({"w": torch.tensor([1.0, -5.0])}, "one.safetensors")
    save_file({"w": torch.tensor([0.0, 3.0])}, "two.safetensors")
    pool = {"models": ["one.safetensors", "two.safetensors"]}
    run_fusion(algorithm={"name": "largest", "plus": 1}, model_pool=pool, output="out")
    run_fusion("out/recipe.yaml", output="again")
    based = {"base": "one.safetensors", "models": ["two.safetensors"]}
    ties = run_fusion(algorithm={"name": "ties", "density": 1}, model_pool=based, output="ties")
    mean = run_fusion(algorithm="simple-average", model_pool=pool, output="mean")
    print(json.dumps({
        "home": fusion_core.__file__,
        "plugins": {p.distribution: [p.version, p.status] for p in load_plugins().plugins},
        "largest": load_file("again/model.safetensors")["w"].tolist(),
        "ties": ties.weights.tensor("w").tolist(),
        "mean": mean.weights.tensor("w").tolist(),
        "recorded": json.load(open("out/provenance.json"))["plugins"],
    }))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, build_wheels: Callable[..., Path]) -> Path:
    """Build the wheels of the core, of three plugins and of a stranger's one."""
    return build_wheels(tmp_path_factory.mktemp("wheels"), *PACKAGES.values(), files=STRANGER)


@pytest.fixture(scope="module")
def python(
    wheels: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_environment: Callable[..., Path],
) -> Path:
    """Install them into an environment of their own, which borrows torch and the like from ours."""
    home = tmp_path_factory.mktemp("environment")
    return make_environment(home, *wheels.iterdir()) / "python"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_package_and_nothing_else(wheels: Path, name: str) -> None:
    (wheel,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    package = name.replace("-", "_")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (each for each in files if each.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    tops = {each.split("/")[0] for each in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {package}
    assert f"{package}/py.typed" in files
    assert any(each.endswith("/licenses/LICENSE") for each in files)
    assert not [each for each in files if "test" in each.split("/")]
    (home,) = PACKAGES[name].glob(f"src/{package}") if name != "fusion-core" else [ROOT / package]
    modules = {f"{package}/{each.relative_to(home).as_posix()}" for each in home.rglob("*.py")}
    assert modules <= set(files)
    assert "License-Expression: Apache-2.0" in text


def test_what_is_installed_works_from_anywhere(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-I", "-c", textwrap.dedent(PROGRAM)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert str(python.parent.parent) in found["home"]
    assert found["plugins"] == {
        "fusion-core": ["0.1.0", "loaded"],
        "fusion-linear": ["0.1.0", "loaded"],
        "fusion-regmean": ["0.1.0", "loaded"],
        "fusion-ties": ["0.1.0", "loaded"],
        "stranger-methods": ["4.5", "loaded"],
    }
    assert found["largest"] == [2.0, 4.0]
    assert found["ties"] == [0.0, 3.0]
    assert found["mean"] == [0.5, -1.0]
    assert found["recorded"] == {"fusion-core": "0.1.0", "stranger-methods": "4.5"}
