"""The importer of the README, its findings, and what the command refuses."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion_core.errors import OutputError, RecipeError
from recipes_import.command import import_recipe
from recipes_import.commented_recipe import move_paths

README = Path(__file__).parents[1] / "README.md"
CONTEXT: Any = SimpleNamespace(obj=frozenset())


def test_the_importer_of_the_readme_collects_all_problems() -> None:
    names: dict[str, Any] = {}
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```", README.read_text())
    exec(block, names)
    read = names["fusion_import_recipe"]
    assert read(Path("x.yml"), "algorithm: ties", None) is None
    imported = read(Path("x.yml"), "{souptool: 1, models: [a], salt: 2}", None)
    assert imported.recipe["model_pool"] == {"models": ["a"]}
    assert imported.warnings == ["salt: unknown key, ignored"]
    with pytest.raises(RecipeError) as raised:
        read(Path("x.yml"), "{souptool: 1, models: [], modles: [], model: []}", None)
    assert {line.partition(":")[0].strip() for line in raised.value.message.splitlines()[1:]} == {
        "model",
        "modles",
    }


def test_a_recipe_is_not_imported_and_no_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("algorithm: ties")
    with pytest.raises(RecipeError, match="expected a configuration of another tool"):
        import_recipe(CONTEXT, file)
    with pytest.raises(RecipeError, match="expected a directory"):
        import_recipe(CONTEXT, file, config_dir=tmp_path / "nowhere")
    imported = SimpleNamespace(tool="x", recipe={}, warnings=(), comments={})
    monkeypatch.setattr("recipes_import.command.import_file", lambda *_: imported)
    with pytest.raises(OutputError, match="exists"):
        import_recipe(CONTEXT, file, output=file)
    assert file.read_text() == "algorithm: ties"


def test_paths_of_short_sections_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    recipe = {"model_pool": {"models": ["a", "org/b"]}, "task_pool": "mini", "output": "merged"}
    assert move_paths(recipe, tmp_path / "recipes") == {
        "model_pool": {"models": ["../a", "org/b"]},
        "task_pool": "mini",
        "output": "../merged",
    }
