"""Where a task's images and words are: parquet files here, or a data set on the hub.

A data set's files are found by their names, so that a split is a download of its own.
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
from pools_clip.families import all_tasks, known
from pools_clip.images import count_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pools_clip.config import ClipClassificationConfig, Dataset
    from pools_clip.families import Known


class DataSet(ABC):
    """One task's images by split, what its labels mean, and its prompts."""

    classnames: Sequence[str]
    templates: Sequence[str]
    #: the columns of the images and of the labels
    columns: tuple[str, str] = ("image", "label")

    @abstractmethod
    def has(self, split: Split) -> bool:
        """Tell whether there are images of a split."""

    @abstractmethod
    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the parquet files of a split's first `limit` images, downloading the missing."""

    def identity(self, split: Split) -> Mapping[str, Any] | None:
        """Return what names the content of these files for good; None for files that may change."""
        del split
        return None

    def count(self, split: Split) -> int | None:
        """Return how many images a split has, None where only a download can tell."""
        return count_rows(self.files(split))

    def downloads(self, limit: int | None = None) -> Iterator[hub.Wanted]:
        """Return what measuring on the first `limit` images reads from the hub."""
        del limit
        yield from ()

    @property
    def prompts(self) -> list[list[str]]:
        """Every class's prompts, in the order of the labels."""
        return [[template.format(name) for template in self.templates] for name in self.classnames]


class LocalDataSet(DataSet):
    """Parquet files named in a recipe."""

    def __init__(self, given: Dataset, templates: Sequence[str]) -> None:
        self._given = given
        self.classnames = given.classnames
        self.templates = given.templates or templates

    def has(self, split: Split) -> bool:
        """Tell whether a file is named."""
        return getattr(self._given, split) is not None

    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the file."""
        del limit
        return [getattr(self._given, split)]

    def check(self) -> None:
        """Raise a `FusionError` for a file that is not a table of images."""
        count_rows([getattr(self._given, split) for split in Split if self.has(split)])

    def missing(self, name: str) -> Iterator[str]:
        """Name files that are not there, one line each."""
        for split in Split:
            path = getattr(self._given, split)
            if path is not None and not Path(path).is_file():
                yield f"task_pool.datasets.{name}.{split}: {path} does not exist"


class HubDataSet(DataSet):
    """A data set of the table, at the commit that its main revision is when it is first asked for.

    UNLABELED images are none of its own.
    """

    def __init__(self, about: Known) -> None:
        self._about = about
        self.classnames = about.classnames
        self.templates = about.templates
        self.columns = (about.image, about.label)

    def has(self, split: Split) -> bool:
        """Tell whether the data set has such a split."""
        return split is not Split.UNLABELED

    def files(self, split: Split, limit: int | None = None) -> list[str]:
        """Return the split's files in the hub's cache; raises `HubError`.

        Of files that are shorter than the table says, all.
        """
        found = hub.fetch([self._wanted(split, limit)])
        if limit is None or count_rows(found) >= limit:
            return found
        return hub.fetch([self._wanted(split)])

    def identity(self, split: Split) -> Mapping[str, Any]:
        """Return the commit and the files of a split."""
        wanted = self._wanted(split)
        return {"data": str(wanted.reference), "files": wanted.paths, "columns": self.columns}

    def count(self, split: Split) -> int | None:
        """Count the images in files that are here; before that the table has the test split's."""
        if hub.size_of([self._wanted(split)]).missing == 0:
            return super().count(split)
        return self._about.rows if split is Split.TEST else None

    def downloads(self, limit: int | None = None) -> Iterator[hub.Wanted]:
        """Return the files of the test split's first images."""
        yield self._wanted(Split.TEST, limit)

    def _wanted(self, split: Split, limit: int | None = None) -> hub.Wanted:
        name = self._about.train if split is Split.TRAIN else self._about.test
        rows = None if split is Split.TRAIN else self._about.rows
        found = hub.split_files(self._main, name, self._about.config)
        return replace(found, paths=_first(found.paths, limit, rows))

    @cached_property
    def _main(self) -> hub.Reference:
        return hub.resolve(hub.parse(self._about.dataset, kind="dataset"))


def _first(paths: tuple[str, ...], limit: int | None, rows: int | None) -> tuple[str, ...]:
    """Return the files of the first images, `rows` being shared out evenly, as uploads do it."""
    if limit is None or rows is None:
        return paths
    return paths[: math.ceil(limit * len(paths) / rows)]


def data_set(name: str, config: ClipClassificationConfig) -> DataSet:
    """Return a task's data: the recipe's own files, or the data set of the table.

    Raises `RecipeError` for corrupted images of a task that has none.
    """
    if name in config.datasets:
        return LocalDataSet(config.datasets[name], config.templates)
    data = known(name)
    if config.corruption is None:
        return HubDataSet(data)
    if not data.corrupted:
        able = [task for task in all_tasks() if known(task).corrupted]
        raise RecipeError(
            f"task_pool.corruption: there are no corrupted images of {name!r}",
            hint=f"Name tasks that have some: --tasks {','.join(able)}",
        )
    return HubDataSet(replace(data, test=config.corruption))
