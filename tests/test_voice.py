"""What a program can check of how this project writes; CONTRIBUTING has the standard itself.

A reminder, not the standard: a text can pass and still be hard to read.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("fusion_core", *(str(p) for p in ROOT.glob("plugins/*/src")), "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "plugins/*/*.md",
        "plugins/*/build/*.md",
        "benchmarks/*.md",
    )
    for path in ROOT.glob(pattern)
)
#: Names that say nothing of what they hold.
NAMES = {"each", "found", "kept", "own", "place", "beside", "along", "amount", "its"}
#: "a threshold a tensor": English has "per" for this.
_COUNTED = (
    r"(?:coefficient|example|factor|file|image|line|mask|number|pass|process|prompt|report|row|score|"
    r"step|thread|threshold|token|trial|value|weight|worker|writer)s?"
)
_UNIT = (
    r"(?:batch|class|column|core|entry|example|expert|file|image|layer|line|matrix|model|process|row|run|"
    r"seed|shard|stage|step|task|tensor|trial|worker)"
)
PHRASES = {
    "per": re.compile(rf"\b{_COUNTED} an? {_UNIT}\b(?! of| that| which| in|')"),
    "subject": re.compile(
        r"(?:^|(?<=[.:!] ))(?:Who(?:ever)?|Whatever|That which) [a-z]|"
        r"(?:^|(?<=[.!] ))What (?:is|are|was|were|has|have|had|a|an|the) [^?.]*\.",
        re.MULTILINE,
    ),
    "is no": re.compile(r"\b(?:is|are) no (?:model|file|directory|name|number|option|adapter)\b"),
    "another": re.compile(r"\b(?:is|are) another(?:'s)?[.,;)]"),
}


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_says_what_it_holds(path: Path) -> None:
    names = _names(ast.parse(path.read_text(encoding="utf-8")))
    assert [(line, name) for line, name in names if name.strip("_") in NAMES] == []


def _prose(path: Path) -> str:
    """Return the docstrings and comments of a module, or a page without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)
    tree = ast.parse(text)
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, nodes)]
    docstrings = [ast.get_docstring(node) or "" for node in documented]
    comments = re.findall(r"^\s*#:? (.*)$", text, re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", "\n".join([*docstrings, *comments]))


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_english(path: Path) -> None:
    prose = re.sub(r"(?<![.:!|\n])\n(?!\n)", " ", _prose(path))
    faults = [(rule, match[0]) for rule, p in PHRASES.items() for match in p.finditer(prose)]
    assert faults == []
