from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.commands import load_recipe
from fusion_core.errors import RecipeError
from fusion_core.recipe.paths import RecipeText, make_portable, resolve_input_path, resolve_path
from fusion_core.recipe.text import dump_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

RECIPE = {
    "algorithm": "task-arithmetic",
    "model_pool": {"base": "models/base", "models": ["models/a", "models/b"]},
    "output": {"path": "merged"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a recipe and its models; the working directory is another one."""
    for number, name in enumerate(("base", "a", "b")):
        model = tmp_path / "home" / "alice" / "project" / "models" / name
        model.mkdir(parents=True)
        save_file({"w": torch.full((4,), float(number))}, model / "model.safetensors")
    project = tmp_path / "home" / "alice" / "project"
    (project / "recipe.yaml").write_text(dump_yaml(RECIPE))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "alice"))
    return project


def recorded(directory: Path) -> str:
    return (directory / "recipe.yaml").read_text() + (directory / "provenance.json").read_text()


def test_paths_of_a_recipe_start_in_its_folder_and_those_of_flags_here(
    project: Path, fuse: Callable[..., Any]
) -> None:
    assert fuse("run", project / "recipe.yaml", "-q").code == 0
    assert (project / "merged" / "model.safetensors").is_file()
    assert fuse("run", project / "recipe.yaml", "-q", "-o", "here").code == 0
    assert Path("here/model.safetensors").is_file()
    os.rename(project / "models" / "b", "b")
    flags = ("--set", "model_pool.models={a: ../home/alice/project/models/a, b: b}")
    assert fuse("run", project / "recipe.yaml", "-q", "-o", "two", *flags).code == 0
    assert fuse("run", "here/recipe.yaml", "-q", "-o", "three").code == 4  # b is not there now


def test_a_recipe_inside_another_has_a_folder_of_its_own(project: Path) -> None:
    outer = {**RECIPE, "model_pool": {"models": {"inner": "project/recipe.yaml"}}}
    outer["algorithm"] = "simple-average"
    (project.parent / "outer.yaml").write_text(dump_yaml(outer))
    run_fusion(project.parent / "outer.yaml")
    run_fusion(project.parent / "merged" / "recipe.yaml", output="again")  # inner in full, placed
    one, two = (
        (directory / "model.safetensors").read_bytes()
        for directory in (project.parent / "merged", Path("again"))
    )
    assert one == two


def test_an_output_can_be_made_again_and_does_not_name_the_home(project: Path) -> None:
    run_fusion(load_recipe(project / "recipe.yaml"))
    inside = recorded(project / "merged")
    assert "alice" not in inside
    assert "../models/base" in inside
    pool = {name: project / "models" / name for name in ("a", "b")}
    run_fusion(algorithm="ties", model_pool={"base": str(project / "models/base"), "models": pool})
    outside = recorded(Path("outputs/checkpoints-ties-1"))
    assert "alice" not in outside
    assert "~/project/models/base" in outside
    again = run_fusion("outputs/checkpoints-ties-1/recipe.yaml", output="again")
    assert again.weights.tensor("w").tolist() == [1.5] * 4
    sources = json.loads(Path("again/provenance.json").read_text())["predicate"]["inputs"]
    assert {source["source"] for source in sources.values()} == {"base", "a", "b"}


def test_files_of_the_working_directory_do_not_replace_those_of_the_recipe(
    project: Path,
) -> None:
    (project / "models").rename("models")
    with pytest.raises(RecipeError, match="the recipe's folder, where its relative paths start"):
        run_fusion(project / "recipe.yaml")


@pytest.mark.parametrize("bad", ["a\0b", "", "\ud800"])
@pytest.mark.parametrize("option", ["output", "base", "models"])
def test_invalid_paths_are_refused(bad: str, option: str) -> None:
    pool: dict[str, Any] = {"base": "b", "models": {"a": "a"}}
    pool = {**pool, option: bad} if option == "base" else pool
    pool = {**pool, "models": {"a": bad}} if option == "models" else pool
    output = {"path": bad} if option == "output" else {}
    with pytest.raises(RecipeError, match="expected a path"):
        run_fusion({"algorithm": "ties", "model_pool": pool, "output": output})


def placed(text: str, folder: str) -> RecipeText:
    recipe_text = RecipeText(text)
    recipe_text.folder = folder
    return recipe_text


def test_paths_keep_their_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/x") == f"{tmp_path}/x"
    assert resolve_path("./x") == "./x"  # told apart from a name on the hub
    assert resolve_path(placed("../models/x", "outputs/run")) == "outputs/models/x"
    assert resolve_path(placed("/abs", "outputs")) == "/abs"
    (tmp_path / "far" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "run")
    left = resolve_path(placed("../x", str(tmp_path / "link")))
    assert os.path.realpath(left) == str(tmp_path / "far" / "x")
    assert resolve_input_path(placed("x", "")) == "x"
    assert make_portable(str(tmp_path / "m"), None) == str(tmp_path / "m")
    assert make_portable("m", Path("/")) == str(Path("m").resolve())
    assert make_portable(str(tmp_path / "m"), tmp_path / "out" / "run") == "../../m"
    assert make_portable("/elsewhere/m", Path("/out")) == "../elsewhere/m"
