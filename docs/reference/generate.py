"""Generate the pages of the reference from the source.

Run as `python docs/reference/generate.py`. Tests compare the result with the committed pages.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from enum import EnumType
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from fusion_core.cli.app import app
from fusion_core.planning.option_descriptions import describe_options
from fusion_core.recipe.config import AlignmentPolicy, Lock, OutputOptions, Recipe
from fusion_core.recipe.patterns import Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HERE = Path(__file__).parent
HOOKSPECS = HERE.parents[1] / "fusion_core" / "hookspecs.py"

#: A default that is a function, class or sentinel; `<lambda>` may be inside.
_OBJECT = re.compile(r"<(?:function|factory|class '?|object object)(?:[^<>]|<[^<>]*>)*>")
_SECTION = re.compile(r"^# --- (.+?) -*$")
_HEAD = """# Hooks

This page lists every hook that a plugin can implement. It is generated from
`fusion_core/hookspecs.py`. A hook is a function of the plugin's module, marked with `@hookimpl`. It
may omit arguments that it does not need. [Your first method](../tutorials/your-first-method.md)
shows how to write one.

A misspelled hook, one without `@hookimpl`, an unknown argument and a spec of the wrong type make
the plugin *broken*: it is not loaded, and `fuse list-plugins -v` gives the reason. If a hook that
observes a run raises, a warning names the error and the run continues. If a hook raises whose
answer the run needs, such as `fusion_check_run`, the run stops.
"""


_API_HEAD = """# Public names

This page lists the names that plugins and programs may import. It is generated from the packages.
[Compatibility](compatibility.md) says how long they are stable. Other names may change without
notice.
"""
_PUBLIC = (
    "fusion_core",
    "fusion_core.commands",
    "fusion_core.files",
    "fusion_core.weights",
    "fusion_core.hub",
    "fusion_core.errors",
)
#: The last line of a page, by its name.
_NEXT = {
    "components.md": "[recipes](recipe.md)",
    "recipe.md": "[commands](commands.md)",
    "commands.md": "[the files of an output directory](report.md)",
    "hooks.md": "[public names](api.md)",
    "api.md": "[results of every method](results.md)",
}


def api() -> str:
    """Return the page of public names: one table per package."""
    return "\n".join([_API_HEAD, *map(_table_of, _PUBLIC), _next("api.md")])


def _next(name: str) -> str:
    return f"Next: {_NEXT[name]}.\n"


def _table_of(package: str) -> str:
    module = import_module(package)
    defined = (name for name, value in vars(module).items() if inspect.getmodule(value) is module)
    names = sorted(getattr(module, "__all__", defined), key=str.lower)
    about = (module.__doc__ or "").splitlines()[0]
    values = {name: getattr(module, name) for name in names}
    rows = (f"| `{name}` | {_summary(value)} |" for name, value in values.items())
    table = ["| name | |", "|---|---|", *rows, ""]
    details = [_detail(name, value) for name, value in values.items() if _is_documented(value)]
    return "\n".join([f"## `{package}`\n", f"{about}\n", *table, *details])


def _is_documented(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def _summary(value: object) -> str:
    """Return the first paragraph of a docstring; aliases of types have none."""
    if not _is_documented(value):
        return "a type or a value" if not isinstance(value, str) else "text"
    return _first_paragraph(value).replace("|", "\\|")


def _first_paragraph(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def _detail(name: str, value: Any) -> str:  # noqa: ANN401 - a class or a function
    """Return the signature, docstring, and public methods and properties of a name."""
    parts = [f"### `{name}`\n", f"```text\n{name}{_arguments(value)}\n```\n"]
    parts.append(_escaped(inspect.getdoc(value) or "") + "\n")
    if inspect.isclass(value):
        members = {
            key: getattr(member, "__func__", member)
            for key, member in vars(value).items()
            if not key.startswith(("_", "model_")) and _is_member(member)
        }
        for key, member in members.items():
            call = "" if isinstance(member, property) else _arguments(member)
            parts.append(f"- `{key}{call}`: {_escaped(_first_paragraph(member))}")
        parts += [""] * bool(members)
    return "\n".join(parts)


def _is_member(member: object) -> bool:
    is_callable = isinstance(member, staticmethod | classmethod) or inspect.isfunction(member)
    return (is_callable or isinstance(member, property)) and bool(inspect.getdoc(member))


def _arguments(value: Any) -> str:  # noqa: ANN401
    """Return the names and defaults of a call's arguments, without their types."""
    if isinstance(value, EnumType):  # its signature depends on the version of Python
        return ""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return ""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in {"self", "cls"}
    ]
    bare = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return _OBJECT.sub("...", str(bare))


