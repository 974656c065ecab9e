"""Commands of plugins: shown by what their specs say, imported when they are called."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from fusion_core.contracts.specs import CommandSpec
from fusion_core.errors import PluginError, UnknownComponentError
from fusion_core.machine.installed import cause_of
from fusion_core.plugins.known import home_of
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core.plugins.components import Component

_OF_A_PROGRAM = {"install_completion", "show_completion"}


class PluginCommand(TyperCommand):
    """Stands for a command of a plugin until it is called."""

    def __init__(self, name: str, component: Component[CommandSpec]) -> None:
        super().__init__(name, help=component.spec.summary)
        self.component = component

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Any = None,  # noqa: ANN401 - typer's
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Import the command and let it parse its arguments; completion passes broken ones over."""
        try:
            command = _load(self.component)
        except PluginError:
            if not extra.get("resilient_parsing"):
                raise
            return super().make_context(info_name, args, parent=parent, **extra)
        return command.make_context(info_name, args, parent=parent, **extra)


def commands_of_plugins(block: frozenset[str], taken: Collection[str]) -> dict[str, PluginCommand]:
    """Return plugins' commands by what users type: a name that is not one's own stands in full."""
    found = list(load_plugins(block).components(CommandSpec))
    given = Counter([*taken, *(component.spec.name for component in found)])
    named = ((_shown(component, given), component) for component in found)
    return {name: PluginCommand(name, component) for name, component in named}


def find_command(block: frozenset[str], name: str) -> PluginCommand | None:
    """Find a plugin's command by its name or full name; None if nobody knows it.

    Raises `AmbiguousComponentError` if several plugins provide it, `UnknownComponentError` if one
    that is not installed does.
    """
    try:
        return PluginCommand(name, load_plugins(block).find(CommandSpec, name))
    except UnknownComponentError:
        if home_of([CommandSpec.kind], name) is not None:
            raise
        return None


def core_commands(program: Any) -> dict[str, Any]:  # noqa: ANN401 - typer's
    """Return the commands of a program that are the core's own."""
    every = program.commands.items()
    return {name: each for name, each in every if not isinstance(each, PluginCommand)}


def group_of(command: Any) -> str:  # noqa: ANN401 - typer's
    """Return the heading that a command stands under."""
    return command.component.spec.group if isinstance(command, PluginCommand) else "Commands"


def _shown(component: Component[CommandSpec], given: Counter[str]) -> str:
    name = component.spec.name
    return name if given[name] == 1 else component.qualified_name


def _load(component: Component[CommandSpec]) -> Any:  # noqa: ANN401 - typer's
    """Import a command; raises `BrokenPluginError` for what is not one."""
    target = component.load(component.spec.target)
    app = target
    try:
        if not isinstance(target, typer.Typer):
            app = typer.Typer(rich_markup_mode=None)
            app.command()(target)
        command = typer.main.get_command(app)
    except Exception as error:
        raise component.broken(f"cannot be used: {cause_of(error)}") from error
    command.params = [param for param in command.params if param.name not in _OF_A_PROGRAM]
    return command
