"""The parquet files of a data set's splits, which their names tell."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fusion_core.errors import HubError
from fusion_core.hub._ahead import Wanted
from fusion_core.hub._client import listing, resolve

if TYPE_CHECKING:
    from fusion_core.hub.reference import Reference

#: Where the hub keeps every data set as parquet, whatever its owner uploaded.
_CONVERTED = "refs/convert/parquet"


def split_files(dataset: Reference, split: str, config: str | None = None) -> Wanted:
    """Return the files of a split, of the hub's conversion where the owner uploaded no parquet.

    Where a data set has several configurations, one is named. Raises `HubError` if no file is known
    to be of the split.
    """
    main = resolve(dataset)
    if found := _found(main, split, config):
        return Wanted(main, found)
    converted = resolve(main.at(_CONVERTED))
    if found := _found(converted, split, config):
        return Wanted(converted, found)
    raise HubError(
        f"the data set {main} has no parquet files of the split {split!r}",
        hint="Download it by hand, and name the files in the recipe.",
    )


def _found(pinned: Reference, split: str, config: str | None) -> tuple[str, ...]:
    """Return a split's files; none where they may belong to several configurations."""
    folders: dict[str, list[str]] = {}
    for path in sorted(listing(pinned)):
        folder = _folder(PurePosixPath(path), split)
        if folder is not None:
            folders.setdefault(folder, []).append(path)
    if config is None and len(folders) == 1:
        config = next(iter(folders))
    return tuple(folders.get(config or "default", ()))


def _folder(path: PurePosixPath, split: str) -> str | None:
    """Return the configuration that a file of this split belongs to, None for any other file."""
    shard = re.compile(rf"{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")
    if shard.fullmatch(path.name):
        return path.parent.name
    inside = re.fullmatch(r"\d+\.parquet", path.name) and path.parent.name == split
    return path.parent.parent.name if inside else None