def _escaped(text: str) -> str:
    """Return a docstring as Markdown.

    Outside of code, `<` is escaped, and `::` before an indented code block becomes `:`.
    """
    return "\n".join(
        line if line.startswith("    ") else _escaped_line(line) for line in text.split("\n")
    )


def _escaped_line(line: str) -> str:
    line = re.sub(r"::$", ":", line)
    return re.sub(r"(`[^`]*`)|<", _keep_code, line)


def _keep_code(match: re.Match[str]) -> str:
    return match[1] or "\\<"


def hooks(source: str) -> str:
    """Return the page of hooks: sections, signatures and docstrings in the source's order."""
    return "\n".join([_HEAD, *_entries(source), _next("hooks.md")])


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
    """Return the signature of a function as in the source."""
    returns = ast.unparse(function.returns) if function.returns else "None"
    return f"def {function.name}({ast.unparse(function.args)}) -> {returns}: ..."


# --- components, recipes and commands ------------------------------------------------------------

_COMPONENTS_HEAD = """# Components

This page lists every algorithm, pool, format and executor of this repository, with its options.
It is generated from `fuse info NAME --json`. `fuse info NAME` prints the same for any plugin.

All stages of a pipeline also take [`only`, `skip`, `overrides` and `by_depth`](recipe.md#stages).
Those that learn from tasks or save a file besides the weights take `only` and `skip` alone.
[Choose tensors](../how-to/choose-tensors.md) shows the forms of numbers: one, per expert, by depth.
In formulas, W_k is expert k of K, tau_k = W_k - base, and tau is the merge minus the base.
"""
_RECIPE_HEAD = """# Recipes

This page lists every key of a recipe, the YAML file that describes one run. It is generated from
the classes that validate recipes. Every key can also be set on the command line, as in
`--set output.dtype=bf16`. `fuse schema` prints a JSON schema, which editors use to complete keys.

```yaml
algorithm: {name: ties, density: 0.2}
model_pool: {name: mini8}
output: {path: merged, dtype: bf16}
seed: 0
```
"""
_COMMANDS_HEAD = """# Commands

This page shows the help of every command. It is generated from the program.
"""
_KINDS = {
    "algorithm": "Algorithms",
    "pipeline": "Named pipelines",
    "model pool": "Model pools",
    "task pool": "Task pools",
    "format": "Formats",
    "executor": "Executors",
}
_SECTIONS = {
    "": ("Sections", Recipe),
    "output": ("Output", OutputOptions),
    "alignment": ("Alignment", AlignmentPolicy),
    "lock": ("Lock", Lock),
    "algorithm": ("Stages", Selection),
}
_SHARED = set(Selection.model_fields)


