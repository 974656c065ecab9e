"""What may be imported of the core and its library: plugins, templates and docs keep to it."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_testing.skeleton import Kind, write_plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
COMPATIBILITY = ROOT / "docs" / "reference" / "compatibility.md"
OURS = r"(?:fusion_(?:core|adapting|testing|thresholds)|pools_checkpoints|recipes_import)\b"
PUBLIC = re.findall(rf"^\| `({OURS}[.\w]*)`", COMPATIBILITY.read_text("utf-8"), re.MULTILINE)
PAGES = [ROOT / "README.md", *ROOT.glob("plugins/*/README.md"), *(ROOT / "docs").rglob("*.md")]
ADAPTING = ROOT / "plugins" / "fusion-adapting"
ADAPTING_FILES = [*ADAPTING.rglob("*.py"), *ADAPTING.rglob("*.pyi")]
#: A library imports its own modules.
LIBRARIES = {
    "pools_checkpoints.": "pools-checkpoints",
    "recipes_import.": "recipes-import",
    "fusion_thresholds.": "fusion-thresholds",
}
#: The suites look at what the engine does with a plugin, so they import modules of the core.
KIT = ROOT / "plugins" / "fusion-testing"
PLUGINS = sorted(
    path
    for folder in ("src/**/*.py", "tests/*.py")
    for path in ROOT.glob(f"plugins/*/{folder}")
    if not (path.is_relative_to(KIT) or path.is_relative_to(ADAPTING))
)
#: What the library fusion-adapting and its tests import of the core that is not public yet.
PRIVATE = {
    "fusion_core.contracts.batch.ATTENTION_MASK",
    "fusion_core.contracts.feature_adapters.MARKED_FEATURES",
    "fusion_core.contracts.feature_adapters.get_marking_module",
    "fusion_core.contracts.feature_adapters.attach_adapter",
    "fusion_core.contracts.feature_adapters.apply_adapter",
    "fusion_core.machine.memory.retain_freed_memory",
    "fusion_core.machine.linear_kernels.OneDnnLinear",
    "fusion_core.machine.linear_kernels.fast_linear",
    "fusion_core.machine.linear_kernels.use_fast_linear_layers",
    "fusion_core.contracts.selected_pool.SelectedPool",
    "fusion_core.weights.merging.counters.counter_uniform",
    "fusion_core.weights.merging.execution.map_on_cores",
}


def names_of(module: str) -> list[str]:
    """Return what a public module exports; without a list, all that it defines."""
    imported = import_module(module)
    defined = (
        name for name, value in vars(imported).items() if inspect.getmodule(value) is imported
    )
    return list(getattr(imported, "__all__", defined))


def is_public(module: str, name: str) -> bool:
    exported = module in PUBLIC and not name.startswith("_") and name in names_of(module)
    return exported or f"{module}.{name}" in PUBLIC


def imports(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[::2] for alias in node.names)


def find_hidden(source: str) -> set[str]:
    """Return what is imported of the core or of its libraries and not promised to anybody."""
    ours = (pair for pair in imports(source) if re.match(OURS, ".".join(pair)))
    return {".".join(pair) for pair in ours if not is_public(*pair)}


def test_the_checked_files_are_not_empty() -> None:
    assert len(PLUGINS) > 50
    assert len(PUBLIC) == 12
    assert find_hidden("import fusion_core\nfrom fusion_core import hub, run_fusion") == set()
    assert find_hidden("from fusion_core.planning.plan import Plan") == {
        "fusion_core.planning.plan.Plan"
    }
    assert find_hidden("from fusion_testing import _models, tiny_pool") == {
        "fusion_testing._models"
    }
    assert find_hidden("import fusion_core.running.run") == {"fusion_core.running.run"}
    assert find_hidden("from fusion_core.errors import ClassVar") == {"fusion_core.errors.ClassVar"}


def test_our_plugins_import_public_names_only() -> None:
    assert [
        (str(path), name)
        for path in PLUGINS
        for name in find_hidden(path.read_text(encoding="utf-8"))
        if not any(
            name.startswith(package) and path.is_relative_to(ROOT / "plugins" / library)
            for package, library in LIBRARIES.items()
        )
    ] == []


def test_the_library_imports_only_the_listed_private_names() -> None:
    names = {
        name for path in ADAPTING_FILES for name in find_hidden(path.read_text(encoding="utf-8"))
    }
    assert {name for name in names if name.startswith("fusion_core")} == PRIVATE


@pytest.mark.parametrize("kind", Kind)
def test_a_new_plugin_imports_public_names_only(kind: Kind, tmp_path: Path) -> None:
    plugin = write_plugin("fusion-new", kind, tmp_path / "new")
    assert {
        name for path in plugin.rglob("*.py") for name in find_hidden(path.read_text())
    } == set()


def test_the_docs_import_public_names_only() -> None:
    assert [
        (str(page), name)
        for page in PAGES
        for block in re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8"))
        for name in find_hidden(block)
    ] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_docstring(module: str) -> None:
    imported = import_module(module)
    assert imported.__doc__
    for name in names_of(module):
        value: Any = getattr(imported, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
