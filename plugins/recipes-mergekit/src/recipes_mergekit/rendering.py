"""A recipe as YAML with comments that name the keys of mergekit's file."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes_mergekit.importing import Imported

_MAX_LINE = 80

#: Comments on options, by section and option.
_ORIGINS = {
    ("algorithm", "name"): "merge_method",
    ("algorithm", "weights"): "weight",
    ("algorithm", "scale"): "lambda",
    ("algorithm", "overrides"): "filters; the first match wins",
    ("algorithm", "by_depth"): "gradients and filters; the first match wins",
    ("algorithm", "scope"): "mergekit trims every tensor by itself",
    ("algorithm", "zero_sign"): "as mergekit",
    ("algorithm", "rescale"): "rescale",
    ("algorithm", "normalize"): "normalize",
    ("algorithm", "elect"): "the consensus of the method",
    ("algorithm", "mode"): "nuslerp_flatten, nuslerp_row_wise",
    ("algorithm", "iterations"): "max_iter",
    ("algorithm", "tolerance"): "tol",
    ("algorithm", "slices"): "slices",
    ("model_pool", "base"): "base_model",
    ("model_pool", "tokenizer"): "tokenizer_source, or tokenizer.source",
    ("model_pool", "tokens"): "tokenizer.tokens",
    ("model_pool", "chat_template"): "chat_template",
    ("output", "dtype"): "out_dtype, or else dtype; merges are computed in fp32",
    ("alignment", "config"): "mergekit does not compare configurations",
    ("alignment", "tokenizer"): "mergekit does not compare tokenizers",
    ("alignment", "outliers"): "a layer may move anywhere",
    ("alignment", "dtype"): "without a dtype mergekit promotes different ones",
}


def render(imported: Imported, origin: str, recipe: Mapping[str, Any] | None = None) -> str:
    """Return the recipe of a file as YAML. `origin` is the file's name."""
    tree = _comment(imported.recipe if recipe is None else recipe)
    header = [f"The recipe of {origin}, a configuration of mergekit."]
    header += [f"warning: {warning}" for warning in imported.warnings]
    tree.yaml_set_start_comment("\n".join(header))
    writer = YAML()
    writer.width = 2**16
    writer.representer.ignore_aliases = lambda _: True
    stream = StringIO()
    writer.dump(tree, stream)
    return stream.getvalue()


def move_paths(recipe: Mapping[str, Any], folder: os.PathLike[str]) -> dict[str, Any]:
    """Return a recipe whose relative model paths start in `folder` instead of the current one."""

    def move(model: object) -> object:
        if isinstance(model, dict):
            return move_paths(model, folder)
        if isinstance(model, str) and os.path.lexists(model) and not Path(model).is_absolute():
            return os.path.relpath(model, folder)
        return model

    pool = dict(recipe["model_pool"])
    if "base" in pool:
        pool["base"] = move(pool["base"])
    pool["models"] = {name: move(model) for name, model in pool["models"].items()}
    return {**recipe, "model_pool": pool}


def _comment(value: Any, path: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - YAML holds anything
    """Return data with comments. A short value below a section's options takes one line."""
    is_short = len(path) > 1 and len(json.dumps(value)) <= _MAX_LINE
    match value:
        case dict():
            tree = CommentedMap((key, _comment(item, (*path, key))) for key, item in value.items())
            if is_short:
                tree.fa.set_flow_style()
            for key in value:
                origin = _ORIGINS.get((*path, key))
                if origin is not None:
                    tree.yaml_add_eol_comment(origin, key)
            return tree
        case list():
            items = CommentedSeq(_comment(item, (*path, "")) for item in value)
            if is_short and not any(isinstance(item, dict) for item in value):
                items.fa.set_flow_style()
            return items
        case _:
            return value
