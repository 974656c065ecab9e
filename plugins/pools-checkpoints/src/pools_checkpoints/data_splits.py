"""The parquet files of a split of a data set on the hub."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import HubError
from pools_checkpoints.card import CARD, read_card_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    #: paths by configuration and split
    Splits = dict[str, dict[str, tuple[str, ...]]]

#: The branch on which the hub converts every data set to parquet.
_PARQUET_BRANCH = "refs/convert/parquet"
_DEFAULT = "default"
#: A folder that many data sets have, and that names no configuration.
_FOLDER = "data"
_SHARD = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")


def find_split(dataset: hub.Reference, split: str, config: str | None = None) -> hub.FileRequest:
    """Return the parquet files of a split, from the hub's conversion if the owner uploaded none.

    The card's `configs` say which files belong to a split, or else the names of files do. `config`
    selects the configuration of a data set that has several. Raises `HubError` if no file belongs
    to the split, or if several configurations have it.
    """
    uploaded = hub.resolve(dataset)
    splits = _stated_splits(uploaded) or _named_splits(hub.list_files(uploaded))
    if paths := _paths_of(uploaded, splits, split, config):
        return hub.FileRequest(uploaded, paths)
    advice = _describe(splits)
    with hub.add_advice(advice):
        converted = hub.resolve(uploaded.at(_PARQUET_BRANCH))
    splits = _named_splits(hub.list_files(converted))
    if paths := _paths_of(converted, splits, split, config):
        return hub.FileRequest(converted, paths)
    raise HubError(
        f"the data set {uploaded} has no parquet files of the split {split!r}"
        + (f" in the configuration {config!r}" if config else ""),
        hint=_describe(splits),
    )


def _paths_of(
    pinned: hub.Reference, splits: Splits, split: str, config: str | None
) -> tuple[str, ...]:
    """Return the files of a split; raises `HubError` if several configurations have it."""
    having = [name for name in splits if split in splits[name]]
    if config is None and _DEFAULT not in having and len(having) > 1:
        raise HubError(
            f"the split {split!r} of the data set {pinned} is in several configurations: "
            f"{', '.join(having)}",
            hint=f"Name one before the split: {having[0]}/{split}",
        )
    if config is None:
        config = having[0] if len(having) == 1 else _DEFAULT
    elif config == _FOLDER and config not in splits:
        config = _DEFAULT
    return splits.get(config, {}).get(split, ())


def _describe(splits: Splits) -> str:
    """Return a hint that lists the splits with parquet files."""
    names = [f"{config}: {', '.join(splits[config])}" for config in splits if splits[config]]
    if not names:
        return "Download the data set by hand, and name the files in the recipe."
    return f"The data set has these splits as parquet files, by configuration: {'; '.join(names)}."


def _named_splits(paths: Iterable[str], *, single: bool = False) -> Splits:
    """Return the splits that the names of parquet files state.

    A split is `SPLIT.parquet`, `SPLIT-00000-of-00002.parquet`, or `SPLIT/0000.parquet`. The folder
    with it names the configuration, except for `data`. With `single`, all files belong to one
    configuration.
    """
    splits: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        folders, name = PurePosixPath(path).parts[:-1], PurePosixPath(path).name
        match = _SHARD.fullmatch(name)
        if match is None:
            continue
        split = match["split"]
        if split.isdecimal() and folders:
            split, folders = folders[-1], folders[:-1]
        config = folders[-1] if folders and folders[-1] != _FOLDER and not single else _DEFAULT
        splits.setdefault(config, {}).setdefault(split, []).append(path)
    return {
        config: {split: tuple(files) for split, files in by_split.items()}
        for config, by_split in splits.items()
    }


def _stated_splits(pinned: hub.Reference) -> Splits:
    """Return the splits that `configs` in the data set's card states, none without this field.

    A split with other files than parquet is left to the hub's conversion.
    """
    paths = hub.list_files(pinned)
    if CARD not in paths:
        return {}
    card = hub.download(pinned, [CARD]) / CARD
    configs = read_card_fields(card, ["configs"]).get("configs")
    splits: Splits = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict):
            name = str(config.get("config_name", _DEFAULT))
            splits[name] = _splits_of(config, paths)
            if config.get("default") is True:
                splits.setdefault(_DEFAULT, splits[name])
    return splits


def _splits_of(config: Mapping[str, Any], paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the splits of one configuration of a card."""
    folder = PurePosixPath(str(config.get("data_dir") or ""))
    paths = [path for path in paths if PurePosixPath(path).is_relative_to(folder)]
    if "data_files" not in config:
        return _named_splits(paths, single=True).get(_DEFAULT, {})
    data_files = config["data_files"]
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split, stated = "train", entry
        if isinstance(entry, dict):
            split, stated = str(entry.get("split", split)), entry.get("path")
        patterns = [PurePosixPath(folder, str(one)).parts for one in _as_list(stated)]
        files = tuple(
            path
            for path in sorted(paths)
            if any(_matches(PurePosixPath(path).parts, pattern) for pattern in patterns)
        )
        if files and all(path.endswith(".parquet") for path in files):
            splits[split] = (*splits.get(split, ()), *files)
    return splits


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


@lru_cache(maxsize=2**12)  # a card may have many `**`
def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Tell whether a path matches a pattern, in which `**` stands for any folders and files."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        rest = pattern[1:]
        return not rest or any(_matches(names[start:], rest) for start in range(len(names)))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
