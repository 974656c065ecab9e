"""Types of options that name files, directories, or models on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
)

from fusion_core.hub.reference import looks_like_id, parse
from fusion_core.recipe.config import LIVE, _if_path
from fusion_core.recipe.paths import make_portable, resolve_input_path, resolve_path

#: The suffixes of recipe files, which may be given in place of a model.
RECIPE_SUFFIXES = (".yaml", ".yml")


def model_path(value: str | os.PathLike[str]) -> str:
    """Return the path of a model, or its hub id if nothing exists at that path."""
    path = resolve_input_path(value)
    return path if os.path.lexists(path) or not looks_like_id(os.fspath(value)) else str(value)


def serialise_path(path: str, info: SerializationInfo) -> str:
    """Return a path, relative to the recipe's folder in `info.context` if possible, or a hub id."""
    return make_portable(path, info.context) if os.path.lexists(path) else path


def name_after_paths(value: object) -> object:
    """Turn a list of models into a mapping named after their paths or hub ids, less revisions."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError("expected a mapping of names to models, or a list of models")  # noqa: TRY004 - pydantic wants it
    names = [
        _name_of(os.fspath(model)) if isinstance(model, str | os.PathLike) else f"model-{number}"
        for number, model in enumerate(value, 1)
    ]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(
            f"two of the models have the same name, {duplicate}; write {{name: path, ...}} instead"
        )
    return dict(zip(names, value, strict=True))


def _name_of(model: str) -> str:
    # `os.path.exists` is False for an unreadable path, where `Path.exists` would raise; the pool
    # reports such a path with the option's name.
    if looks_like_id(model) and not os.path.exists(resolve_path(model)):  # noqa: PTH110
        model = parse(model).repo
    path = Path(model)
    return path.stem if path.suffix in {".safetensors", *RECIPE_SUFFIXES} else path.name


def _check_model(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - a path, or the caller's live model
    if _is_recipe(value):
        if info.context is None:
            raise ValueError("expected a model, got a recipe, which needs a run to merge it")
        return info.context(value if isinstance(value, Mapping) else resolve_input_path(value))
    if isinstance(value, str) and value.startswith(LIVE):
        raise ValueError(
            "expected a path: the program that wrote this recipe had the model in memory, not in "
            "a file"
        )
    if isinstance(value, str | os.PathLike):
        return model_path(value)
    if isinstance(value, Mapping) and value and all(isinstance(v, str) for v in value.values()):
        raise ValueError(
            f"expected a path, got {dict(value)!r}: a name with a dot goes in double quotes, as "
            """in --set 'SECTION."a.b"=VALUE'"""
        )
    if isinstance(value, Mapping) or callable(getattr(value, "state_dict", None)):
        return value
    raise ValueError("expected a path, a recipe, a state dict or a live model")


def _is_recipe(value: Any) -> bool:  # noqa: ANN401 - whatever a recipe holds
    """Tell whether a model is given by a recipe: a file, or a mapping."""
    if isinstance(value, str | os.PathLike):
        return Path(value).suffix in RECIPE_SUFFIXES
    return isinstance(value, Mapping) and not {"algorithm", "model_pool"}.isdisjoint(value)


def _serialise_model(value: Any, info: SerializationInfo) -> Any:  # noqa: ANN401 - a path, or a recipe in full
    if isinstance(value, str):
        return serialise_path(value, info)
    if hasattr(value, "recipe_in"):
        return value.recipe_in(info.context)
    return f"{LIVE}{type(value).__name__}>"


_ANY_MODEL = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["algorithm"]}]}
_ANY_MODELS = {
    "anyOf": [
        {"type": "object", "additionalProperties": _ANY_MODEL},
        {"type": "array", "items": _ANY_MODEL},
    ]
}

#: The path of an input file or directory; a relative path in a recipe starts in its folder.
InputPath = Annotated[str, _if_path(resolve_input_path), PlainSerializer(serialise_path)]


#: An input model: a path, or `org/name@revision` on the hub.
ModelPath = Annotated[str, _if_path(model_path), PlainSerializer(serialise_path)]


#: Input models by name; a list is named after its paths or hub ids.
ModelPaths = Annotated[dict[str, ModelPath], BeforeValidator(name_after_paths)]


#: A model of any kind: a path, a name on the hub, a recipe, which becomes a `RecipeSource`, or from
#: Python a state dict or a live model.
AnyModel = Annotated[
    Any,
    PlainValidator(_check_model),
    PlainSerializer(_serialise_model),
    WithJsonSchema(_ANY_MODEL),
]


#: Models of any kind by name; a list is named after its paths or hub ids.
AnyModels = Annotated[
    dict[str, AnyModel], BeforeValidator(name_after_paths), WithJsonSchema(_ANY_MODELS)
]
