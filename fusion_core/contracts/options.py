"""Options that name what is read: files, directories, models on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, SerializationInfo

from fusion_core.hub.reference import looks_like_id, parse
from fusion_core.recipe.config import _if_path
from fusion_core.recipe.paths import input_path, path_of, portable

#: How the file of a recipe is called that stands in the place of a model.
RECIPES = (".yaml", ".yml")


def model_path(value: str | os.PathLike[str]) -> str:
    """Return where the path of a model leads, or its name on the hub where it is not there."""
    path = input_path(value)
    return path if os.path.lexists(path) or not looks_like_id(os.fspath(value)) else str(value)


def as_written(path: str, info: SerializationInfo) -> str:
    """Return a path, or a name on the hub, as a recipe in `info.context` names it."""
    return portable(path, info.context) if os.path.lexists(path) else path


def _name_of(given: str) -> str:
    # A path that nobody may look at is not an error yet: the pool says so, with the option's name.
    if looks_like_id(given) and not os.path.exists(path_of(given)):  # noqa: PTH110 - Path's would raise
        given = parse(given).repo
    path = Path(given)
    return path.stem if path.suffix in {".safetensors", *RECIPES} else path.name


def named_after_paths(value: object) -> object:
    """Turn a list of models into a mapping, named after their paths, hub ids without revision."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError("expected a mapping of names to models, or a list of models")  # noqa: TRY004 - pydantic wants it
    names = [
        _name_of(each if isinstance(each, str) else os.fspath(each))
        if isinstance(each, str | os.PathLike)
        else f"model-{number}"
        for number, each in enumerate(value, 1)
    ]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise ValueError(
            f"two of the models have the same name, {twice}; write {{name: path, ...}} instead"
        )
    return dict(zip(names, value, strict=True))


#: A file or directory that is read: where recipes name it by a relative path, from their folder on.
InputPath = Annotated[str, _if_path(input_path), PlainSerializer(as_written)]


#: A model that is read: a path, or `org/name@revision` on the hub.
ModelPath = Annotated[str, _if_path(model_path), PlainSerializer(as_written)]


#: Models that are read, by name; a list is named after its paths, or names on the hub.
ModelPaths = Annotated[dict[str, ModelPath], BeforeValidator(named_after_paths)]
