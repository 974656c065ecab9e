"""Attribution of failures to plugins: whose code raised an error, or tried to end the program.

The module reads the metadata of installed distributions and imports nothing, so it works no matter
which plugin failed.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions
from traceback import walk_tb
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.distributions import CORE, find_plugins, normalize_name, summarize_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def find_responsible_plugin(error: BaseException) -> str | None:
    """Name the plugin, with its version, whose package is innermost in a traceback.

    The error's causes are searched after the error itself. Returns None if no plugin took part.
    """
    owners = _owners_of_packages()
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in _innermost_first(cause):
            if owner := owners.get(_package_of(frame)):
                return owner
        cause = cause.__cause__
    return None


@contextmanager
def forbid_exit() -> Iterator[None]:
    """Turn SystemExit into an error that names the plugin, because exit 0 must mean success.

    An exit from a signal handler passes: the handler belongs to the embedding program.
    """
    try:
        yield
    except SystemExit as error:
        if _is_from_signal_handler(error):
            raise
        # `exit` and `quit` are functions of Python's own `site`.
        calls = (
            call for call in _innermost_first(error) if _package_of(call[0]) != "_sitebuiltins"
        )
        frame, line = next(calls)
        raise BrokenPluginError(
            f"{find_responsible_plugin(error) or 'code outside the plugins'} tried to end the program: "
            f"{summarize_error(error)}, in {frame.f_code.co_qualname} "
            f"({frame.f_code.co_filename}, line {line})",
            hint="Report this to its authors: code that cannot continue must raise an error.",
        ) from error


def _owners_of_packages() -> dict[str, str]:
    """Map the top-level packages of every plugin but the core to its name and version."""
    plugins, owners = {}, {}
    for entry_point, distribution in find_plugins():
        name = normalize_name(distribution.name)
        if name != CORE:
            plugins[name] = f"plugin {name} {distribution.version}"
            owners[entry_point.value.partition(":")[0].partition(".")[0]] = plugins[name]
    with suppress(Exception):  # the file list of some distribution is damaged
        for package, distributions in packages_distributions().items():
            for name in map(normalize_name, distributions):
                if name in plugins:
                    owners.setdefault(package, plugins[name])
    return owners


def _innermost_first(error: BaseException) -> list[tuple[FrameType, int]]:
    return [*walk_tb(error.__traceback__)][::-1]


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_from_signal_handler(error: SystemExit) -> bool:
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in walk_tb(error.__traceback__))
