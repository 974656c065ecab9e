"""A tiny merge in three files, and the commands as users call them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))

from tiny_outputs import merge, read_statement, write_model, write_statement

from fusion_publish.locking.command import lock
from fusion_publish.reproduction.command import reproduce
from fusion_publish.signing.command import sign
from fusion_publish.verification.command import verify

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = {"verify": verify, "reproduce": reproduce, "lock": lock, "sign": sign}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Write a base and two experts."""
    names = ("base", "a", "b")
    return {name: str(write_model(tmp_path / "in" / name, seed)) for seed, name in enumerate(names)}


@pytest.fixture
def output(models: dict[str, str], tmp_path: Path) -> Path:
    """Merge two experts, as if measured and described by a card."""
    directory = merge(models, tmp_path / "out")
    (directory / "report.json").write_text('{"schema": 2, "average": 0.5}')
    statement = read_statement(directory)
    digest = hashlib.sha256((directory / "report.json").read_bytes()).hexdigest()
    statement["predicate"]["run"]["evaluation"] = {"files": {"report.json": digest}}
    write_statement(directory, statement)
    return directory


@pytest.fixture
def fuse() -> Callable[..., str]:
    """Return a function that runs a command of the plugin and returns its output."""

    def call(name: str, *arguments: object) -> str:
        app = typer.Typer()
        app.command()(COMMANDS[name])
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call
