"""A task's images and class names: local parquet files, or a data set on the hub.

File names tell which files on the hub belong to a split, so each split is downloaded on its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import Split, hub
from fusion_core.errors import RecipeError
from fusion_core.files import hash_files
from pools_checkpoints import find_split
from pools_clip.families import all_tasks, load_data_set
from pools_clip.images import count_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pools_clip.config import ClipClassificationConfig, Dataset
    from pools_clip.families import KnownDataSet


class DataSet(ABC):
    """One task's images by split, with its class names and prompt templates."""

    classnames: Sequence[str]
    templates: Sequence[str]
    #: the columns of the images and of the labels
    columns: tuple[str, str] = ("image", "label")

    @abstractmethod
    def has(self, split: Split) -> bool:
        """Tell whether a split exists."""

    @abstractmethod
    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the parquet files of a split's first `limit` images; download missing ones."""

    def identity(self, split: Split) -> Mapping[str, Any] | None:
        """Return a permanent identity of a split's files; None for files that may change."""
        del split
        return None

    @abstractmethod
    def describe(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield splits with the hashes of their files, or the commit that they come from."""

    def count(self, split: Split) -> int | None:
        """Return the number of images in a split; None if it is unknown before a download."""
        return count_rows(self.files(split))

    def downloads(self, limit: int | None = None) -> Iterator[hub.FileRequest]:
        """Yield the files on the hub that hold the first `limit` test images."""
        del limit
        yield from ()

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class, in the order of the labels."""
        return [[template.format(name) for template in self.templates] for name in self.classnames]


class LocalDataSet(DataSet):
    """Parquet files from a recipe."""

    def __init__(self, options: Dataset, templates: Sequence[str]) -> None:
        self._options = options
        self.classnames = options.classnames
        self.templates = options.templates or templates

    def has(self, split: Split) -> bool:
        """Tell whether the recipe names a file for a split."""
        return getattr(self._options, split) is not None

    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the split's file."""
        del limit
        return [getattr(self._options, split)]

    def describe(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each split with the hash of its file."""
        for split in filter(self.has, Split):
            yield split.value, {"files": hash_files(self.files(split))}

    def check(self) -> None:
        """Raise a `FusionError` for a file that is not a table of images."""
        count_rows([getattr(self._options, split) for split in Split if self.has(split)])

    def missing(self, name: str) -> Iterator[str]:
        """Yield one line per missing file."""
        for split in Split:
            path = getattr(self._options, split)
            if path is not None and not Path(path).is_file():
                yield f"task_pool.datasets.{name}.{split}: {path} does not exist"


class HubDataSet(DataSet):
    """A known data set on the hub, pinned to a commit at first use.

    It has no UNLABELED images.
    """

    def __init__(self, description: KnownDataSet) -> None:
        self._description = description
        self.classnames = description.classnames
        self.templates = description.templates
        self.columns = (description.image, description.label)

    def has(self, split: Split) -> bool:
        """Tell whether the data set has a split."""
        return split is not Split.UNLABELED

    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the split's files in the hub's cache; raise `HubError` on failure.

        If the first files hold fewer images than expected, return all files.
        """
        files = hub.download_requests([self._wanted(split, limit)])
        if limit is None or count_rows(files) >= limit:
            return files
        return hub.download_requests([self._wanted(split)])

    def identity(self, split: Split) -> Mapping[str, Any]:
        """Return the commit and the files of a split."""
        wanted = self._wanted(split)
        return {"data": str(wanted.reference), "files": wanted.paths, "columns": self.columns}

    def describe(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the test split. Its commit identifies the other splits, too."""
        yield Split.TEST.value, self.identity(Split.TEST)

    def count(self, split: Split) -> int | None:
        """Count the images in downloaded files; otherwise use the known size of the test split."""
        if hub.measure_download([self._wanted(split)]).missing == 0:
            return super().count(split)
        return self._description.rows if split is Split.TEST else None

    def downloads(self, limit: int | None = None) -> Iterator[hub.FileRequest]:
        """Yield the files with the test split's first images."""
        yield self._wanted(Split.TEST, limit)

    def _wanted(self, split: Split, limit: int | None = None) -> hub.FileRequest:
        name = self._description.train if split is Split.TRAIN else self._description.test
        wanted = find_split(self._pinned, name, self._description.config)
        rows = None if split is Split.TRAIN else self._description.rows
        if limit is None or rows is None:
            return wanted
        # uploads divide the rows evenly among files
        count = math.ceil(limit * len(wanted.paths) / rows)
        return replace(wanted, paths=wanted.paths[:count])

    @cached_property
    def _pinned(self) -> hub.Reference:
        return hub.resolve(hub.parse(self._description.dataset, kind="dataset"))


def open_data_set(name: str, config: ClipClassificationConfig) -> DataSet:
    """Return a task's data: the recipe's own files, or a known data set on the hub.

    Raises `RecipeError` if a task has no corrupted images.
    """
    if name in config.datasets:
        return LocalDataSet(config.datasets[name], config.templates)
    description = load_data_set(name)
    if config.corruption is None:
        return HubDataSet(description)
    if not description.corrupted:
        corrupted = [task for task in all_tasks() if load_data_set(task).corrupted]
        raise RecipeError(
            f"task_pool.corruption: task {name!r} has no corrupted images",
            hint=f"Choose tasks that have them: --tasks {','.join(corrupted)}",
        )
    return HubDataSet(replace(description, test=config.corruption))
