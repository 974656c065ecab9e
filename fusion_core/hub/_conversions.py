"""Files that the hub's own bots convert: safetensors from pickles, parquet from data sets."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fusion_core.errors import HubError
from fusion_core.hub._cache import cache_commit, cached_commit, is_cached, is_offline
from fusion_core.hub._client import list_files, resolve
from fusion_core.hub._downloads import FileRequest
from fusion_core.hub._requests import request_commit, request_conversions, request_digests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.hub.reference import Reference

_PICKLE = ".bin"
#: The branch on which the hub converts every data set to parquet.
_PARQUET_BRANCH = "refs/convert/parquet"


def find_conversion(reference: Reference) -> Reference | None:
    """Return the commit at which the hub's own bot offers a repository's pickles as safetensors.

    None if there is no conversion of exactly these pickles, or if the cache has pickles of this
    commit already. The cache records the result. Raises `HubError` as `resolve` does.
    """
    pinned = resolve(reference)
    record = pinned.at(f"conversion-of-{pinned.revision}")
    if cached := cached_commit(record):
        return pinned.at(cached[0])
    pickles = [path for path in list_files(pinned) if path.endswith(_PICKLE)]
    if is_offline() or any(is_cached(pinned, path) for path in pickles):
        return None
    revisions = request_conversions(pinned)
    expected = _pickle_digests(request_digests(pinned)) if revisions else {}
    for revision in revisions:
        commit = request_commit(pinned.at(revision))
        digests = request_digests(pinned.at(commit))
        has_safetensors = any(path.endswith(".safetensors") for path in digests)
        if has_safetensors and _pickle_digests(digests) == expected:
            cache_commit(record, commit)
            return pinned.at(commit)
    return None


def _pickle_digests(digests: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if path.endswith(_PICKLE)}


def find_split(dataset: Reference, split: str, config: str | None = None) -> FileRequest:
    """Return the parquet files of a split, from the hub's conversion if the owner uploaded none.

    `config` selects the configuration of a data set that has several. Raises `HubError` if no file
    belongs to the split.
    """
    main = resolve(dataset)
    if paths := _split_paths(main, split, config):
        return FileRequest(main, paths)
    converted = resolve(main.at(_PARQUET_BRANCH))
    if paths := _split_paths(converted, split, config):
        return FileRequest(converted, paths)
    raise HubError(
        f"the data set {main} has no parquet files of the split {split!r}",
        hint="Download it by hand, and name the files in the recipe.",
    )


def _split_paths(pinned: Reference, split: str, config: str | None) -> tuple[str, ...]:
    """Return the files of a split; none if several configurations are possible."""
    by_config: dict[str, list[str]] = {}
    for path in sorted(list_files(pinned)):
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
