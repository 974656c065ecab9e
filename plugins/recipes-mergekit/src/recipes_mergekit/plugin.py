"""Registers `fuse import` and the import of mergekit's files. Imports nothing heavy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LOG = logging.getLogger(__name__)


@hookimpl
def fusion_import_recipe(path: Path, text: str) -> Mapping[str, Any] | None:
    """Return the recipe of a file that holds a merge of mergekit, and log its warnings."""
    from recipes_mergekit.importing import import_text

    imported = import_text(text, str(path))
    if imported is None:
        return None
    for warning in imported.warnings:
        _LOG.warning("%s: %s", path, warning)
    return imported.recipe


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command."""
    yield CommandSpec(
        name="import",
        summary="Print the recipe of a configuration of mergekit.",
        target="recipes_mergekit.command:import_file",
    )