def _fuse(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1"})
    if done.exit_code:
        raise RuntimeError(f"fuse {' '.join(arguments)}: {done.output}")
    return done.stdout


def components() -> str:
    """Return the page of components: one section per kind, one table of options per component."""
    names = json.loads(_fuse("info", "--json"))
    parts = [_COMPONENTS_HEAD]
    for kind, title in _KINDS.items():
        parts.append(f"## {title}\n")
        for name in names[f"{kind}s"]:
            described = json.loads(_fuse("info", name, "--json"))
            parts += [_component(entry) for entry in described if entry["kind"] == kind]
    return "\n".join([*parts, _next("components.md")])


def _component(entry: Mapping[str, Any]) -> str:
    facts = [f"From `{entry['plugin']}`."]
    if entry.get("stage") not in (None, "merge"):
        facts.append(f"Stage: {entry['stage']}.")
    if entry.get("needs_base"):
        facts.append("Needs the base.")
    if entry.get("task_data") not in (None, "none"):
        facts.append(f"Needs {entry['task_data']} examples.")
    if entry.get("reference"):
        facts.append(f"Source: {entry['reference']}.")
    lines = [f"### `{entry['name']}`\n", f"{entry['summary']}\n", f"{' '.join(facts)}\n"]
    if entry.get("formula"):
        lines.append(f"```text\n{entry['formula']}\n```\n")
    options = [
        option for option in entry["options"] if option["name"].split(".")[-1] not in _SHARED
    ]
    if options:
        lines.append(_option_table(options))
    for preset, values in entry.get("presets", {}).items():
        settings = ", ".join(f"`{name}: {_value(value)}`" for name, value in values.items())
        lines.append(f"Preset `{preset}` sets {settings}.\n")
    return "\n".join(lines)


def recipe() -> str:
    """Return the page of a recipe's sections and the options that the core gives them."""
    parts = [_RECIPE_HEAD]
    for prefix, (title, config) in _SECTIONS.items():
        options = [vars_of(option) for option in describe_options(config)]
        for option in options:
            option["name"] = f"{prefix}.{option['name']}".lstrip(".")
            option["options"] = option["options"] if prefix else []
        parts += [f"## {title}\n", _option_table(options)]
    return "\n".join([*parts, _next("recipe.md")])


def vars_of(option: Any) -> dict[str, Any]:  # noqa: ANN401 - the core's own class of options
    """Return an option and the options inside it as dictionaries."""
    names = ("name", "type", "default", "required", "description", "forms")
    inner = [vars_of(inside) for inside in option.options]
    return {**{name: getattr(option, name) for name in names}, "options": inner}


def _option_table(options: Iterable[Mapping[str, Any]]) -> str:
    rows = [_row(option, name) for name, option in _flat(options)]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows, ""])


def _flat(
    options: Iterable[Mapping[str, Any]], above: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for option in options:
        name = f"{above}{option['name']}"
        yield name, option
        inner = f"{name}.NAME." if option["type"] == "mapping" else f"{name}."
        yield from _flat(option["options"], inner)


def _row(option: Mapping[str, Any], name: str) -> str:
    default = "required" if option["required"] else f"`{_value(option['default'])}`"
    kind = " | ".join(option["forms"]) if len(option["forms"]) > 1 else option["type"]
    cells = (f"`{name}`", kind, default, _escaped(option["description"]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if hasattr(value, "model_dump_json"):  # a section of its own, listed below
        return "{}"
    return str(list(value) if isinstance(value, tuple) else value)


def commands() -> str:
    """Return the page of commands: the help of each command, as in a terminal."""
    general = _fuse("--help")
    names = re.findall(r"^  ([a-z][\w-]+)  +[A-Z]", general.split("Commands:")[1], re.MULTILINE)
    parts = [_COMMANDS_HEAD, "## `fuse`\n", f"```text\n{general.strip()}\n```\n"]
    for name in names:
        parts += [f"## `fuse {name}`\n", f"```text\n{_fuse(name, '--help').strip()}\n```\n"]
    parts.append(_next("commands.md"))
    return "\n".join(line.rstrip() for line in "\n".join(parts).split("\n"))


PAGES = {
    "api.md": api,
    "hooks.md": lambda: hooks(HOOKSPECS.read_text(encoding="utf-8")),
    "components.md": components,
    "recipe.md": recipe,
    "commands.md": commands,
}


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
