"""The location of a model: a path on this machine, or a repository on the hub.

An existing path is a path. Otherwise a text such as `org/name` is looked up on the hub. Only what a
merge needs is downloaded: side files at once, the safetensors files of the index when they are
read, files of other formats when they are opened. The module knows file names, and of contents only
the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import CheckpointError, HubError
from fusion_core.formatting import similar_names
from fusion_core.weights.reading._unsupported import no_model_error
from fusion_core.weights.reading.assets import CARD, SIDE_FILES
from fusion_core.weights.reading.containment import (
    read_whole,
    report_unreadable,
    resolve_member,
)
from fusion_core.weights.reading.format import LARGEST_INDEX, parse_index

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: The number of entries of a directory that are searched for a similar name.
_MOST_NEIGHBOURS = 1000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Location:
    """A model's directory or file, and its name: the path, or `org/name@commit`."""

    path: Path
    name: str
    #: the commit of a model on the hub
    pinned: hub.Reference | None = None
    #: safetensors files that are not downloaded yet
    remote: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """Return the directory whose other files belong to the model."""
        return self.path if self.path.is_dir() else self.path.parent

    def names(self) -> list[str]:
        """Return the names of the model's files, those in its folders as `folder/name`."""
        if self.pinned is not None:
            return sorted(hub.list_files(self.pinned))
        with report_unreadable(self.directory):
            paths = (*self.directory.glob("*"), *self.directory.glob("*/*"))
            files = (path.relative_to(self.directory) for path in paths if path.is_file())
            return sorted(file.as_posix() for file in files)

    def matching(self, pattern: str) -> list[str]:
        """Return the names of the model's files that match a pattern such as `*.npz`, sorted.

        A location that is a file has only that file.
        """
        if self.pinned is not None:
            return sorted(name for name in hub.list_files(self.pinned) if _matches(name, pattern))
        with report_unreadable(self.path):
            if not self.path.is_dir():
                return [self.path.name] if fnmatchcase(self.path.name, pattern) else []
            files = (path for path in self.path.glob(pattern) if path.is_file())
            return sorted(file.relative_to(self.path).as_posix() for file in files)

    def file(self, name: str) -> Path:
        """Return the path of a file of the model, after downloading it if necessary.

        `name` may come from an untrusted file. Raises `CheckpointError` if it leads out of the
        model.
        """
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise CheckpointError(f"{self.name}: {name!r} is not the name of a file of the model")
        root = self.directory if self.pinned is None else hub.download_paths(self.pinned, [name])
        for folder in relative.parents[:-1]:
            resolve_member(root / folder)  # a folder may be a link, too
        return root / relative


def locate(name: str, option: str, *more: str, formats: Collection[str] = ()) -> Location:
    """Find a model by its path or its name on the hub; `option` names it in errors.

    `more` are patterns of further side files to download from a repository. A repository without
    `model.safetensors` and its index is a model if one of its files matches a pattern in `formats`.

    Raises `CheckpointError` if the model is neither here nor on the hub, and the errors of
    `hub.download`.
    """
    path = Path(name)
    with report_unreadable(path):
        exists = path.exists()
    if exists:
        return Location(path, name)
    if path.is_symlink():
        raise CheckpointError(
            f"{option}: {name} is a link to {path.readlink()}, which does not exist",
            hint="Restore the file that it leads to, or name another path.",
        )
    similar = _find_similar(path)
    if not hub.looks_like_id(name):
        hint = "Give a directory, a .safetensors file, or org/name@revision for the hub."
        raise CheckpointError(
            f"{option}: {name} does not exist",
            hint=hint if similar is None else f"Did you mean {similar}?",
        )
    try:
        return _locate_on_hub(hub.resolve(hub.parse(name)), more, formats)
    except HubError as error:
        suggestion = "" if similar is None else f" (did you mean {similar}?)"
        message = f"{option}: {name} does not exist here{suggestion}, and as a name on the hub: "
        raise HubError(message + error.message, hint=error.hint) from error


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a file's name matches as in `Path.glob`, where `*` does not match a `/`."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _find_similar(path: Path) -> Path | None:
    """Return an existing path with a similar name."""
    similar = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        try:
            if (similar / part).exists():
                similar /= part
                continue
            entries = islice(similar.iterdir(), _MOST_NEIGHBOURS)
            names = similar_names(part, [entry.name for entry in entries], cutoff=0.75)
        except OSError:
            return None
        if not names:
            return None
        similar /= names[0]
    return similar


def _locate_on_hub(
    pinned: hub.Reference, more: Sequence[str], formats: Collection[str]
) -> Location:
    """Download a repository's side files."""
    weights = _weight_files(pinned, formats)
    path = hub.download(pinned, [*SIDE_FILES, *more, CARD, INDEX])
    is_complete = all((path / name).is_file() for name in weights)
    return Location(path, str(pinned), pinned, () if is_complete else tuple(weights))


def _weight_files(pinned: hub.Reference, formats: Collection[str]) -> list[str]:
    """Return a repository's safetensors files; none if its weights have another format."""
    listing = hub.list_files(pinned)
    if INDEX in listing:
        text = read_whole(hub.download_paths(pinned, [INDEX]) / INDEX, LARGEST_INDEX)
        return list(dict.fromkeys(parse_index(text, path=f"{pinned}: {INDEX}").values()))
    if SINGLE in listing:
        return [SINGLE]
    if any(_matches(name, pattern) for pattern in formats for name in listing):
        return []
    raise no_model_error(
        str(pinned),
        f"has neither {SINGLE} nor {INDEX}",
        listing,
        f"Download the file and name it: hf download {pinned.repo} ",
    )
