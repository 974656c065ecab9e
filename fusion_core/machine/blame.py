"""Whose code failed: the plugin that a traceback leads to; and exits, which are nobody's to take.

It reads metadata and imports nothing, so it can be asked whatever went wrong.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.installed import CORE, cause_of, declared_plugins, normalised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib import metadata
    from types import FrameType


def plugin_behind(error: BaseException) -> str | None:
    """Name the plugin whose code is the innermost of a traceback, with its version."""
    owners = _owners()
    packages = (_package(frame) for frame, _ in _innermost_first(error))
    found = next((owners[package] for package in packages if package in owners), None)
    if found is None and error.__cause__ is not None:
        return plugin_behind(error.__cause__)
    return found


@contextmanager
def forbid_exit() -> Iterator[None]:
    """Turn SystemExit into an error that names whose it is: exit 0 means that all was done.

    A program's own handler of a signal may end it: that is not a plugin's code.
    """
    try:
        yield
    except SystemExit as error:
        if _is_of_signal(error):
            raise
        raise BrokenPluginError(
            f"{plugin_behind(error) or 'code that is not of a plugin'} tried to end the program: "
            f"{cause_of(error)}, in {_place(error)}",
            hint="Report this to its authors: code that cannot go on has to raise an error.",
        ) from error


def _owners() -> dict[str, str]:
    """Map the packages of every plugin but the core to its name and version."""
    return {
        package: f"plugin {normalised(distribution.name)} {distribution.version}"
        for entry_point, distribution in declared_plugins()
        if normalised(distribution.name) != CORE
        for package in _packages(entry_point, distribution)
    }


def _packages(
    entry_point: metadata.EntryPoint, distribution: metadata.Distribution
) -> Iterator[str]:
    yield entry_point.value.partition(":")[0].partition(".")[0]
    with suppress(Exception):  # a mangled list of files
        yield from (file.parts[0].removesuffix(".py") for file in distribution.files or ())


def _innermost_first(error: BaseException) -> list[tuple[FrameType, int]]:
    return [*walk_tb(error.__traceback__)][::-1]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _place(error: BaseException) -> str:
    """Say which function raised an error, and where it is; `exit` is Python's own."""
    frames = _innermost_first(error)
    frame, line = next(found for found in frames if _package(found[0]) != "_sitebuiltins")
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}, line {line})"


def _is_of_signal(error: SystemExit) -> bool:
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in walk_tb(error.__traceback__))
