"""Where a model is: a path on this machine, or a repository on the hub.

What exists as a path is a path; otherwise what looks like `org/name` is asked of the hub. Of a
repository only what a merge needs is downloaded: the files beside the weights at once, the
safetensors files of its index when they are read, those of other formats when they are opened.
Knows files' names, not what is in them, the index excepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import CheckpointError, HubError
from fusion_core.shown import close_to
from fusion_core.weights.reading._foreign import no_model
from fusion_core.weights.reading.assets import CARD, SIDE_FILES
from fusion_core.weights.reading.containment import member, reading
from fusion_core.weights.reading.format import LARGEST_INDEX, parse_index

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: A folder of more files than this is not a place to look for what was meant.
_MOST_NEIGHBOURS = 1000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Location:
    """A model's directory or file, and what to call it: the path, or `org/name@commit`."""

    path: Path
    name: str
    #: the commit, for a model on the hub
    pinned: hub.Reference | None = None
    #: safetensors files that are still there
    remote: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """Return the directory whose other files belong to the model."""
        return self.path if self.path.is_dir() else self.path.parent

    def names(self) -> list[str]:
        """Return the files of the model's directory, those in its folders by `folder/name`."""
        if self.pinned is not None:
            return sorted(hub.listing(self.pinned))
        with reading(self.directory):
            found = (*self.directory.glob("*"), *self.directory.glob("*/*"))
            inner = (path.relative_to(self.directory) for path in found if path.is_file())
            return sorted(each.as_posix() for each in inner)

    def matching(self, pattern: str) -> list[str]:
        """Return the model's files whose names match a pattern such as `*.npz`, in order.

        Of a model that was named by its file, that file alone is looked at.
        """
        if self.pinned is not None:
            return sorted(name for name in hub.listing(self.pinned) if _matches(name, pattern))
        with reading(self.path):
            if not self.path.is_dir():
                return [self.path.name] if fnmatchcase(self.path.name, pattern) else []
            files = (path for path in self.path.glob(pattern) if path.is_file())
            return sorted(path.relative_to(self.path).as_posix() for path in files)

    def file(self, name: str) -> Path:
        """Return where a file of the model lies; one on the hub is downloaded.

        `name` may come out of another file: raises `CheckpointError` if it leads out of the model.
        """
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or not plain.parts:
            raise CheckpointError(f"{self.name}: {name!r} is not the name of a file of the model")
        folder = self.directory if self.pinned is None else hub.files(self.pinned, [name])
        for inner in plain.parents[:-1]:
            member(folder / inner)  # a folder may be a link, too
        return folder / plain


def locate(given: str, option: str, *more: str, formats: Collection[str] = ()) -> Location:
    """Find a model by its path or its name on the hub; `option` names it in errors.

    Of a repository, files that match patterns in `more` are wanted beside the usual ones. One
    without safetensors files is a model if a file matches a pattern in `formats`.

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
        return _on_hub(hub.resolve(hub.parse(given)), more, formats)
    except HubError as error:
        meant = f" ({meant[0].lower()}{meant[1:]})" if meant else ""
        message = f"{option}: {given} does not exist here{meant}, and as a name on the hub: "
        raise HubError(message + error.message, hint=error.hint) from error


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a file's name matches, as in `Path.glob`: no `*` stands for a folder."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _close_to(path: Path) -> Path | None:
    """Return what lies here under nearly the same name."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        try:
            entries = [] if (found / part).exists() else islice(found.iterdir(), _MOST_NEIGHBOURS)
            near = close_to(part, [entry.name for entry in entries], cutoff=0.75)
        except OSError:
            return None
        if not near and not (found / part).exists():
            return None
        found /= near[0] if near else part
    return found


def _on_hub(pinned: hub.Reference, more: Sequence[str], formats: Collection[str]) -> Location:
    """Download what lies beside a repository's weights, and an adapter's weights."""
    listing = hub.listing(pinned)
    weights = _weights(pinned, listing, formats)
    beside = [*SIDE_FILES, *more, CARD, INDEX, ADAPTER_CONFIG]
    if weights == [ADAPTER]:
        return Location(hub.download(pinned, [*beside, ADAPTER]), str(pinned))
    path = hub.download(pinned, beside)
    missing = any(not (path / name).is_file() for name in weights)
    return Location(path, str(pinned), pinned, tuple(weights) if missing else ())


def _weights(
    pinned: hub.Reference, listing: Mapping[str, int], formats: Collection[str]
) -> list[str]:
    """Return the safetensors files of a repository; none if its weights are in another format."""
    if INDEX in listing:
        path = hub.files(pinned, [INDEX]) / INDEX
        with path.open("rb") as stream:
            index = parse_index(stream.read(LARGEST_INDEX + 1), path=f"{pinned}: {INDEX}")
        return list(dict.fromkeys(index.values()))
    for name in (SINGLE, ADAPTER):
        if name in listing:
            return [name]
    if any(_matches(name, pattern) for pattern in formats for name in listing):
        return []
    raise no_model(
        str(pinned),
        f"has neither {SINGLE} nor {INDEX} nor {ADAPTER}",
        listing,
        f"Download the file and name it: hf download {pinned.repo} ",
    )
