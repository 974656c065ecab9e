"""Recipe files: this program's own, and those of other tools that plugins import."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.plugins.manager import active_plugins
from fusion_core.recipe.config import Recipe
from fusion_core.recipe.text import check_sections, load_documents, read_recipe_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.imported import ImportedRecipe
    from fusion_core.plugins.manager import PluginManager

_LOG = logging.getLogger(__name__)


def load_recipe(path: str | Path, plugins: PluginManager | None = None) -> dict[str, Any]:
    """Read a recipe file. The run validates it, after flags have overridden it.

    Relative paths in it start in its own folder (`recipe.paths`). A file with keys that no recipe
    has may be another tool's: the plugins are asked, those of the current run by default, and
    relative paths then start where that tool starts them, and what has no effect is logged. Raises
    `RecipeError` if the file is missing, is not YAML, or is not a mapping, and what a plugin raises
    for a file of its tool.
    """
    path = Path(path)
    text = read_recipe_text(path)
    documents = load_documents(text, origin=str(path))
    if _is_foreign(documents):
        imported = (plugins or active_plugins()).import_recipe(path, text)
        if imported is not None:
            for warning in imported.warnings:
                _LOG.warning("%s: %s", path, warning)
            return dict(imported.recipe)
    return check_sections(documents, path)


def import_file(
    path: Path, plugins: PluginManager, folder: Path | None = None
) -> ImportedRecipe | None:
    """Return the recipe that another tool's file stands for, with comments; None for other files.

    Files that it names lie in `folder`; by default beside it. Raises as `load_recipe` does.
    """
    text = read_recipe_text(path)
    is_foreign = _is_foreign(load_documents(text, origin=str(path)))
    return plugins.import_recipe(path, text, folder) if is_foreign else None


def _is_foreign(documents: Sequence[Any]) -> bool:
    """Return whether a file may be another tool's: several documents, or keys of no recipe."""
    return len(documents) > 1 or any(
        isinstance(document, dict)
        and "algorithm" not in document
        and not document.keys() <= Recipe.model_fields.keys()
        for document in documents
    )
