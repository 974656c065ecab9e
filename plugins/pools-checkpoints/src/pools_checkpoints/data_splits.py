"""The files of a split of a data set on the hub."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from fusion_core import hub
from fusion_core.errors import HubError

#: The branch on which the hub converts every data set to parquet.
_PARQUET_BRANCH = "refs/convert/parquet"


def find_split(dataset: hub.Reference, split: str, config: str | None = None) -> hub.FileRequest:
    """Return the parquet files of a split, from the hub's conversion if the owner uploaded none.

    `config` selects the configuration of a data set that has several. Raises `HubError` if no file
    belongs to the split.
    """
    main = hub.resolve(dataset)
    if paths := _split_paths(main, split, config):
        return hub.FileRequest(main, paths)
    converted = hub.resolve(main.at(_PARQUET_BRANCH))
    if paths := _split_paths(converted, split, config):
        return hub.FileRequest(converted, paths)
    raise HubError(
        f"the data set {main} has no parquet files of the split {split!r}",
        hint="Download it by hand, and name the files in the recipe.",
    )


def _split_paths(pinned: hub.Reference, split: str, config: str | None) -> tuple[str, ...]:
    """Return the files of a split; none if several configurations are possible."""
    by_config: dict[str, list[str]] = {}
    for path in sorted(hub.list_files(pinned)):
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
