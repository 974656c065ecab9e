"""An imported recipe as YAML, with comments that name the keys of the other tool's file."""

from __future__ import annotations

import json
import os
from io import StringIO
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.commands import ImportedRecipe

_MAX_LINE = 80
#: Options of pools that hold a path, or models by name.
_INPUTS = ("base", "models", "clip", "include_path")


def render(imported: ImportedRecipe, recipe: Mapping[str, Any], origin: str) -> str:
    """Return a recipe as YAML with the comments of an import. `origin` is the file's name."""
    tree = _comment(recipe, imported.comments)
    header = [f"The recipe of {origin}, a configuration of {imported.tool}."]
    header += [f"warning: {warning}" for warning in imported.warnings]
    tree.yaml_set_start_comment("\n".join(header))
    writer = YAML()
    writer.width = 2**16
    writer.representer.ignore_aliases = lambda _: True
    stream = StringIO()
    writer.dump(tree, stream)
    return stream.getvalue()


def move_paths(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe whose relative paths start in `folder` instead of the current one.

    An input that does not exist is an id on the hub. A section may be short, as in any recipe: the
    name of a pool, or the path of the output.
    """
    moved = dict(recipe)
    for section in ("model_pool", "task_pool"):
        if isinstance(recipe.get(section), dict):
            moved[section] = {
                option: _move_inputs(value, folder) if option in _INPUTS else value
                for option, value in recipe[section].items()
            }
    match recipe.get("output"):
        case str(path):
            moved["output"] = _move(path, folder)
        case dict(output) if "path" in output:
            moved["output"] = {**output, "path": _move(output["path"], folder)}
    return moved


def _move_inputs(value: Any, folder: Path) -> Any:  # noqa: ANN401 - YAML holds anything
    """Return a path, a recipe instead of a model, or several of them, with paths moved."""
    match value:
        case {"algorithm": _, "model_pool": _}:
            return move_paths(value, folder)
        case dict():
            return {name: _move_inputs(model, folder) for name, model in value.items()}
        case list():
            return [_move_inputs(model, folder) for model in value]
        case str() if os.path.lexists(value):
            return _move(value, folder)
        case _:
            return value


def _move(path: str, folder: Path) -> str:
    is_fixed = os.path.isabs(path) or path.startswith("~")  # noqa: PTH117 - a text
    return path if is_fixed else os.path.relpath(path, folder.resolve())


def _comment(
    value: Any,  # noqa: ANN401 - YAML holds anything
    comments: Mapping[tuple[str, ...], str],
    path: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401
    """Return data with comments. A short value below a section's options takes one line."""
    is_short = len(path) > 1 and len(json.dumps(value)) <= _MAX_LINE
    match value:
        case dict():
            tree = CommentedMap(
                (key, _comment(item, comments, (*path, key))) for key, item in value.items()
            )
            if is_short:
                tree.fa.set_flow_style()
            for key in value:
                comment = comments.get((*path, key))
                if comment is not None:
                    tree.yaml_add_eol_comment(comment, key)
            return tree
        case list():
            items = CommentedSeq(_comment(item, comments, (*path, "")) for item in value)
            if is_short and not any(isinstance(item, dict) for item in value):
                items.fa.set_flow_style()
            return items
        case _:
            return value
