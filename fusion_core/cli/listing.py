"""`fuse list-plugins` and `fuse list`: what is installed."""

from __future__ import annotations

import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli.catalogue import algorithms_of, print_algorithms
from fusion_core.cli.commands import core_commands
from fusion_core.cli.output import print_json, print_table
from fusion_core.contracts.specs import (
    CommandSpec,
    ExecutorSpec,
    FormatSpec,
    ModelPoolSpec,
    TaskPoolSpec,
)
from fusion_core.plugins.manager import SLOW_SECONDS, load_plugins

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fusion_core.plugins.distributions import Plugin
    from fusion_core.plugins.manager import PluginManager

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Kind(StrEnum):
    """What can be listed."""

    ALGORITHMS = "algorithms"
    POOLS = "pools"
    TASKS = "tasks"
    FORMATS = "formats"
    EXECUTORS = "executors"
    COMMANDS = "commands"


def list_plugins(
    context: typer.Context,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show import times, and what is wrong.")
    ] = False,
) -> None:
    """Show plugins, and why one is not loaded."""
    manager = load_plugins(context.obj)
    plugins = manager.plugins
    if as_json:
        print_json([_as_json(plugin) for plugin in plugins])
        return
    headings = ["plugin", "version", "status", "provides"]
    rows = [_row(plugin) for plugin in plugins]
    if verbose:
        headings.append("import")
        for row, plugin in zip(rows, plugins, strict=True):
            row.append(f"{1000 * plugin.seconds:.0f} ms")
    print_table(headings, rows)
    if verbose:
        ours = core_commands(context.find_root().command)
        for note in (*_notes(manager), *_shadowed(manager, ours)):
            print(f"\n{note}")


def list_components(
    context: typer.Context,
    kind: Annotated[
        Optional[Kind],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            help="algorithms, pools, tasks, formats, executors or commands", metavar="KIND"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List algorithms, pools, tasks, formats, executors, and the commands of plugins."""
    plugins = load_plugins(context.obj)
    kinds = list(Kind) if kind is None else [kind]
    if as_json:
        data = {each.value: _as_dicts(each, plugins) for each in kinds}
        print_json(data if kind is None else data[kind])
        return
    for number, each in enumerate(kinds):
        if kind is None:
            print(f"\n{each}:" if number else f"{each}:")
        _print(each, plugins)


def _as_dicts(kind: Kind, plugins: PluginManager) -> list[dict[str, Any]]:
    if kind is Kind.ALGORITHMS:
        return algorithms_of(plugins)
    columns, rows = _ROWS[kind](plugins)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _print(kind: Kind, plugins: PluginManager) -> None:
    if kind is Kind.ALGORITHMS:
        print_algorithms(algorithms_of(plugins))
        return
    columns, rows = _ROWS[kind](plugins)
    print_table(columns, [[_shown(cell) for cell in row] for row in rows])


Rows = tuple[list[str], list[list[Any]]]


def _pools(plugins: PluginManager) -> Rows:
    rows = [
        [
            component.spec.name,
            component.spec.summary,
            component.spec.default,
            component.plugin.distribution,
        ]
        for component in plugins.components(ModelPoolSpec)
    ]
    return ["name", "summary", "default", "plugin"], sorted(rows, key=str)


def _tasks(plugins: PluginManager) -> Rows:
    """List tasks; a pool whose tasks depend on its options has one row without a task."""
    rows = [
        [task, component.spec.name, component.spec.summary, component.plugin.distribution]
        for component in plugins.components(TaskPoolSpec)
        for task in component.spec.tasks or (None,)
    ]
    return ["task", "task pool", "summary", "plugin"], rows


def _formats(plugins: PluginManager) -> Rows:
    rows = [
        [
            component.spec.name,
            _known_by(component.spec),
            component.spec.summary,
            component.plugin.distribution,
        ]
        for component in plugins.components(FormatSpec)
    ]
    return ["name", "known by", "summary", "plugin"], sorted(rows)


def _known_by(spec: FormatSpec) -> str:
    """Say which files and which keys of their configuration make a model one of a format."""
    keys = f" with {' or '.join(spec.config_keys)} in config.json" if spec.config_keys else ""
    return f"{' or '.join(spec.files)}{keys}"


def _executors(plugins: PluginManager) -> Rows:
    rows = [
        [component.spec.name, component.spec.summary, component.plugin.distribution]
        for component in plugins.components(ExecutorSpec)
    ]
    return ["name", "summary", "plugin"], sorted(rows)


def _commands(plugins: PluginManager) -> Rows:
    rows = [
        [
            component.spec.name,
            component.spec.summary,
            component.spec.group,
            component.plugin.distribution,
        ]
        for component in plugins.components(CommandSpec)
    ]
    return ["name", "summary", "group", "plugin"], sorted(rows)


_ROWS = {
    Kind.POOLS: _pools,
    Kind.TASKS: _tasks,
    Kind.FORMATS: _formats,
    Kind.EXECUTORS: _executors,
    Kind.COMMANDS: _commands,
}


def _shown(cell: Any) -> str:  # noqa: ANN401 - a spec's field
    if isinstance(cell, bool):
        return "yes" if cell else ""
    return "" if cell is None else str(cell)


def _notes(manager: PluginManager) -> Iterator[str]:
    """Say what is wrong with plugins, and what to do."""
    for plugin in manager.plugins:
        if plugin.error is not None:
            trace = "".join(traceback.format_exception(plugin.error))
            yield f"{plugin.distribution}:\n{trace}".rstrip()
        elif plugin.seconds > SLOW_SECONDS:
            yield (
                f"{plugin.distribution}: importing {plugin.module} took {plugin.seconds:.1f} s, "
                "and every listing waits for it; it should import nothing heavy."
            )
    for name, components in manager.clashes():
        full = ", ".join(component.qualified_name for component in components)
        yield (
            f"{components[0].spec.kind} {name!r} is provided by several plugins: {full}. Use one "
            "of these full names, or block a plugin with --no-plugin."
        )


def _shadowed(manager: PluginManager, ours: Collection[str]) -> Iterator[str]:
    """Name commands of plugins that are called like one of the core's."""
    for component in manager.components(CommandSpec):
        if component.spec.name in ours:
            yield (
                f"command {component.spec.name!r} is the core's own; that of "
                f"{component.plugin.distribution} is {component.qualified_name}."
            )


def _row(plugin: Plugin) -> list[str]:
    provides = ", ".join(dict.fromkeys(spec.name for spec in plugin.components))
    return [plugin.distribution, plugin.version, str(plugin.status), provides or plugin.detail]


def _as_json(plugin: Plugin) -> dict[str, Any]:
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
