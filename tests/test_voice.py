"""What a program can check of how this project writes; CONTRIBUTING has the standard itself.

A reminder, not the standard: a text can pass and still be hard to read.
"""

from __future__ import annotations

import ast
import re
from functools import cache
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
#: Files whose names are checked, too, but not their prose.
NAMED = [ROOT / "noxfile.py", *ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/*/[tb]*/*.py")]
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
#: Names that do not say what they hold.
NAMES = {"each", "found", "kept", "own", "place", "beside", "along", "amount", "its"}
#: Names that a file or a recipe has, which users have already.
EXCEPTIONS = {
    ("fusion_core/checking/memory.py", "kept"),  # a key of `fuse check --json`
    ("plugins/fusion-adamerging/src/fusion_adamerging/config.py", "own"),  # SyMerge's option
}
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
    "is no": re.compile(
        r"(?<!there )\b(?:is|are) no (?:model|file|directory|name|number|option|adapter)\b"
    ),
    "another": re.compile(r"\b(?:is|are) another(?:'s)?[.,;)]"),
}


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


#: A name before anything that may bind it: most files have none, and are not parsed.
_BOUND = re.compile(rf"\b_*(?:{'|'.join(NAMES)})_*\b\s*(?:[=:,)\](+\-*/|&]|in\b)")


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_names_say_what_they_hold() -> None:
    faults = [
        (file, line, name)
        for file, path in ((str(path.relative_to(ROOT)), path) for path in (*SOURCES, *NAMED))
        if _BOUND.search(path.read_text(encoding="utf-8"))
        for line, name in _names(_parse(path))
        if name.strip("_") in NAMES and (file, name) not in EXCEPTIONS
    ]
    assert faults == []


def _prose(path: Path) -> str:
    """Return the docstrings and comments of a module, or a page without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)
    tree = _parse(path)
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, nodes)]
    docstrings = [ast.get_docstring(node) or "" for node in documented]
    comments = re.findall(r"^\s*#:? (.*)$", text, re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", "\n".join([*docstrings, *comments]))


def test_plain_english() -> None:
    faults = [
        (str(path.relative_to(ROOT)), rule, match[0])
        for path in (*SOURCES, *PAGES)
        for text in [re.sub(r"(?<![.:!|\n])\n(?!\n)", " ", _prose(path))]
        for rule, pattern in PHRASES.items()
        for match in pattern.finditer(text)
    ]
    assert faults == []


def _help_strings() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        if path.is_relative_to(ROOT / "benchmarks"):
            continue
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "help":
                for part in ast.walk(node.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield str(path.relative_to(ROOT)), part.value
                        break


#: First words of help strings that are no verbs.
NOT_A_VERB = {"A", "An", "The", "How", "Only", "What", "Where", "Which", "Default", "Short", "It"}


def test_help_begins_with_a_verb() -> None:
    texts = list(_help_strings())
    assert len(texts) > 60
    faults = [
        (path, text)
        for path, text in texts
        if not text[:1].isupper() or text.split()[0].rstrip(":,") in NOT_A_VERB
    ]
    assert faults == []
