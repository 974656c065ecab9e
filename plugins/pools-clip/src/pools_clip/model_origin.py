"""Where a CLIP model is: a directory, or a repository on the hub.

Of a repository the small files are downloaded at once, the weights when they are read. The bases of
the families in `families.json` may be read from a pickle, the only file that some of them have:
safetensors on their main revision come first, then the hub's own conversion, then the pickle.
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
from pools_clip.pickled import PICKLE, PickledSource

if TYPE_CHECKING:
    from collections.abc import Callable

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: What is read of a repository beside its weights: configurations, tokenizer, the licence.
_BESIDE = (
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
class Origin:
    """A model's directory of small files, what to call it, and its weights."""

    path: Path
    name: str
    #: opens the weights
    weights: Callable[[], WeightSource] = field(compare=False)
    #: the commit, for a model on the hub
    pinned: hub.Reference | None = None


def find(given: str, option: str) -> Origin:
    """Find what a model's name stands for; `option` names it in errors.

    Raises `CheckpointError` if there is none, and what `hub.download` raises.
    """
    path = Path(given)
    if path.is_dir():
        return Origin(path, given, find_model(given, option).open)
    if path.exists() or not hub.looks_like_id(given):
        raise CheckpointError(
            f"{option}: {given} is not a directory",
            hint="Give the directory that save_pretrained wrote, or org/name@revision on the hub.",
        )
    reference = hub.parse(given)
    if reference.repo in bases():
        return _base(reference, option)
    found = find_model(given, option)
    location = found.location
    return Origin(location.path, location.name, found.open, _pinned(location.name))


def _base(reference: hub.Reference, option: str) -> Origin:
    """Find a family's base, whose weights may be a pickle."""
    try:
        pinned = hub.resolve(reference)
        if {_SINGLE, _INDEX} & hub.listing(pinned).keys():
            found = find_model(str(pinned), option)
            return Origin(found.location.path, found.location.name, found.open, pinned)
        beside = hub.download(pinned, _BESIDE)
        converted = hub.conversion(pinned)
    except HubError as error:
        raise HubError(f"{option}: {error.message}", hint=error.hint) from error
    if converted is not None:
        say_once(f"{pinned} has no {_SINGLE}; reading the hub's own conversion, {converted}")
        return Origin(beside, str(pinned), lambda: RemoteSource(converted, [_SINGLE]), pinned)
    say_once(f"{pinned} has no {_SINGLE}; reading {PICKLE}, a pickle, as plain tensors only")
    return Origin(beside, str(pinned), lambda: PickledSource(pinned), pinned)


def _pinned(name: str) -> hub.Reference | None:
    return hub.parse(name) if hub.looks_like_id(name) else None


@cache
def say_once(line: str) -> None:
    """Say something once, however many pools open the model."""
    _LOG.warning(line)
