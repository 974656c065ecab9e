"""Metadata of installed distributions: their plugins, versions and requirements.

No plugin is imported here. Malformed metadata affects its own distribution only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Self

from fusion_core.errors import PluginError
from fusion_core.formatting import suggest
from fusion_core.machine.distributions import CORE, normalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.contracts.specs import ComponentSpec

BLOCK_VARIABLE = "FUSION_BLOCK_PLUGINS"

# The core itself, in any spelling, and not `fusion-core-extras`.
_CORE_REQUIREMENT = re.compile(r"fusion[-_.]+core(?![-_.]*\w)", re.IGNORECASE)


class PluginStatus(StrEnum):
    """The outcome of a plugin's discovery."""

    LOADED = "loaded"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    BROKEN = "broken"


@dataclass(slots=True)
class Plugin:
    """One distribution in the entry-point group, and the outcome of its discovery."""

    distribution: str
    version: str
    module: str
    summary: str = ""
    status: PluginStatus = PluginStatus.LOADED
    #: why it is not loaded, in one line
    detail: str = ""
    error: BaseException | None = None
    #: the duration of its import
    seconds: float = 0.0
    components: list[ComponentSpec] = field(default_factory=list)

    @classmethod
    def declared(cls, entry_point: metadata.EntryPoint, by: metadata.Distribution) -> Self:
        """Return a plugin as its distribution's metadata describes it."""
        headers = by.metadata  # parsed at every access
        summaries = headers.get_all("Summary") or [""]
        return cls(
            distribution=normalize_name(headers["Name"]),
            version=headers["Version"],
            module=entry_point.value,
            summary=summaries[0],
        )


def unmet_requirement(distribution: metadata.Distribution) -> tuple[PluginStatus, str] | None:
    """Return a status and a reason if the distribution's requirement on the core is not met."""
    running = _running_core()
    lines = [line for line in distribution.requires or () if _CORE_REQUIREMENT.match(line)]
    if all(_is_met_plainly(line, running) for line in lines):
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirements = [Requirement(line) for line in lines]
    except InvalidRequirement as error:
        return PluginStatus.BROKEN, f"its metadata is malformed: {str(error).splitlines()[0]}"
    for requirement in requirements:
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(running, prereleases=True):
            unmet = f"needs fusion-core{requirement.specifier}, this is {running}"
            return PluginStatus.INCOMPATIBLE, unmet
    return None


def _is_met_plainly(line: str, running: str) -> bool:
    """Match `fusion-core>=0.1,<0.2` without packaging, whose import is a tenth of `fuse --help`."""
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+", running)
    if release is None:
        return False
    major, minor = map(int, release.groups())
    bounds = {f">={major}.{minor}", f"<{major}.{minor + 1}"}
    return {*line.replace(" ", "").removeprefix(CORE).split(",")} == bounds


@cache
def _running_core() -> str:
    return metadata.version(CORE)


def blocked_plugins(installed: set[str], block: Iterable[str]) -> frozenset[str]:
    """Return the plugins not to load: those in `block` and in the environment variable.

    Raises `PluginError` for a name that blocks nothing, because its user believes that it does.
    """
    listed = os.environ.get(BLOCK_VARIABLE, "").split(",")
    names = [*block, *(name.strip() for name in listed if name.strip())]
    blocked = frozenset(map(normalize_name, names))
    for name in sorted(blocked - installed - {"*"}):
        guess = suggest(name, installed)
        raise PluginError(
            f"--no-plugin or {BLOCK_VARIABLE}: unknown plugin {name!r}{guess and f'; {guess}'}",
            hint="See: fuse list-plugins",
        )
    return blocked
