"""What installed distributions say about themselves: their plugins, versions and requirements.

Read from metadata alone; nothing of a plugin is imported here, and whatever is malformed is the
distribution's own trouble.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Self

from fusion_core.errors import PluginError
from fusion_core.machine.installed import CORE, header, normalised
from fusion_core.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.contracts.specs import ComponentSpec

BLOCK_VARIABLE = "FUSION_BLOCK_PLUGINS"

# The core itself, in any spelling, and not `fusion-core-extras`.
_CORE_REQUIREMENT = re.compile(r"fusion[-_.]+core(?![-_.]*\w)", re.IGNORECASE)


logger = logging.getLogger(__name__)


class PluginStatus(StrEnum):
    """What became of a plugin when it was discovered."""

    LOADED = "loaded"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    BROKEN = "broken"


@dataclass(slots=True)
class Plugin:
    """One distribution in the entry-point group, and what became of it."""

    distribution: str
    version: str
    module: str
    summary: str = ""
    status: PluginStatus = PluginStatus.LOADED
    #: why it is not loaded, one line
    detail: str = ""
    error: BaseException | None = None
    #: how long its import took
    seconds: float = 0.0
    components: list[ComponentSpec] = field(default_factory=list)

    @classmethod
    def declared(cls, entry_point: metadata.EntryPoint, by: metadata.Distribution) -> Self:
        """Describe a plugin as its distribution does."""
        headers = by.metadata  # parsed at every access
        return cls(
            distribution=normalised(headers["Name"]),
            version=headers["Version"],
            module=entry_point.value,
            summary=header(by, "Summary") or "",
        )


def unmet_requirement(distribution: metadata.Distribution) -> tuple[PluginStatus, str] | None:
    """Return how the distribution's own requirement on the core is unmet, or unreadable."""
    running = _running_core()
    ours = [line for line in distribution.requires or () if _CORE_REQUIREMENT.match(line)]
    if all(_is_met_plainly(line, running) for line in ours):
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirements = [Requirement(line) for line in ours]
    except InvalidRequirement as error:
        return PluginStatus.BROKEN, f"its metadata is malformed: {str(error).splitlines()[0]}"
    for requirement in requirements:
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(running, prereleases=True):
            unmet = f"needs fusion-core{requirement.specifier}, this is {running}"
            return PluginStatus.INCOMPATIBLE, unmet
    return None


def _is_met_plainly(line: str, running: str) -> bool:
    """Tell `fusion-core>=0.1,<0.2` without packaging, whose import is a tenth of `fuse --help`."""
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+", running)
    if release is None:
        return False
    major, minor = map(int, release.groups())
    bounds = {f">={major}.{minor}", f"<{major}.{minor + 1}"}
    return {*line.replace(" ", "").removeprefix(CORE).split(",")} == bounds


@cache
def _running_core() -> str:
    return metadata.version(CORE)


def blocked_among(installed: set[str], block: Iterable[str]) -> frozenset[str]:
    """Return the plugins that are not to be loaded: those in `block`, and in the environment.

    Raises `PluginError` for a name that blocks nothing: whoever gave it believes that it does.
    """
    listed = os.environ.get(BLOCK_VARIABLE, "").split(",")
    names = [*block, *(name.strip() for name in listed if name.strip())]
    blocked = frozenset(map(normalised, names))
    for name in sorted(blocked - installed - {"*"}):
        hint = did_you_mean(name, installed) or "See: fuse list-plugins"
        where = f"--no-plugin or {BLOCK_VARIABLE}"
        raise PluginError(f"there is no plugin {name!r} to block by {where}", hint=hint)
    return blocked
