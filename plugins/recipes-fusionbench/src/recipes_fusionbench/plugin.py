"""Registers the import of FusionBench's files. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.commands import ImportedRecipe


@hookimpl
def fusion_import_recipe(path: Path, text: str, folder: Path | None) -> ImportedRecipe | None:
    """Return the recipe of a file that configures a fusion by FusionBench."""
    from recipes_fusionbench.importing import import_text

    return import_text(text, str(path), folder or path.parent)
