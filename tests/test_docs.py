"""What the documentation says about plugins is true: pages are generated, code is run."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"
HOOKSPECS = (DOCS.parent / "fusion_core" / "hookspecs.py").read_text(encoding="utf-8")
HOOKS = [
    node
    for node in ast.parse(HOOKSPECS).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("fusion_")
]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "reference" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_hooks_is_what_the_source_says(generate: Any) -> None:
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert page == generate.hooks(HOOKSPECS), "run: python docs/reference/generate.py"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_hook_is_on_it_with_its_exact_signature(hook: ast.FunctionDef) -> None:
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    shown = re.search(
        rf"^### `{hook.name}`\n\n```python\n(.*?)\n```", page, re.MULTILINE | re.DOTALL
    )
    assert shown is not None
    (written,) = ast.parse(shown[1]).body
    assert isinstance(written, ast.FunctionDef)
    assert ast.dump(written.args) == ast.dump(hook.args)
    assert hook.returns is not None
    assert written.returns is not None
    assert ast.dump(written.returns) == ast.dump(hook.returns)
    assert (ast.get_docstring(hook) or "no docstring") in page


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
