"""Writes the pages of the reference that come from the source.

Run as `python docs/reference/generate.py`. A test compares what this makes with what is there.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
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


_API_HEAD = """# Public names

What plugins and programs may import, generated from the packages. For how long they can rely on it:
[compatibility](compatibility.md). A name that is not listed may change without notice.
"""
_PUBLIC = (
    "fusion_core",
    "fusion_core.commands",
    "fusion_core.files",
    "fusion_core.weights",
    "fusion_core.hub",
    "fusion_core.errors",
)


def api() -> str:
    """Return the page of public names: one table per package."""
    return "\n".join([_API_HEAD, *map(_table_of, _PUBLIC)])


def _table_of(package: str) -> str:
    module = import_module(package)
    own = (name for name, value in vars(module).items() if inspect.getmodule(value) is module)
    names = sorted(getattr(module, "__all__", own), key=str.lower)
    about = (module.__doc__ or "").splitlines()[0]
    rows = (f"| `{name}` | {_summary(getattr(module, name))} |" for name in names)
    return "\n".join([f"## `{package}`\n", f"{about}\n", "| name | |", "|---|---|", *rows, ""])


def _summary(value: object) -> str:
    """Return the first sentence of a docstring; an alias of a type has none of its own."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return "a type or a value" if not isinstance(value, str) else "text"
    first = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    return first.replace("|", "\\|")


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
    (HERE / "api.md").write_text(api(), encoding="utf-8")


if __name__ == "__main__":
    main()
