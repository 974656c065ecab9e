"""What the README shows is run: its Python, its recipe, and the table of the main job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.planning.resolution import resolve
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.text import load_yaml

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("source", _blocks("python"), ids=lambda source: source.split("\n")[0])
def test_python_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = 'model_pool="mini8", task_pool={"name": "mini8", "limit": 20}'
    source = source.replace('model_pool="mini8"', few)
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})


def test_recipe_is_valid() -> None:
    (source,) = _blocks("yaml")
    resolved = resolve(load_yaml(source, origin="README.md"), load_plugins())
    assert resolved.stages[0] is not None
    assert resolved.recipe.output.path == "merged"


def test_packages_listed_are_those_of_the_repository() -> None:
    listed = set(re.findall(r"^\| \[`([\w-]+)`\]\(plugins/", README, re.MULTILINE))
    assert listed == {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}


def test_every_method_is_listed_under_its_family() -> None:
    rows = dict(re.findall(r"^\| ([a-z ]+) \|(.*)\|$", README, re.MULTILINE))
    for component in load_plugins().components(AlgorithmSpec):
        assert f"`{component.spec.name}`" in rows[str(component.spec.family)]


def test_relative_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
