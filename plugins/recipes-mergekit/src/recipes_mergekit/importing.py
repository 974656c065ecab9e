"""The import of a file: its documents, which may name each other, as one recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.commands import (
    ImportedRecipe,
    format_value,
    load_documents,
)
from fusion_core.errors import RecipeError
from recipes_import import ImportFindings
from recipes_mergekit.comments import COMMENTS
from recipes_mergekit.merge import Merge
from recipes_mergekit.modules import ModularMerge
from recipes_mergekit.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recipes_mergekit.configuration import Configuration

_MERGE = "merge_method"
_PAGE = "docs/how-to/port-from-mergekit.md"
#: A merge that several others use is a part of each.
_MAX_MERGES = 64


def import_text(text: str, origin: str) -> ImportedRecipe | None:
    """Return the recipe of a file of mergekit; None for other files. `origin` names the file.

    Raises `RecipeError` with one line for everything that a recipe cannot express, and for a file
    of mergekit-moe.
    """
    documents = load_documents(text, origin=origin)
    mappings = [document for document in documents if isinstance(document, dict)]
    if any({"experts", "base_model"} <= document.keys() for document in mappings):
        raise RecipeError(
            f"{origin}: a file of mergekit-moe, which has no merge_method",
            hint=f"Write a recipe of the algorithm moe: {_PAGE} lists its options.",
        )
    if not any(_MERGE in document for document in mappings):
        return None
    findings = ImportFindings()
    recipe = _File(documents, findings).make_recipe()
    findings.raise_problems(origin, _PAGE)
    return ImportedRecipe("mergekit", recipe, findings.warnings, COMMENTS)


@dataclass
class _File:
    """The documents of a file, and the recipes of those that others use."""

    documents: Sequence[Any]
    findings: ImportFindings
    merges: dict[str, Configuration] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: the number of merges in each recipe, with those that it uses
    sizes: dict[str, int] = field(default_factory=dict)

    def make_recipe(self) -> dict[str, Any]:
        """Return the recipe of the document whose result no other document uses."""
        for number, document in enumerate(self.documents, 1):
            self._read(document, f"document {number}: " if len(self.documents) > 1 else "")
        if len(self.merges) < len(self.documents):
            return {}
        used = {name for merge in self.merges.values() for name in self._uses(merge)}
        final = [name for name in self.merges if name not in used]
        if len(final) != 1:
            names = ", ".join(name or "without a name" for name in final) or "none"
            reason = f"expected one merge that no other document uses, got {names}"
            self.findings.refuse("documents", reason)
            return {}
        return self._make(final[0], ())

    def _read(self, document: object, prefix: str) -> None:
        if not isinstance(document, dict):
            reason = f"expected a mapping, got {format_value(document)}"
            self.findings.refuse(f"{prefix}content", reason)
            return
        name = document.get("name", "") if len(self.documents) > 1 else ""
        if not isinstance(name, str) or name in self.merges:
            self.findings.refuse(f"{prefix}name", "expected a name that no other document has")
            return
        keys = {str(key): value for key, value in document.items()}
        configuration = Reader(self.findings, prefix).read(keys)
        if configuration is not None:
            self.merges[name] = configuration

    def _uses(self, merge: Configuration) -> list[str]:
        """Return the names of the documents that a merge uses."""
        sources = (source.model for part in merge.parts for source in part.sources)
        models = [merge.base, *(part.base for part in merge.parts), *sources]
        paths = dict.fromkeys(model.path for model in models if model is not None)
        return [path for path in paths if path and path in self.merges]

    def _make(self, name: str, above: tuple[str, ...]) -> dict[str, Any]:
        """Return the recipe of a document; `above` are the documents that use it."""
        if name in above:
            cycle = " -> ".join([*above[above.index(name) :], name])
            self.findings.refuse("documents", f"merges need each other: {cycle}")
            return {}
        if name not in self.recipes:
            merge, recipe = self.merges[name], {}
            for used in self._uses(merge):
                self._make(used, (*above, name))
            self.sizes[name] = 1 + sum(self.sizes.get(used, 0) for used in self._uses(merge))
            if self.sizes[name] > _MAX_MERGES:
                self.findings.refuse("documents", f"more than {_MAX_MERGES} nested merges")
            else:
                kind = ModularMerge if merge.modules else Merge
                recipe = kind(merge, self.recipes, self.findings).make_recipe()
            self.recipes[name] = recipe
        return self.recipes[name]
