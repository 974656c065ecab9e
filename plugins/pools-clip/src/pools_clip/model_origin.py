"""The origin of a CLIP model: a directory, or a repository on the hub.

The small files of a repository are downloaded at once, its weights when they are read. Some bases
of the families in `families.json` have no safetensors on their main revision. For these bases, the
hub's own conversion is read or, without one, the pickle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import find_model, hub
from fusion_core.errors import CheckpointError, HubError
from fusion_core.weights import RemoteSource, WeightSource
from pools_clip.families import bases
from pools_clip.pickle_source import PICKLE, PickleSource

if TYPE_CHECKING:
    from collections.abc import Callable

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Small files of a repository: configurations, tokenizer and the card, which names the licence.
_SIDE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "README.md",
)
_LOG = logging.getLogger("pools_clip")


@dataclass(frozen=True)
class ModelOrigin:
    """A model's directory of side files, its name, and its weights."""

    path: Path
    name: str
    #: opens the weights
    weights: Callable[[], WeightSource] = field(compare=False)
    #: the commit of a model on the hub
    pinned: hub.Reference | None = None


def find_origin(name: str, option: str) -> ModelOrigin:
    """Find a model by its path or hub id; `option` identifies it in errors.

    Raises `CheckpointError` if there is none, and the errors of `hub.download`.
    """
    path = Path(name)
    if path.is_dir():
        return ModelOrigin(path, name, find_model(name, option).open)
    if path.exists() or not hub.looks_like_id(name):
        raise CheckpointError(
            f"{option}: expected a directory: {name}",
            hint="Name a directory written by save_pretrained, or org/name@revision on the hub.",
        )
    reference = hub.parse(name)
    if reference.repo in bases():
        return _find_base(reference, option)
    model = find_model(name, option)
    location = model.location
    pinned = hub.parse(location.name) if hub.looks_like_id(location.name) else None
    return ModelOrigin(location.path, location.name, model.open, pinned)


def _find_base(reference: hub.Reference, option: str) -> ModelOrigin:
    """Find a family's base, whose weights may be a pickle."""
    try:
        pinned = hub.resolve(reference)
        if {_SINGLE, _INDEX} & hub.list_files(pinned).keys():
            model = find_model(str(pinned), option)
            return ModelOrigin(model.location.path, model.location.name, model.open, pinned)
        directory = hub.download(pinned, _SIDE_FILES)
        converted = hub.find_conversion(pinned)
    except HubError as error:
        raise HubError(f"{option}: {error.message}", hint=error.hint) from error
    if converted is not None:
        warn_once(f"{pinned} has no {_SINGLE}; reading the hub's own conversion, {converted}")
        return ModelOrigin(
            directory, str(pinned), lambda: RemoteSource(converted, [_SINGLE]), pinned
        )
    warn_once(f"{pinned} has no {_SINGLE}; reading {PICKLE}, a pickle, as plain tensors only")
    return ModelOrigin(directory, str(pinned), lambda: PickleSource(pinned), pinned)


@cache
def warn_once(message: str) -> None:
    """Log a warning once, however many pools open the model."""
    _LOG.warning(message)
