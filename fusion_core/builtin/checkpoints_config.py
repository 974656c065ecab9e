"""The options of the pool `checkpoints`, free of torch so that listing them is cheap.

A text may be a path or a name on the hub. The pool finds out which when it looks for the model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
)

from fusion_core.contracts.options import (
    RECIPE_SUFFIXES,
    InputPath,
    model_path,
    name_after_paths,
    serialise_path,
)
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.paths import resolve_input_path


def _check_source(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - a path, or the caller's live model
    if _is_recipe(value):
        if info.context is None:
            raise ValueError("a recipe in the place of a model needs a run to merge it")
        return info.context(value if isinstance(value, Mapping) else resolve_input_path(value))
    if isinstance(value, str | os.PathLike):
        return model_path(value)
    if isinstance(value, Mapping) or callable(getattr(value, "state_dict", None)):
        return value
    raise ValueError("expected a path, a recipe, a state dict or a live model")


def _is_recipe(value: Any) -> bool:  # noqa: ANN401 - whatever a recipe holds
    """Tell whether a model is given by a recipe: a file, or a mapping."""
    if isinstance(value, str | os.PathLike):
        return Path(value).suffix in RECIPE_SUFFIXES
    return isinstance(value, Mapping) and not {"algorithm", "model_pool"}.isdisjoint(value)


def _describe_source(value: Any, info: SerializationInfo) -> Any:  # noqa: ANN401 - a path, or a recipe in full
    if isinstance(value, str):
        return serialise_path(value, info)
    if hasattr(value, "recipe_in"):
        return value.recipe_in(info.context)
    return f"<live {type(value).__name__}>"


_SOURCE = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["algorithm"]}]}
_MODELS_SCHEMA = {
    "anyOf": [
        {"type": "object", "additionalProperties": _SOURCE},
        {"type": "array", "items": _SOURCE},
    ]
}

Source = Annotated[
    Any,
    PlainValidator(_check_source),
    PlainSerializer(_describe_source),
    WithJsonSchema(_SOURCE),
]


#: Options that a recipe records only if they differ from their defaults.
_OMITTED = frozenset({"format", "side_files", "router", "map", "rest"})


class CheckpointsConfig(ComponentConfig):
    """A base and experts: paths, hub ids or recipes. From Python also live models, state dicts."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    base: Source | None = None
    """The model that the experts were fine-tuned from: a directory, a .safetensors file,
    org/name@revision on the hub, or a recipe (a .yaml file, or the recipe itself)."""
    models: Annotated[
        dict[str, Source], BeforeValidator(name_after_paths), WithJsonSchema(_MODELS_SCHEMA)
    ]
    """The experts: a list of models like the base, or a mapping of names to models. Adapters
    are allowed."""
    format: str | None = None
    """The format to use for models that several formats could read; see: fuse list formats"""
    side_files: InputPath | None = None
    """A directory with the models' config.json and tokenizer, for checkpoints that come without;
    default: each model's own directory."""

    router: Literal["merge", "base", "average"] = "merge"
    """Choose how the routers of mixtures of experts are merged: by the method (`merge`), copied
    from the base (`base`), or as the mean of the experts' (`average`)."""
    map: dict[str, dict[str, str]] = Field(default={})
    """Rename tensors of some models by patterns with one `*`, such as {math: {"model.*":
    "model.language_model.*"}}. `base` names the base."""
    rest: str | None = None
    """Merge a part of models: take the tensors that all other models lack, and all files next to
    the weights, from the model of this name (`base`, or one of models)."""

    @model_serializer(mode="wrap")
    def _omit_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        options: dict[str, Any] = serialise(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in options.items()
            if key not in _OMITTED or value != fields[key].default
        }
