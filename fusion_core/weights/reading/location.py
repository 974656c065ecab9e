"""Where a model is: a path on this machine, or a repository on the hub.

What exists as a path is a path; otherwise what looks like `org/name` is asked of the hub. Of a
repository only what a merge needs is downloaded: the files beside the weights at once, the
safetensors files of its index when they are read. Knows files' names, not what is in them, the
index excepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import CheckpointError, HubError
from fusion_core.shown import close_to
from fusion_core.weights.reading._foreign import no_model
from fusion_core.weights.reading.assets import CARD, SIDE_FILES
from fusion_core.weights.reading.checkpoint import INDEX, SINGLE, CheckpointSource
from fusion_core.weights.reading.containment import reading
from fusion_core.weights.reading.format import LARGEST_INDEX, parse_index
from fusion_core.weights.reading.remote import RemoteSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: A folder of more files than this is not a place to look for what was meant.
_MOST_NEIGHBOURS = 1000
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Location:
    """A model's directory or file, and what to call it: the path, or `org/name@commit`."""

    path: Path
    name: str
    #: the commit, for a model on the hub
    pinned: hub.Reference | None = None
    #: weights that are still there
    remote: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """Return the directory whose other files belong to the model."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def is_adapter(self) -> bool:
        """Whether this is a PEFT adapter, which has a base but is not a model."""
        with reading(self.path):
            whole = self.remote or (self.path / SINGLE).is_file() or (self.path / INDEX).is_file()
            return not whole and (self.path / ADAPTER_CONFIG).is_file()

    def names(self) -> list[str]:
        """Return the files of the model's directory, those in its folders by `folder/name`."""
        if self.pinned is not None:
            return sorted(hub.listing(self.pinned))
        with reading(self.directory):
            found = (*self.directory.glob("*"), *self.directory.glob("*/*"))
            inner = (path.relative_to(self.directory) for path in found if path.is_file())
            return sorted(each.as_posix() for each in inner)

    def source(self) -> CheckpointSource | RemoteSource:
        """Return the weights of a model."""
        if self.pinned is not None and self.remote:
            return RemoteSource(self.pinned, self.remote)
        return CheckpointSource(self.path, name=self.name)


def locate(given: str, option: str, *more: str) -> Location:
    """Find a model by its path or its name on the hub; `option` names it in errors.

    Of a repository, files that match patterns in `more` are wanted beside the usual ones.

    Raises `CheckpointError` if it is neither, and what `hub.download` raises.
    """
    path = Path(given)
    with reading(path):
        is_here = path.exists()
    if is_here:
        return Location(path, given)
    close = _close_to(path)
    meant = None if close is None else f"Did you mean {close}?"
    if not hub.looks_like_id(given):
        usual = "Give a directory, a .safetensors file, or org/name@revision for the hub."
        raise CheckpointError(f"{option}: {given} does not exist", hint=meant or usual)
    try:
        return _on_hub(hub.resolve(hub.parse(given)), more)
    except HubError as error:
        meant = f" ({meant[0].lower()}{meant[1:]})" if meant else ""
        message = f"{option}: {given} does not exist here{meant}, and as a name on the hub: "
        raise HubError(message + error.message, hint=error.hint) from error


def _close_to(path: Path) -> Path | None:
    """Return what lies here under nearly the same name."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        try:
            entries = [] if (found / part).exists() else islice(found.iterdir(), _MOST_NEIGHBOURS)
            near = close_to(part, [each.name for each in entries], cutoff=0.75)
        except OSError:
            return None
        if not near and not (found / part).exists():
            return None
        found /= near[0] if near else part
    return found


def _on_hub(pinned: hub.Reference, more: Sequence[str]) -> Location:
    """Download what lies beside a repository's weights, and an adapter's weights."""
    listing = hub.listing(pinned)
    weights = _weights(pinned, listing)
    beside = [*SIDE_FILES, *more, CARD, INDEX, ADAPTER_CONFIG]
    if weights == [ADAPTER]:
        return Location(hub.download(pinned, [*beside, ADAPTER]), str(pinned))
    path = hub.download(pinned, beside)
    missing = any(not (path / name).is_file() for name in weights)
    return Location(path, str(pinned), pinned, tuple(weights) if missing else ())


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
    raise no_model(
        str(pinned),
        f"has neither {SINGLE} nor {INDEX} nor {ADAPTER}",
        listing,
        f"Download the file and name it: hf download {pinned.repo} ",
    )
