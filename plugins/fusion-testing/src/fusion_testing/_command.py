"""The suite of commands, each called as users call it, in a separate process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from fusion_testing._component import SpecSuite
from fusion_testing._packages import fail_if_heavy
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.specs import CommandSpec
    from fusion_core.plugins.components import Component

_USAGE = 2


class CommandSuite(SpecSuite):
    """Checks that every command must pass. Test the command's effects yourself."""

    def test_its_help_imports_nothing_heavy(self, spec: CommandSpec) -> None:
        """`fuse NAME --help` and the completion of its flags import the command's module."""
        module = spec.target.partition(":")[0]
        fail_if_heavy(
            module, f"`fuse {spec.name} --help`", "Import it inside the function that uses it."
        )

    def test_it_shows_its_help(self, component: Component[Any], tmp_path: Path) -> None:
        """`fuse NAME --help` exits with 0 and prints something."""
        done = _call(tmp_path, component.qualified_name, "--help")
        if done.returncode != 0 or not done.stdout.strip():
            fail(
                f"`fuse {component.spec.name} --help` exited with code {done.returncode}, expected "
                f"0 and a help text: {done.stderr}",
                f"Make {component.spec.target!r} a Typer app, or a function that Typer accepts.",
            )

    def test_an_unknown_flag_is_refused(self, component: Component[Any], tmp_path: Path) -> None:
        """A misspelled flag is a usage error, and never ignored."""
        done = _call(tmp_path, component.qualified_name, "--no-such-flag-here")
        if done.returncode != _USAGE:
            fail(
                f"`fuse {component.spec.name} --no-such-flag-here` exited with code "
                f"{done.returncode}, expected {_USAGE}.",
                "Do not set Typer's ignore_unknown_options.",
            )

    def test_its_name_is_not_the_cores(self, component: Component[Any], tmp_path: Path) -> None:
        """Commands of the core take precedence over a plugin's."""
        name = component.spec.name
        if f"command {name!r} is the core's own" in _call(tmp_path, "list-plugins", "-v").stdout:
            fail(
                f"the core has a command {name!r}; users would type {component.qualified_name!r}.",
                "Choose another name for the command.",
            )


def _call(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from fusion_core.cli.app import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
