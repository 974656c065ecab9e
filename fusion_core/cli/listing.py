"""`fuse list-plugins` and `fuse list`: installed plugins and components."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli.catalogue import describe_algorithms, print_algorithms
from fusion_core.cli.commands import core_commands
from fusion_core.cli.flags import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.contracts.specs import (
    CommandSpec,
    ComponentSpec,
    ExecutorSpec,
    FormatSpec,
    KernelSpec,
    ModelPoolSpec,
    OutputSpec,
    TaskPoolSpec,
)
from fusion_core.plugins.manager import SLOW_SECONDS, load_plugins

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.distributions import Plugin
    from fusion_core.plugins.manager import PluginManager


class Kind(StrEnum):
    """The kinds of components that can be listed."""

    ALGORITHMS = "algorithms"
    POOLS = "pools"
    TASKS = "tasks"
    FORMATS = "formats"
    EXECUTORS = "executors"
    OUTPUTS = "outputs"
    KERNELS = "kernels"
    COMMANDS = "commands"


def list_plugins(
    context: typer.Context,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show import times and tracebacks too.")
    ] = False,
) -> None:
    """List plugins, with the reason if one is not loaded."""
    manager = load_plugins(context.obj)
    if as_json:
        print_json([_plugin_as_json(plugin) for plugin in manager.plugins])
        return
    headings, rows = ["plugin", "version", "status", "provides"], []
    for plugin in manager.plugins:
        provides = ", ".join(dict.fromkeys(spec.name for spec in plugin.components))
        status = str(plugin.status)
        rows.append([plugin.distribution, plugin.version, status, provides or plugin.detail])
    if verbose:
        headings.append("import")
        for row, plugin in zip(rows, manager.plugins, strict=True):
            row.append(f"{1000 * plugin.seconds:.0f} ms")
    print_table(headings, rows)
    if verbose:
        for note in _notes(manager, core_commands(context.find_root().command)):
            print(f"\n{note}")


def list_components(
    context: typer.Context,
    kind: Annotated[
        Optional[Kind],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            help="List one kind: algorithms, pools, tasks, formats, executors, outputs, "
            "kernels or commands.",
            metavar="KIND",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List installed algorithms, pools, tasks and more."""
    plugins = load_plugins(context.obj)
    kinds = list(Kind) if kind is None else [kind]
    if as_json:
        data = {listed.value: _components_as_json(listed, plugins) for listed in kinds}
        print_json(data if kind is None else data[kind])
        return
    for number, listed in enumerate(kinds):
        if kind is None:
            print(f"\n{listed}:" if number else f"{listed}:")
        _print(listed, plugins)


def _components_as_json(kind: Kind, plugins: PluginManager) -> list[dict[str, Any]]:
    if kind is Kind.ALGORITHMS:
        return describe_algorithms(plugins)
    columns, rows = _table(kind, plugins)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _print(kind: Kind, plugins: PluginManager) -> None:
    if kind is Kind.ALGORITHMS:
        print_algorithms(describe_algorithms(plugins))
        return
    columns, rows = _table(kind, plugins)
    texts = {None: "", True: "yes", False: ""}
    print_table(columns, [[texts.get(cell, str(cell)) for cell in row] for row in rows])


def _describe_files(component: Component[FormatSpec]) -> str:
    """Describe briefly how a format is recognised: by its configuration, or else by its files."""
    spec = component.spec
    keys = [f"{key}: {value}" for key, value in spec.config_values] or spec.config_keys
    if keys:
        return f"{' or '.join(keys)} in config.json"
    first, *others = spec.files
    return f"{first} and others" if len(others) > 1 else " or ".join(spec.files)


_COLUMNS: dict[str, Callable[[Component[Any]], Any]] = {
    "name": lambda component: component.spec.name,
    "summary": lambda component: component.spec.summary,
    "default": lambda pool: pool.spec.default,
    "known by": _describe_files,
    "group": lambda command: command.spec.group,
    "plugin": lambda component: component.plugin.distribution,
}
_TABLES: dict[Kind, tuple[type[ComponentSpec], list[str]]] = {
    Kind.POOLS: (ModelPoolSpec, ["name", "summary", "default", "plugin"]),
    Kind.FORMATS: (FormatSpec, ["name", "known by", "summary", "plugin"]),
    Kind.EXECUTORS: (ExecutorSpec, ["name", "summary", "plugin"]),
    Kind.OUTPUTS: (OutputSpec, ["name", "summary", "plugin"]),
    Kind.KERNELS: (KernelSpec, ["name", "summary", "plugin"]),
    Kind.COMMANDS: (CommandSpec, ["name", "summary", "group", "plugin"]),
}


def _table(kind: Kind, plugins: PluginManager) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a listing."""
    if kind is Kind.TASKS:
        # The tasks of some pools depend on their options: such a pool has a row without a task.
        return ["task", "task pool", "summary", "plugin"], [
            [task, pool.spec.name, pool.spec.summary, pool.plugin.distribution]
            for pool in plugins.components(TaskPoolSpec)
            for task in pool.spec.tasks or (None,)
        ]
    spec, columns = _TABLES[kind]
    rows = [
        [_COLUMNS[column](component) for column in columns]
        for component in plugins.components(spec)
    ]
    return columns, sorted(rows, key=str)


def _notes(manager: PluginManager, core: Collection[str]) -> Iterator[str]:
    """Yield the problems of plugins and their remedies; `core` are the core's commands."""
    for plugin in manager.plugins:
        if plugin.error is not None:
            trace = "".join(traceback.format_exception(plugin.error))
            yield f"{plugin.distribution}:\n{trace}".rstrip()
        elif plugin.seconds > SLOW_SECONDS:
            yield (
                f"{plugin.distribution}: importing {plugin.module} took {plugin.seconds:.1f} s, "
                "and every listing waits for it. It should import nothing heavy."
            )
    for name, components in manager.clashes():
        full = ", ".join(component.qualified_name for component in components)
        yield (
            f"several plugins provide {components[0].spec.kind} {name!r}: {full}. Use one of these "
            "full names, or block a plugin with --no-plugin."
        )
    for component in manager.components(CommandSpec):
        if component.spec.name in core:
            yield (
                f"command {component.spec.name!r} is the core's own. That of "
                f"{component.plugin.distribution} is {component.qualified_name}."
            )


def _plugin_as_json(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.distribution,
        "version": plugin.version,
        "summary": plugin.summary,
        "module": plugin.module,
        "status": str(plugin.status),
        "detail": plugin.detail,
        "import_seconds": round(plugin.seconds, 6),
        "components": [
            {"kind": component.kind, "name": component.name} for component in plugin.components
        ],
    }
