"""What all suites share: checks are the same for everybody, and exceptions to them have a reason.

A suite is a class of checks, which are methods `test_*`. An author subclasses it, supplies
fixtures, and may declare that a check is expected to fail; that is strict, so a declaration that is
no longer true fails in its turn. Knows pytest, and nothing of what is checked.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import pytest

from fusion_core.errors import BrokenPluginError
from fusion_core.formatting import suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PREFIX = "test_"
#: Packages whose frames are not a plugin's.
_NOT_PLUGINS = {
    *("fusion_core", "fusion_testing", "torch", "pytest", "_pytest", "pluggy"),
    *sys.stdlib_module_names,
}


def fail(problem: str, remedy: str) -> NoReturn:
    """Fail a check: say what is wrong, and what its author should do."""
    message = f"{problem}\n\nTo mend it: {remedy}"
    raise pytest.fail.Exception(message, pytrace=False) from None


@contextmanager
def advised() -> Iterator[None]:
    """Fail a check for what a plugin raises, or the core refuses of it, and name the method."""
    try:
        yield
    except BrokenPluginError as error:
        fail(f"{error.message}.", error.hint or "Keep to what the class that you derive from says.")
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        method, place = _raised_in(error)
        fail(
            f"{method} raised {type(error).__name__}: {error} ({place}).",
            "Make the method work for what the check's name says; what the plugin refuses, it "
            "refuses by a FusionError with a hint.",
        )


def _raised_in(error: Exception) -> tuple[str, str]:
    """Return the plugin's method that a suite called, and the line that raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [
        (frame, line)
        for frame, line in frames
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_PLUGINS
    ]
    (called, _), (innermost, line) = (own[0], own[-1]) if own else (frames[-1], frames[-1])
    return f"`{called.f_code.co_qualname}`", f"{Path(innermost.f_code.co_filename).name}:{line}"


class Suite:
    """Checks that a subclass in a plugin's tests inherits and runs."""

    #: the name of a check, as pytest shows it (with or without its parameters) -> why it must fail
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        checks = _checks(cls)
        for name in sorted(checks):
            owner = next(each for each in cls.__mro__ if name in vars(each))
            if owner not in _ours(cls):
                raise TypeError(
                    f"{owner.__name__} overrides the check {name!r}, which is the same for every "
                    "plugin; if yours must differ, say why: "
                    f"expected_failures = {{{name!r}: 'the reason'}}"
                )
        for name, reason in cls.expected_failures.items():
            _check_expectation(cls.__name__, name, reason, checks)

    @classmethod
    def has_check(cls, name: str) -> bool:
        """Tell whether a test is a check of a suite, not one that an author added."""
        return name in _checks(cls)

    @pytest.fixture(autouse=True)
    def _expected_to_fail(self, request: pytest.FixtureRequest) -> None:
        node = request.node
        for name in (node.name, node.originalname):
            if name in self.expected_failures:
                reason = self.expected_failures[name]
                request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
                return


def _checks(suite: type) -> set[str]:
    """Return the names of a suite's inherited checks: what authors add themselves is theirs."""
    return {name for each in _ours(suite) for name in vars(each) if name.startswith(_PREFIX)}


def _ours(suite: type) -> list[type]:
    """Return the classes that this package contributes to a suite."""
    return [each for each in suite.__mro__ if each.__module__.startswith(f"{__package__}.")]


def _check_expectation(suite: str, name: str, reason: str, checks: set[str]) -> None:
    plain = name.partition("[")[0]
    if plain not in checks:
        advice = suggest(plain, checks)
        raise TypeError(
            f"{suite}.expected_failures names no check: {name!r}; {advice}".rstrip("; ")
        )
    if not reason.strip():
        raise TypeError(f"{suite}.expected_failures[{name!r}] must say why the check fails")
