"""Merges of models with several modules, such as a text decoder and a vision tower."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recipes_mergekit.merge import Merge
from recipes_mergekit.models import UNCHECKED, Models

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The modules of mergekit's architectures, with patterns on their tensors' names. The first match
#: counts. The last module has all other tensors.
_MODULES: tuple[dict[str, list[str]], ...] = (
    {
        "multi_modal_projector": [
            *("*multi_modal_projector.*", "*visual.merger.*", "*visual.deepstack_merger_list.*"),
        ],
        "vision_tower": ["*vision_tower.*", "*visual.*"],
        "text_decoder": [],
    },
    {
        "multi_modal_projector": ["*multi_modal_projector.*"],
        "vision_model": ["*vision_model.*"],
        "text_decoder": [],
    },
    {"encoder": ["encoder.*"], "decoder": ["decoder.*"], "shared": []},
)


class ModularMerge(Merge):
    """Turns a configuration of modules into a recipe with one nested recipe per module."""

    def make_recipe(self) -> dict[str, Any]:
        """Return the recipe. It is incomplete if there are problems."""
        modules = self._find_modules()
        if modules is None:
            return {}
        self._refuse_tokens()
        recipes = {name: self._merge_module(name) for name in modules}
        output = next(iter(recipes.values())).get("output")
        nested = {
            name: {key: value for key, value in recipe.items() if key != "output"}
            for name, recipe in recipes.items()
        }
        *others, rest = modules
        overrides = [
            {"match": modules[name], "unmatched": "warn", "model": name} for name in others
        ]
        base = self.configuration.base
        models = Models(self.documents)
        return {
            "algorithm": {"name": "passthrough", "model": rest, "overrides": overrides},
            "model_pool": {
                **({} if base is None else {"base": models.locate(base)}),
                "models": nested,
            },
            **({} if output is None else {"output": output}),
            "alignment": dict(UNCHECKED),
        }

    def _find_modules(self) -> Mapping[str, list[str]] | None:
        given = self.configuration.modules
        for modules in _MODULES:
            if modules.keys() == given.keys():
                return modules
        known = "; ".join(", ".join(modules) for modules in _MODULES)
        reason = f"expected all modules of an architecture ({known}), got {', '.join(given)}"
        self._refuse("modules", reason)
        return None

    def _refuse_tokens(self) -> None:
        reason = "is not combined with modules; the result has the base's files"
        if self.configuration.tokens is not None:
            self.findings.refuse(self.configuration.tokens.key, reason)
        if self.configuration.chat_template is not None:
            self._refuse("chat_template", reason)

    def _merge_module(self, name: str) -> dict[str, Any]:
        """Return the merge of a module's models. The recipe takes only the module from it."""
        module = self.configuration.modules[name]
        alone = replace(
            self.configuration, slices=(module,), modules={}, tokens=None, chat_template=None
        )
        return Merge(alone, self.documents, self.findings).make_recipe()
