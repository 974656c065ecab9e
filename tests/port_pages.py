"""The how-to pages for users of other tools: pairs of a configuration and its recipe, commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from fusion_core.cli.app import app
from fusion_core.commands import load_recipe, load_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"


def read_page(name: str) -> str:
    return (HOW_TO / name).read_text(encoding="utf-8")


def pairs_of(page: str) -> dict[str, list[str]]:
    """Return the configuration and the recipe below each title."""
    pairs = re.findall(
        r"^### (.*)\n\n```yaml\n([^`]*)```\n\n```yaml\n([^`]*)```", page, re.MULTILINE
    )
    return {title: pair for title, *pair in pairs}


def check_import(pair: Sequence[str], path: Path) -> None:
    """Write a pair's configuration, and compare its import with the pair's recipe."""
    configuration, recipe = pair
    path.write_text(configuration)
    assert load_recipe(path) == load_yaml(recipe, origin="page")


def run_commands(page: str) -> None:
    """Run the two commands of a page in the working directory: a run, and an import."""
    commands = re.findall(r"^\$ (.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.exception)
