"""Where a model is: a path on this machine, or a repository on the hub.

What exists as a path is a path; otherwise what looks like `org/name` is asked of the hub. Of a
repository only what a merge needs is downloaded: the safetensors files of its index, and the files
beside them. Knows files' names, not what is in them, the index excepted.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import CheckpointError, HubError
from fusion_core.weights.assets import CARD, SIDE_FILES
from fusion_core.weights.checkpoint import INDEX, SINGLE
from fusion_core.weights.format import LARGEST_INDEX, parse_index

if TYPE_CHECKING:
    from collections.abc import Mapping

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Location:
    """A model's directory or file, and what to call it: the path, or `org/name@commit`."""

    path: Path
    name: str

    @property
    def directory(self) -> Path:
        """Return the directory whose other files belong to the model."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def is_adapter(self) -> bool:
        """Whether this is a PEFT adapter, which has a base but is no model."""
        whole = (self.path / SINGLE).is_file() or (self.path / INDEX).is_file()
        return not whole and (self.path / ADAPTER_CONFIG).is_file()


def locate(given: str, option: str) -> Location:
    """Find a model by its path or its name on the hub; `option` names it in errors.

    Raises `CheckpointError` if it is neither, and what `hub.download` raises.
    """
    path = Path(given)
    if path.exists():
        return Location(path, given)
    if not hub.looks_like_id(given):
        raise CheckpointError(
            f"{option}: {given} does not exist",
            hint="Give a directory, a .safetensors file, or org/name@revision for the hub.",
        )
    try:
        pinned = hub.resolve(hub.parse(given))
        return Location(_downloaded(pinned), str(pinned))
    except HubError as error:
        message = f"{option}: {given} is no path here, and as a name on the hub: {error.message}"
        raise HubError(message, hint=error.hint) from error


def _downloaded(pinned: hub.Reference) -> Path:
    """Download what a merge needs of a repository."""
    listing = hub.listing(pinned)
    beside = [*SIDE_FILES, CARD, INDEX, ADAPTER_CONFIG]
    weights = _weights(pinned, listing)
    return hub.download(pinned, [*beside, *map(glob.escape, weights)])


def _weights(pinned: hub.Reference, listing: Mapping[str, int]) -> list[str]:
    """Return the files that hold a repository's weights."""
    if INDEX in listing:
        path = hub.files(pinned, [INDEX]) / INDEX
        with path.open("rb") as stream:
            index = parse_index(stream.read(LARGEST_INDEX + 1), path=f"{pinned}: {INDEX}")
        return list(dict.fromkeys(index.values()))
    for name in (SINGLE, ADAPTER):
        if name in listing:
            return [name]
    pickles = sorted(path for path in listing if path.endswith((".bin", ".pt", ".pth")))
    also = f"; it has {pickles[0]}, a pickle, which can run code" if pickles else ""
    raise CheckpointError(
        f"{pinned} has neither {SINGLE} nor {INDEX} nor {ADAPTER}{also}",
        hint="Convert it with transformers: from_pretrained, then save_pretrained(DIRECTORY). "
        "The hub's own conversion may be a revision: org/name@refs/pr/NUMBER.",
    )
