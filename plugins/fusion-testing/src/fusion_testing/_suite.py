"""The base class of all suites, and the form of their failures.

A suite is a class with checks, the methods `test_*`. Authors subclass it and supply fixtures. They
cannot override checks, but may declare with a reason that one fails. Such a declaration is strict:
if the check passes, it fails. This module knows pytest, and nothing about components.
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
#: Packages whose frames in a traceback do not belong to a plugin.
_NOT_PLUGINS = {
    *("fusion_core", "fusion_testing", "torch", "pytest", "_pytest", "pluggy"),
    *sys.stdlib_module_names,
}


def fail(problem: str, remedy: str) -> NoReturn:
    """Fail a check; tell the plugin's author what is wrong and how to fix it."""
    message = f"{problem}\n\nTo fix it: {remedy}"
    raise pytest.fail.Exception(message, pytrace=False) from None


@contextmanager
def advised() -> Iterator[None]:
    """Turn an error of a plugin into the failure of a check that names the method."""
    try:
        yield
    except BrokenPluginError as error:
        fail(f"{error.message}.", error.hint or "Follow the docstring of the base class.")
    except Exception as error:  # noqa: BLE001 - a plugin can raise any error
        method, line = _locate(error)
        fail(
            f"{method} raised {type(error).__name__}: {error} ({line}).",
            "Make the method work in the case that the check's name describes. To refuse an "
            "input, raise a FusionError with a hint.",
        )


def _locate(error: Exception) -> tuple[str, str]:
    """Return the plugin's method that the suite called, and the line that raised the error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    plugin_frames = [
        (frame, line)
        for frame, line in frames
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_PLUGINS
    ]
    (called, _), (innermost, line) = (
        (plugin_frames[0], plugin_frames[-1]) if plugin_frames else (frames[-1], frames[-1])
    )
    return f"`{called.f_code.co_qualname}`", f"{Path(innermost.f_code.co_filename).name}:{line}"


class Suite:
    """Checks that a test class of a plugin inherits."""

    #: name of a check as pytest shows it, with or without parameters -> reason why it fails
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        checks = _checks(cls)
        for name in sorted(checks):
            owner = next(base for base in cls.__mro__ if name in vars(base))
            if owner not in _suite_bases(cls):
                raise TypeError(
                    f"{owner.__name__} overrides the check {name!r}, which must be the same for "
                    "every plugin. If your plugin cannot pass it, declare expected_failures = "
                    f"{{{name!r}: 'the reason'}}"
                )
        for name, reason in cls.expected_failures.items():
            _check_expectation(cls.__name__, name, reason, checks)

    @classmethod
    def has_check(cls, name: str) -> bool:
        """Tell whether a test is a check of a suite, not a test that an author added."""
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
    """Return the names of the checks that a suite inherits from this package."""
    bases = _suite_bases(suite)
    return {name for base in bases for name in vars(base) if name.startswith(_PREFIX)}


def _suite_bases(suite: type) -> list[type]:
    """Return the base classes of a suite that this package defines."""
    return [base for base in suite.__mro__ if base.__module__.startswith(f"{__package__}.")]


def _check_expectation(suite: str, name: str, reason: str, checks: set[str]) -> None:
    plain = name.partition("[")[0]
    if plain not in checks:
        guess = suggest(plain, checks)
        raise TypeError(
            f"unknown check in {suite}.expected_failures: {name!r}{guess and f'; {guess}'}"
        )
    if not reason.strip():
        raise TypeError(f"{suite}.expected_failures[{name!r}] lacks the reason why the check fails")
