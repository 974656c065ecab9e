"""Installed distributions: the plugins that they declare, and what they require."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

GROUP = "fusion_core.plugins"
CORE = "fusion-core"

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 1_000


def find_plugins() -> list[tuple[metadata.EntryPoint, metadata.Distribution]]:
    """Return the group's entry points by distribution name, the first of each name on the path."""
    plugins: dict[tuple[str, str], tuple[metadata.EntryPoint, metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        try:
            entry_points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as error:  # noqa: BLE001 - whatever importlib.metadata raises for a damaged file
            logger.warning(
                "the entry points of a distribution are unreadable: %s", summarize_error(error)
            )
            continue
        name = read_metadata_field(distribution, "Name") if entry_points else None
        if name is None:  # also after an interrupted installation
            continue
        for point in entry_points:
            plugins.setdefault((normalize_name(name), point.name), (point, distribution))
    return [plugins[key] for key in sorted(plugins)]


def import_optional(module: str, needed_by: str, install: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Raises `FusionError` if the package is missing. The error names `needed_by` and what pip has to
    install: `install`, by default the package.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        hint = f'Install it: pip install "{install or package}"'
        raise FusionError(
            f"{needed_by} needs {package}, which is not installed", hint=hint
        ) from error


@cache
def find_core_libraries(distribution: str) -> frozenset[str]:
    """Return the distributions that one requires, directly or not, and that build on the core.

    The result includes the core, but not what the core requires.
    """
    libraries: set[str] = set()
    pending = {distribution} - {CORE}  # whose extra `all` names every plugin
    while pending:
        required = _requirements_of(pending.pop())
        on_core = {name for name in required if name == CORE or CORE in _requirements_of(name)}
        pending |= on_core - libraries - {CORE}
        libraries |= on_core
    return frozenset(libraries)


def versions_of_requirements(distributions: Collection[str]) -> dict[str, str]:
    """Return the versions of what distributions require besides each other.

    The core and what it requires are left out. Requirements of extras are included if they are
    installed.
    """
    wanted = {name for distribution in distributions for name in _requirements_of(distribution)}
    wanted -= {*distributions, CORE, *_requirements_of(CORE)}
    versions = ((name, installed_version(name)) for name in sorted(wanted))
    return {name: version for name, version in versions if version is not None}


def installed_version(name: str) -> str | None:
    """Return the version of a distribution, None for one of an extra that is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required_names(distribution: metadata.Distribution) -> set[str]:
    """Return the names of what a distribution and its extras require."""
    lines = distribution.requires or ()
    return {normalize_name(re.split(r"[^\w.-]", line)[0]) for line in lines}


def _requirements_of(name: str) -> set[str]:
    try:
        return required_names(metadata.distribution(name))
    except metadata.PackageNotFoundError:  # required by an extra that is not installed
        return set()


def read_metadata_field(distribution: metadata.Distribution, name: str) -> str | None:
    """Return a field of a distribution's metadata, None if it is missing.

    Indexing raises, warns or returns None for a missing field, by the version of Python and of the
    backport `importlib_metadata`, which the standard library's functions use if it is imported.
    """
    try:
        values = distribution.metadata.get_all(name)
    except FileNotFoundError:
        return None
    return values[0] if values else None


def normalize_name(name: str) -> str:
    """Spell a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def summarize_error(error: BaseException) -> str:
    """Return an error's type and message in one line."""
    try:
        message = " ".join(str(error).splitlines())[:_LONGEST_MESSAGE]
    except Exception:  # noqa: BLE001 - the error of a plugin, whose own text may fail
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
