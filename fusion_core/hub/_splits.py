"""The parquet files of a data set's splits, recognised by their names."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fusion_core.errors import HubError
from fusion_core.hub._client import listing, resolve
from fusion_core.hub._requested import Wanted

if TYPE_CHECKING:
    from fusion_core.hub.reference import Reference

#: The branch on which the hub converts every data set to parquet.
_CONVERTED = "refs/convert/parquet"


def split_files(dataset: Reference, split: str, config: str | None = None) -> Wanted:
    """Return the parquet files of a split, from the hub's conversion if the owner uploaded none.

    `config` selects the configuration of a data set that has several. Raises `HubError` if no file
    belongs to the split.
    """
    main = resolve(dataset)
    if paths := _split_paths(main, split, config):
        return Wanted(main, paths)
    converted = resolve(main.at(_CONVERTED))
    if paths := _split_paths(converted, split, config):
        return Wanted(converted, paths)
    raise HubError(
        f"the data set {main} has no parquet files of the split {split!r}",
        hint="Download it by hand, and name the files in the recipe.",
    )


def _split_paths(pinned: Reference, split: str, config: str | None) -> tuple[str, ...]:
    """Return the files of a split; none if several configurations are possible."""
    by_config: dict[str, list[str]] = {}
    for path in sorted(listing(pinned)):
        path_config = _config_of(PurePosixPath(path), split)
        if path_config is not None:
            by_config.setdefault(path_config, []).append(path)
    if config is None and len(by_config) == 1:
        config = next(iter(by_config))
    return tuple(by_config.get(config or "default", ()))


def _config_of(path: PurePosixPath, split: str) -> str | None:
    """Return the configuration of a file of this split, None for any other file."""
    shard = re.compile(rf"{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")
    if shard.fullmatch(path.name):
        return path.parent.name
    if re.fullmatch(r"\d+\.parquet", path.name) and path.parent.name == split:
        return path.parent.parent.name
    return None
