"""The suite of commands: called as users call them, in processes of their own."""

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
    """What every command keeps; what it does is for its author's own tests."""

    def test_its_help_imports_nothing_heavy(self, spec: CommandSpec) -> None:
        """`fuse NAME --help` and the completion of its flags import the command's module."""
        module = spec.target.partition(":")[0]
        fail_if_heavy(
            module, f"`fuse {spec.name} --help`", "Import it inside the function, where it is used."
        )

    def test_it_shows_its_help(self, component: Component[Any], tmp_path: Path) -> None:
        """`fuse NAME --help` works by itself."""
        done = _called(tmp_path, component.qualified_name, "--help")
        if done.returncode != 0 or not done.stdout.strip():
            fail(
                f"`fuse {component.spec.name} --help` ended with {done.returncode}: {done.stderr}",
                f"Let {component.spec.target!r} be a function as Typer takes it, or a Typer app.",
            )

    def test_an_unknown_flag_is_refused(self, component: Component[Any], tmp_path: Path) -> None:
        """A misspelled flag is an error of usage, never a run with another meaning."""
        done = _called(tmp_path, component.qualified_name, "--a-flag-of-nobody")
        if done.returncode != _USAGE:
            fail(
                f"`fuse {component.spec.name} --a-flag-of-nobody` ended with {done.returncode}.",
                "Leave typer's ignore_unknown_options off.",
            )

    def test_its_name_is_not_the_cores(self, component: Component[Any], tmp_path: Path) -> None:
        """A name of the core's is always the core's command."""
        name = component.spec.name
        if f"command {name!r} is the core's own" in _called(tmp_path, "list-plugins", "-v").stdout:
            fail(
                f"{name!r} is a command of the core, so yours is {component.qualified_name!r}.",
                "Choose another name.",
            )


def _called(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from fusion_core.cli.app import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
