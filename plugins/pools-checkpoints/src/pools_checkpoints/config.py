"""The options of the pool `checkpoints`, free of torch so that listing them is cheap.

A text may be a path or a name on the hub. The pool finds out which when it looks for the model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fusion_core import AnyModel, AnyModels, ComponentConfig, InputPath

#: Options that a recipe records only if they differ from their defaults.
_OMITTED = frozenset({"format", "side_files", "router", "map", "rest"})


class CheckpointsConfig(ComponentConfig):
    """A base and experts: paths, hub ids or recipes. From Python also live models, state dicts."""

    base: AnyModel | None = None
    """The model that the experts were fine-tuned from: a directory, a .safetensors file,
    org/name@revision on the hub, or a recipe (a .yaml file, or the recipe itself)."""
    models: AnyModels
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
