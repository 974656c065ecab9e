"""Recipe files of other tools: which files plugins are asked about, and what they may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import hookimpl
from fusion_core.commands import ImportedRecipe
from fusion_core.errors import BrokenPluginError, PluginError, RecipeError
from fusion_core.planning.resolution import resolve
from fusion_core.plugins.manager import PluginManager
from fusion_core.plugins.recipe_files import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = {"algorithm": "simple-average", "model_pool": {"models": ["a", "b"]}}


class Tool:
    """A plugin that imports the files with a certain word, and counts its calls."""

    def __init__(self, word: str, answer: Any) -> None:
        self.word, self.answer, self.calls = word, answer, 0

    @hookimpl
    def fusion_import_recipe(self, path: Path, text: str) -> Any:
        self.calls += 1
        if self.word not in text:
            return None
        if isinstance(self.answer, Exception):
            raise self.answer
        return ImportedRecipe("tool", {**self.answer, "seed": len(path.name)}, ["heavy"])


def manager_of(*tools: Tool) -> PluginManager:
    manager = PluginManager()
    for number, tool in enumerate(tools):
        manager.register(tool, name=f"tool-{number}")
    return manager


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "file.yml").write_text(text)
    return tmp_path / "file.yml"


def test_a_plugin_imports_its_tools_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tools = Tool("blend:", RECIPE), Tool("mix:", RECIPE)
    path = write(tmp_path, "mix: [a, b]")
    assert load_recipe(path, manager_of(*tools)) == {**RECIPE, "seed": 8}
    assert caplog.messages == [f"{path}: heavy"]
    several = write(tmp_path, "---\nmix: [a]\n---\nmix: [b]\n")
    assert load_recipe(several, manager_of(*tools))["seed"] == 8


@pytest.mark.parametrize(
    "text",
    [
        "algorithm: simple-average\nmix: 1",
        "model_pool: {mix: 1}\noutput: {mix: 1}",
        "{}",
        "- mix",
        "mix",
    ],
)
def test_no_plugin_is_asked_about_a_recipe_of_ours(tmp_path: Path, text: str) -> None:
    tool = Tool("mix", RECIPE)
    try:
        load_recipe(write(tmp_path, text), manager_of(tool))
    except RecipeError as error:
        assert "not a mapping" in error.message  # noqa: PT017 - only some raise
    assert tool.calls == 0


def test_two_claims_and_a_failure_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "mix: [a, b]")
    with pytest.raises(PluginError, match=r"several plugins import .*file.yml: tool-0, tool-1"):
        load_recipe(path, manager_of(Tool("mix", RECIPE), Tool("mix", RECIPE)))
    with pytest.raises(PluginError, match=r"tool-0, tool-1"):
        load_recipe(path, manager_of(Tool("mix", RecipeError("too heavy")), Tool("mix", RECIPE)))
    with pytest.raises(BrokenPluginError, match=r"tool-0 failed to import .*file.yml: .*no key"):
        load_recipe(path, manager_of(Tool("mix", KeyError("no key"))))
    with pytest.raises(RecipeError, match="too heavy"):
        load_recipe(path, manager_of(Tool("mix", RecipeError("too heavy"))))


def test_a_file_that_no_plugin_knows_stays_as_it_is(tmp_path: Path) -> None:
    manager = manager_of(Tool("blend", RECIPE))
    unknown = load_recipe(write(tmp_path, "merge_method: ties"), manager)
    with pytest.raises(RecipeError, match="configuration of mergekit") as caught:
        resolve(unknown, manager)
    assert "pip install recipes-mergekit" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="expected one YAML document, found 2"):
        load_recipe(write(tmp_path, "---\na: 1\n---\nb: 2\n"), manager)
