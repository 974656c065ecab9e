"""The options of the pool `checkpoints`; free of torch, so that listing them costs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from fusion_core.config import ComponentConfig


def _check_source(value: object) -> Any:  # noqa: ANN401 - a path, or the caller's live model
    if isinstance(value, str | os.PathLike):
        if not os.fspath(value):
            raise ValueError("an empty path")
        return os.fspath(value)
    if isinstance(value, Mapping) or hasattr(value, "state_dict"):
        return value
    raise ValueError("neither a path, a state dict nor a live model")


def _describe_source(value: object) -> str:
    return value if isinstance(value, str) else f"<live {type(value).__name__}>"


def named_after_paths(value: object) -> object:
    """Turn a list of models into a mapping, named after their paths."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    names = [
        Path(each).name.removesuffix(".safetensors")
        if isinstance(each, str | os.PathLike)
        else f"model-{number}"
        for number, each in enumerate(value, 1)
    ]
    if len(set(names)) != len(names):
        raise ValueError("two of the models have the same name; write {name: path, ...} instead")
    return dict(zip(names, value, strict=True))


Source = Annotated[
    Any,
    PlainValidator(_check_source),
    PlainSerializer(_describe_source),
    WithJsonSchema({"type": "string"}),
]


_PATH = {"type": "string"}
_MODELS_SCHEMA = {
    "anyOf": [
        {"type": "object", "additionalProperties": _PATH},
        {"type": "array", "items": _PATH},
    ]
}


class CheckpointsConfig(ComponentConfig):
    """A base and experts, each a path (or, from Python, a live module or state dict)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    base: Source | None = None
    """The model that the experts were fine-tuned from: a directory or a .safetensors file."""
    models: Annotated[
        dict[str, Source], BeforeValidator(named_after_paths), WithJsonSchema(_MODELS_SCHEMA)
    ]
    """The experts: a mapping of names to paths, or a list of paths."""
