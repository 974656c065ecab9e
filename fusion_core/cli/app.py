"""The program `fuse`: its commands, its global options, and its handling of failures.

Nothing heavy is imported here or in the command modules, because `fuse --help`, `fuse list-plugins`
and completion must feel instant. Help is plain text, because typer's rich help alone costs as much
time as everything else together.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from fusion_core.cli.check import check
from fusion_core.cli.clean import clean
from fusion_core.cli.commands import (
    commands_of_plugins,
    core_commands,
    find_command,
    group_of,
)
from fusion_core.cli.download import download
from fusion_core.cli.evaluate import evaluate
from fusion_core.cli.failures import TRACEBACK_VARIABLE, report_failure
from fusion_core.cli.info import info
from fusion_core.cli.listing import list_components, list_plugins
from fusion_core.cli.run import RunCommand, run
from fusion_core.cli.schema import schema
from fusion_core.cli.streams import guard_streams
from fusion_core.errors import PluginError, Terminated
from fusion_core.machine.attribution import forbid_exit
from fusion_core.plugins.manager import load_plugins

_MAX_OPEN_FILES = 65_536


class Program(TyperGroup):
    """The commands of the core and of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's
        """Name the core's commands, then those of plugins. Misconfigured plugins are ignored."""
        with suppress(PluginError):
            self._add_plugins(ctx)
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - typer's
        """Find a command. Plugins are loaded only for a name that the core does not have."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        try:
            self._add_plugins(ctx)
            return self.commands.get(cmd_name) or find_command(_blocked(ctx), cmd_name)
        except PluginError:
            if ctx.resilient_parsing:  # completion reports no errors
                return None
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Show the commands under the headings of their groups."""
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            command: Any = self.commands[name]
            row = (name, command.get_short_help_str(limit))
            groups.setdefault(group_of(command), []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)

    def _add_plugins(self, ctx: Any) -> None:  # noqa: ANN401 - typer's
        core = core_commands(self)
        self.commands = {**core, **commands_of_plugins(_blocked(ctx), core)}

    def invoke(self, ctx: Any) -> None:  # noqa: ANN401 - typer's
        """Run a command. Typer itself would end silently on interrupts and closed pipes."""
        try:
            with forbid_exit():
                super().invoke(ctx)
        except (KeyboardInterrupt, OSError) as error:
            sys.exit(report_failure(error))


app = typer.Typer(
    name="fuse",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=RunCommand)(run)
app.command(cls=RunCommand)(check)
app.command()(evaluate)
app.command("list-plugins")(list_plugins)
app.command("list")(list_components)
app.command()(info)
app.command()(download)
app.command()(schema)
app.command()(clean)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"fuse {version('fusion-core')}")
        raise typer.Exit


@app.callback()
def fuse(
    context: typer.Context,
    no_plugin: Annotated[  # noqa: ARG001 - read before a command is looked for
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option(metavar="NAME", help="Do not load the plugin NAME; repeatable."),
    ] = None,
    strict_plugins: Annotated[
        bool,
        typer.Option(
            "--strict-plugins",
            envvar="FUSION_STRICT_PLUGINS",
            help="Fail if a plugin is broken or incompatible, instead of continuing without it.",
        ),
    ] = False,
    traceback: Annotated[  # noqa: ARG001 - read where errors are printed
        bool,
        typer.Option(
            "--traceback",
            help=f"Show the traceback of an error, as {TRACEBACK_VARIABLE}=1 does.",
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Fuse fine-tuned models into one, and measure the result.

    Exit codes: 0 success, 1 failure, 2 invalid flag or recipe, 3 plugin missing or broken,
    4 weights unreadable or mismatched, 5 hub or network, 6 disk, 7 output exists or is locked,
    8 checksum mismatch or changed file, 130 interrupted, 143 terminated.
    """
    context.obj = _blocked(context)
    if strict_plugins and not {"-h", "--help"} & set(sys.argv):  # help always works
        load_plugins(context.obj).require_all()


def _blocked(context: Any) -> frozenset[str]:  # noqa: ANN401 - typer's
    return frozenset(context.params.get("no_plugin") or ())


def _terminate(_number: int, _frame: object) -> None:
    """End like an interrupt does, so that files are closed and finished work is kept."""
    raise Terminated


def _allow_many_files() -> None:
    """Raise the limit of open files as far as allowed: every shard of every model is open."""
    with suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
        if soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def main() -> None:
    """Run the program. Failures are explained in a few lines, with a traceback only on request."""
    # Torch reads it on import: waiting threads sleep instead of spinning. On a machine with other
    # work, spinning made small models a hundred times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imports make many objects that live to the end. To look for garbage among them as often as
    # Python does takes up to a tenth of the start-up.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGTERM, _terminate)
    _allow_many_files()
    with guard_streams():
        try:
            _run()
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the outermost handler
            sys.exit(report_failure(error))


def _run() -> None:
    try:
        app()
    except SystemExit:
        sys.stdout.flush()  # raises if results were lost, even if somebody swallowed the error
        raise
