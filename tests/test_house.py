"""The rooms of the core: the linter's contract, the architecture page, and no import cycles."""

from __future__ import annotations

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from importlib.machinery import PathFinder
from pathlib import Path

from fusion_core._moved import MOVED

ROOT = Path(__file__).parents[1]
CORE = ROOT / "fusion_core"
#: Modules that hand public names on, or say where a package went.
SIGNPOSTS = {"_exports", "_moved", "commands", "files"} | {
    name.removeprefix("fusion_core.") for name in MOVED
}


def floors() -> list[set[str]]:
    """Return the rooms of each floor, from the top, as the linter's contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(
        contract["layers"]
        for contract in contracts
        if contract.get("containers") == ["fusion_core"]
    )
    return [{room.strip() for room in layer.split("|")} for layer in layers]


def test_the_page_has_the_floors_of_the_contract() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    table = page.split("## Rooms and floors")[1].split("|---|---|\n")[1].split("\n\n")[0]
    shown = [
        {name.strip("` ") for name in row.split("|")[1].split(",")} for row in table.split("\n")
    ]
    assert shown == floors()


def test_a_room_is_a_folder_and_few_files_stand_beside_them() -> None:
    files = {path.stem for path in CORE.glob("*.py")} - {"__init__", *SIGNPOSTS}
    assert len(files) <= 4
    assert {room for floor in floors() for room in floor} == files | {
        path.parent.name for path in CORE.glob("*/__init__.py")
    }


def modules() -> dict[str, ast.Module]:
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in CORE.rglob("*.py")}
    named = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: ast.parse(path.read_text()) for name, path in named.items()}


def find_imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules that one imports, inside functions and for type checking included."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= (inner & known) or {node.module}
    return imported - {name}


def test_no_modules_need_each_other() -> None:
    trees = modules()
    graph = {name: find_imports(name, tree, {*trees}) for name, tree in trees.items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(trees)  # raises for a circle


#: The options of the section `algorithm` that every method has.
SHARED = {"name", "of", "only", "skip", "overrides"}


def test_messages_of_the_core_name_no_option_of_a_plugin() -> None:
    """Help and the reader of recipes may show an example. Errors name options that all have."""
    options = {
        (str(path.relative_to(CORE)), option)
        for path in CORE.rglob("*.py")
        if path.parent.name not in {"cli", "recipe"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?:algorithm|model_pool|task_pool)\.(\w+)", node.value)
        if option not in SHARED and node.value != "algorithm.yaml"
    }
    assert options == set()


def test_no_benchmark_hides_a_package() -> None:
    """A script finds the modules of its own folder before those that are installed."""
    names = [path.stem for path in (ROOT / "benchmarks").glob("*.py")]
    assert names
    assert [name for name in names if PathFinder.find_spec(name)] == []
