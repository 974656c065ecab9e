"""Attribution of failures to plugins: whose code raised an error, or tried to end the program.

It reads the metadata of installed distributions and imports nothing, so it works whatever failed.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions
from traceback import walk_tb
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.installed import CORE, cause_of, declared_plugins, normalised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def plugin_behind(error: BaseException) -> str | None:
    """Name the plugin whose package is innermost in a traceback, with its version.

    The error's causes are searched after the error. Returns None if no plugin took part.
    """
    owners = _owners()
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in _innermost_first(cause):
            if owner := owners.get(_package(frame)):
                return owner
        cause = cause.__cause__
    return None


def _owners() -> dict[str, str]:
    """Map the packages of every plugin but the core to its name and version."""
    names, owners = {}, {}
    for entry_point, distribution in declared_plugins():
        name = normalised(distribution.name)
        if name != CORE:
            names[name] = f"plugin {name} {distribution.version}"
            owners[_root(entry_point.value.partition(":")[0])] = names[name]
    with suppress(Exception):  # a damaged list of files of any distribution
        for package, distributions in packages_distributions().items():
            for name in map(normalised, distributions):
                if name in names:
                    owners.setdefault(package, names[name])
    return owners


@contextmanager
def forbid_exit() -> Iterator[None]:
    """Turn SystemExit into an error that names the plugin: exit 0 means that all was done.

    A signal handler of the embedding program may exit: that is not a plugin's code.
    """
    try:
        yield
    except SystemExit as error:
        if _is_from_signal_handler(error):
            raise
        # `exit` and `quit` are functions of Python's own `site`.
        calls = (call for call in _innermost_first(error) if _package(call[0]) != "_sitebuiltins")
        frame, line = next(calls)
        raise BrokenPluginError(
            f"{plugin_behind(error) or 'code outside the plugins'} tried to end the program: "
            f"{cause_of(error)}, in {frame.f_code.co_qualname} "
            f"({frame.f_code.co_filename}, line {line})",
            hint="Report this to its authors: code that cannot go on has to raise an error.",
        ) from error


def _innermost_first(error: BaseException) -> list[tuple[FrameType, int]]:
    return [*walk_tb(error.__traceback__)][::-1]


def _package(frame: FrameType) -> str:
    return _root(str(frame.f_globals.get("__name__", "")))


def _root(module: str) -> str:
    return module.partition(".")[0]


def _is_from_signal_handler(error: SystemExit) -> bool:
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in walk_tb(error.__traceback__))
