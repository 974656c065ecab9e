"""Registers the import of mergekit's files. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.commands import ImportedRecipe


@hookimpl
def fusion_import_recipe(path: Path, text: str) -> ImportedRecipe | None:
    """Return the recipe of a file that holds a merge of mergekit."""
    from recipes_mergekit.importing import import_text

    return import_text(text, str(path))
