"""Commands of plugins. Their specs appear in help; a command is imported when it is called."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from fusion_core.contracts.specs import CommandSpec
from fusion_core.errors import PluginError, UnknownComponentError
from fusion_core.machine.distributions import summarize_error
from fusion_core.plugins.manager import load_plugins
from fusion_core.plugins.ownership import distribution_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core.plugins.components import Component

_PROGRAM_OPTIONS = {"install_completion", "show_completion"}


class PluginCommand(TyperCommand):
    """A plugin's command, which is imported when it is called."""

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
        """Import the command and let it parse its arguments. Completion ignores broken commands."""
        try:
            command = _import_command(self.component)
        except PluginError:
            if not extra.get("resilient_parsing"):
                raise
            return super().make_context(info_name, args, parent=parent, **extra)
        return command.make_context(info_name, args, parent=parent, **extra)


def commands_of_plugins(block: frozenset[str], taken: Collection[str]) -> dict[str, PluginCommand]:
    """Return the commands of plugins by name, or by full name if the name is not unique."""
    components = list(load_plugins(block).components(CommandSpec))
    uses = Counter([*taken, *(component.spec.name for component in components)])
    commands = {}
    for component in components:
        name = component.spec.name
        name = name if uses[name] == 1 else component.qualified_name
        commands[name] = PluginCommand(name, component)
    return commands


def find_command(block: frozenset[str], name: str) -> PluginCommand | None:
    """Find a plugin's command by its name or full name. Returns None for an unknown name.

    Raises `AmbiguousComponentError` if several plugins provide it, and `UnknownComponentError` if
    only a plugin that is not installed does.
    """
    try:
        return PluginCommand(name, load_plugins(block).find(CommandSpec, name))
    except UnknownComponentError:
        if distribution_of([CommandSpec.kind], name) is not None:
            raise
        return None


def core_commands(program: Any) -> dict[str, Any]:  # noqa: ANN401 - typer's
    """Return the commands of a program that are not a plugin's."""
    commands = program.commands.items()
    return {name: cmd for name, cmd in commands if not isinstance(cmd, PluginCommand)}


def group_of(command: Any) -> str:  # noqa: ANN401 - typer's
    """Return the heading of a command in help."""
    return command.component.spec.group if isinstance(command, PluginCommand) else "Commands"


def _import_command(component: Component[CommandSpec]) -> Any:  # noqa: ANN401 - typer's
    """Import a command. Raises `BrokenPluginError` for a target that is not a command."""
    target = component.load(component.spec.target)
    app = target
    try:
        if not isinstance(target, typer.Typer):
            app = typer.Typer(rich_markup_mode=None)
            app.command()(target)
        command = typer.main.get_command(app)
    except Exception as error:
        raise component.broken(f"cannot be used: {summarize_error(error)}") from error
    command.params = [param for param in command.params if param.name not in _PROGRAM_OPTIONS]
    return command
