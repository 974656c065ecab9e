"""Options that name what is read: files, directories, models on the hub."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import PlainSerializer, SerializationInfo

from fusion_core.hub.reference import looks_like_id
from fusion_core.recipe.config import _if_path
from fusion_core.recipe.paths import input_path, portable


def model_path(value: str | os.PathLike[str]) -> str:
    """Return where the path of a model leads, or its name on the hub where it is not there."""
    path = input_path(value)
    return path if os.path.lexists(path) or not looks_like_id(os.fspath(value)) else str(value)


def as_written(path: str, info: SerializationInfo) -> str:
    """Return a path, or a name on the hub, as a recipe in `info.context` names it."""
    return portable(path, info.context) if os.path.lexists(path) else path


#: A file or directory that is read: where recipes name it by a relative path, from their folder on.
InputPath = Annotated[str, _if_path(input_path), PlainSerializer(as_written)]


#: A model that is read: a path, or `org/name@revision` on the hub.
ModelPath = Annotated[str, _if_path(model_path), PlainSerializer(as_written)]
