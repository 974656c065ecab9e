"""How a public name goes: with a warning that says what to use, for a while that is written down.

The policy is in docs/reference/compatibility.md. Nothing outlives its `until`: a test asks
`expired`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ThingT = TypeVar("ThingT", bound="Callable[..., object]")

#: What is deprecated -> the version that it is gone in.
_UNTIL: dict[str, str] = {}


class FusionDeprecationWarning(DeprecationWarning):
    """Something public will be gone; pytest shows it to authors of plugins, and nobody else."""


def deprecated(*, since: str, until: str, instead: str) -> Callable[[ThingT], ThingT]:
    """Mark a function or class: calling or subclassing it warns. It is gone in version `until`."""
    # Comes with pydantic; type checkers and editors know what it marks (PEP 702).
    from typing_extensions import deprecated as marked

    def mark(thing: ThingT) -> ThingT:
        message = _noted(thing.__qualname__, since=since, until=until, instead=instead)
        return marked(message, category=FusionDeprecationWarning)(thing)

    return mark


def warn_deprecated(what: str, *, since: str, until: str, instead: str) -> None:
    """Warn of anything else that is used: a module's old name, an option, a hook's argument."""
    message = _noted(what, since=since, until=until, instead=instead)
    warnings.warn(message, FusionDeprecationWarning, stacklevel=3)


def expired(version: str) -> list[str]:
    """Return what should be gone in this version, of all that was marked or warned of."""
    from packaging.version import Version

    running = Version(Version(version).base_version)
    return sorted(what for what, until in _UNTIL.items() if running >= Version(until))


def _noted(what: str, *, since: str, until: str, instead: str) -> str:
    _UNTIL[what] = until
    return f"{what} is deprecated since fusion-core {since} and gone in {until}; use {instead}"
