"""What is installed: distributions that declare plugins, whose an error is, what is optional."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from types import ModuleType

GROUP = "fusion_core.plugins"
CORE = "fusion-core"

logger = logging.getLogger(__name__)


_LONGEST_CAUSE = 1_000


def declared_plugins() -> list[tuple[metadata.EntryPoint, metadata.Distribution]]:
    """Return the group's entry points by distribution name, the first of each name on the path."""
    found: dict[tuple[str, str], tuple[metadata.EntryPoint, metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        for entry_point in _group_of(distribution):
            if name := header(distribution, "Name"):  # None where an installation was interrupted
                key = (normalised(name), entry_point.name)
                found.setdefault(key, (entry_point, distribution))
    return [found[key] for key in sorted(found)]


def import_optional(module: str, needed_by: str, install: str | None = None) -> ModuleType:
    """Import a module of a package that is not required.

    Raises `FusionError` where it is not installed, which names what needs it, and what `install`
    says to give pip: by default the package.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        hint = f'Install it: pip install "{install or package}"'
        raise FusionError(f"{needed_by} needs {package}, which is not here", hint=hint) from error


@cache
def libraries_of(distribution: str) -> frozenset[str]:
    """Return the distributions that one requires and that build on the core, at any remove.

    The core is one of them, and what it requires itself is not followed.
    """
    known: set[str] = set()
    waiting = {distribution}
    while waiting:
        required = _requirements_of(waiting.pop())
        libraries = {name for name in required if name == CORE or CORE in _requirements_of(name)}
        waiting |= libraries - known - {CORE}
        known |= libraries
    return frozenset(known)


def requirements(distribution: metadata.Distribution) -> set[str]:
    """Return the names of what a distribution requires, by itself or for one of its extras."""
    lines = distribution.requires or ()
    return {normalised(re.split(r"[^\w.-]", line)[0]) for line in lines}


def _requirements_of(name: str) -> set[str]:
    try:
        return requirements(metadata.distribution(name))
    except metadata.PackageNotFoundError:  # for an extra that is not installed
        return set()


def header(distribution: metadata.Distribution, name: str) -> str | None:
    """Return a line of a distribution's metadata; None where there is none.

    The backport `importlib_metadata`, once anything has imported it, stands behind the standard
    library's functions, and raises where that one gives None.
    """
    try:
        return distribution.metadata[name]
    except (KeyError, FileNotFoundError):
        return None


def _group_of(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Return a distribution's entry points in the group; none if its list cannot be parsed."""
    try:
        return [
            entry_point for entry_point in distribution.entry_points if entry_point.group == GROUP
        ]
    except Exception as error:  # noqa: BLE001 - whatever importlib.metadata makes of a mangled file
        logger.warning("the entry points of a distribution are unreadable: %s", cause_of(error))
        return []


def normalised(name: str) -> str:
    """Spell a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def cause_of(error: BaseException) -> str:
    """Say what went wrong in one line: the error's type, and its message, whatever that holds."""
    try:
        message = " ".join(str(error).splitlines())[:_LONGEST_CAUSE]
    except Exception:  # noqa: BLE001 - a plugin's error, whose own text may fail
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
