"""Writes the pages of the reference that come from the source.

Run as `python docs/reference/generate.py`. A test compares what this makes with what is there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
HOOKSPECS = HERE.parents[1] / "fusion_core" / "hookspecs.py"

_SECTION = re.compile(r"^# --- (.+?) -*$")
_HEAD = """# Hooks

What a plugin can implement, generated from `fusion_core/hookspecs.py`. A hook is a function of the
plugin's module, marked with `@hookimpl`; it may leave out arguments that it does not need. How to
write one: [your first method](../tutorials/your-first-method.md).

A misspelled hook, an argument that does not exist and a spec of another type make the plugin
*broken*: it is left out, and `fuse list-plugins -v` says why. What a hook raises while a run goes
on is named in a warning, and the run goes on.
"""


def hooks(source: str) -> str:
    """Return the page of hooks: sections, signatures and docstrings in the source's order."""
    return "\n".join([_HEAD, *_entries(source)]) + "\n"


def _entries(source: str) -> Iterator[str]:
    functions = {
        node.lineno: node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("fusion_")
    }
    for number, line in enumerate(source.splitlines(), 1):
        if section := _SECTION.match(line):
            title = section[1]
            yield f"## {title[0].upper()}{title[1:]}\n"
        if number in functions:
            yield _entry(functions[number])


def _entry(function: ast.FunctionDef) -> str:
    parts = [
        f"### `{function.name}`",
        f"```python\n{signature(function)}\n```",
        ast.get_docstring(function) or "",
    ]
    return "\n\n".join(parts) + "\n"


def signature(function: ast.FunctionDef) -> str:
    """Return a function's head as it is written."""
    returns = ast.unparse(function.returns) if function.returns else "None"
    return f"def {function.name}({ast.unparse(function.args)}) -> {returns}: ..."


def main() -> None:
    """Write the pages."""
    page = hooks(HOOKSPECS.read_text(encoding="utf-8"))
    (HERE / "hooks.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
