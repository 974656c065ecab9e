"""The task pool `clip-classification`: images in parquet files, CLIP's zero-shot heads."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from fusion_adapting import on_cores
from fusion_core import (
    Batch,
    ComponentConfig,
    FeatureTask,
    Measured,
    Split,
    TaskPool,
    choose_tasks,
    evaluation_mode,
    note,
    shuffled_rows,
    unknown_task,
)
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.files import file_stamps
from pools_clip.config import DEFAULT_SET, ClipClassificationConfig
from pools_clip.data_sets import DataSet, LocalDataSet, data_set
from pools_clip.directory import ClipDirectory
from pools_clip.families import all_tasks, expanded
from pools_clip.heads import FrozenClip
from pools_clip.images import Images
from pools_clip.stored_images import bytes_to_store, images_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Metrics
    from fusion_core.hub import Wanted

#: What is said of a half: the one that options are chosen on, and the one that measures them.
_HALVES = ("a half", "the other half")


class ClipClassification(TaskPool[ComponentConfig]):
    """Image classification by CLIP's zero-shot heads, which are not fused.

    UNLABELED are a task's `unlabeled` images or, where it has none, its test images without labels:
    adapting on them is transductive. A pool that brings its own data passes a
    `ClipClassificationConfig` to this constructor and then sets `config` to its own options.

    Raises `RecipeError` for unknown tasks and files that are not there, `CheckpointError` for a
    model that is not a CLIPModel.
    """

    config_class: ClassVar[type[ComponentConfig]] = ClipClassificationConfig

    def __init__(self, config: ClipClassificationConfig) -> None:
        super().__init__(config)
        there = [*config.datasets, *(task for task in all_tasks() if task not in config.datasets)]
        wanted = config.tasks or list(config.datasets) or [DEFAULT_SET]
        self.names = choose_tasks(expanded(wanted), there, "task_pool.tasks")
        self._data = {name: data_set(name, config) for name in self.names}
        _check_files(self._data)
        self.transductive = config.transductive and not all(
            each.has(Split.UNLABELED) for each in self._data.values()
        )
        self.measured_on = _measured_on(config)
        prompts = {name: each.prompts for name, each in self._data.items()}
        self._clip = FrozenClip(_whole(config.clip), prompts)
        self._tasks = {
            name: ClipTask(name, each, self._clip, config) for name, each in self._data.items()
        }

    def __getitem__(self, name: str) -> ClipTask:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def downloads(self) -> Sequence[Wanted]:
        """Return the base, for the heads, and the test images of data sets on the hub."""
        data = [download for task in self._tasks.values() for download in task.downloads()]
        return [*self._clip.downloads(), *data]

    def inputs(self) -> Mapping[str, Any]:
        """Identify the data sets on the hub by their commits and files."""
        identities = {name: each.identity(Split.TEST) for name, each in self._data.items()}
        return {name: each for name, each in identities.items() if each is not None}

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its images, how they are read, and what its head is made of."""
        return self[name].identity()

    def holdout(self) -> Self:
        """Return these tasks with their test images in halves, drawn by the task's name."""
        clone = copy.copy(self)
        clone._tasks = {name: task.halved() for name, task in self._tasks.items()}  # noqa: SLF001
        clone.transductive = False
        clone.measured_on = (
            f"a half of {self.measured_on or 'the test images'}, which adaptation did not see"
        )
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return these tasks measured on the half that `holdout` leaves unlabeled, and the other.

        Test images are read once for both.
        """
        tasks = {name: task.halves() for name, task in self._tasks.items()}
        return self._on_half(0, tasks), self._on_half(1, tasks)

    def _on_half(self, number: int, tasks: Mapping[str, Sequence[ClipTask]]) -> Self:
        clone = copy.copy(self)
        clone._tasks = {name: halves[number] for name, halves in tasks.items()}  # noqa: SLF001
        clone.transductive = False
        clone.measured_on = f"{_HALVES[number]} of {self.measured_on or 'the test images'}"
        return clone


class ClipTask(FeatureTask):
    """One dataset: its images, each split decoded once when first used, and its head."""

    def __init__(
        self, name: str, data: DataSet, clip: FrozenClip, config: ClipClassificationConfig
    ) -> None:
        self.name = name
        self._data = data
        self._clip = clip
        self._config = config
        self._splits: dict[Split, Images] = {}
        #: whether UNLABELED are the first half of the test images, and which half TEST is
        self._halved = False
        self._half: int | None = None
        #: the halves, once they are read
        self._parts: list[Images] = []

    def identity(self) -> Mapping[str, Any]:
        """Return all that the accuracy depends on."""
        return {
            "images": self._data.identity(Split.TEST) or file_stamps(self._data.files(Split.TEST)),
            "limit": self._config.limit,
            "halved": self._halved,
            "half": self._half,
            "batch_size": self._config.batch_size,
            "prompts": self._data.prompts,
            "clip": self._clip.identity,
        }

    def halved(self) -> Self:
        """Return this task with one half of its test images as UNLABELED, the other as TEST."""
        clone = copy.copy(self)
        clone._halved, clone._half, clone._splits, clone._parts = True, 1, {}, []  # noqa: SLF001
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return this task with one half of its test images as TEST, and with the other."""
        parts: list[Images] = []
        return self._with_half(0, parts), self._with_half(1, parts)

    def _with_half(self, number: int, parts: list[Images]) -> Self:
        clone = copy.copy(self)
        clone._halved = self._halved or not self._data.has(Split.UNLABELED)  # noqa: SLF001
        clone._half, clone._splits, clone._parts = number, {}, parts  # noqa: SLF001
        return clone

    def check(self) -> None:
        """Look at the files that are here, not into them: `downloads` says what is on the hub."""
        if isinstance(self._data, LocalDataSet):
            self._data.check()

    def downloads(self) -> Iterator[Wanted]:
        """Return the files of the test images, with what these take when they are decoded."""
        data, clip, limit = self._data, self._clip, self._config.limit
        for download in data.downloads(limit):
            made = bytes_to_store(data, Split.TEST, clip.preprocessor, limit=limit)
            yield replace(download, made=made)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return normalised pixels, fp32 of shape (size, channels, height, width).

        Batches run through shuffled epochs, each of the whole number of batches that fit. Raises
        `RecipeError` for a size that no batch can have.
        """
        images = self._images(split)
        if not 0 < size <= len(images):
            raise RecipeError(
                f"a batch of {size}: task {self.name!r} has {len(images)} {split} images",
                hint=f"Use a batch size from 1 to {len(images)}.",
            )
        rows = shuffled_rows(step, size, len(images), key=f"{seed}\0{self.name}\0{split}")
        return self._batch(images, rows, torch.device("cpu"))

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the vision tower's pooled output, of shape (images, width)."""
        pooled: Tensor = model(inputs).pooler_output
        return pooled

    def head(self, features: Tensor) -> Tensor:
        """Return exp(logit_scale) * cosine similarity, of shape (images, classes)."""
        return self._clip.heads.logits(features, self.name)

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"accuracy": fraction of the test images}, measured on the model's device."""
        images = self._images(Split.TEST)
        labels = cast("Tensor", images.labels)  # the test split is read with them
        correct = self._predictions(model, images) == labels
        return Measured({"accuracy": int(correct.sum()) / len(images)}, correct.tolist())

    def _predictions(self, model: nn.Module, images: Images) -> Tensor:
        steps = math.ceil(len(images) / self._config.batch_size)
        size = math.ceil(len(images) / steps)  # all alike: no core waits for a larger batch
        device = next(model.parameters()).device
        _ = self._clip.heads  # made here, once, not by every thread

        def predicted(start: int) -> Tensor:
            batch = self._batch(images, slice(start, start + size), device)
            with torch.inference_mode():
                return self.logits(model, batch).argmax(dim=1).cpu()

        starts, found = range(0, len(images), size), []
        with evaluation_mode(model):
            every = map(predicted, starts) if device.type != "cpu" else on_cores(predicted, starts)
            for start, each in zip(starts, every, strict=True):
                found.append(each)
                note(f"{self.name}: {start + len(each):,} of {len(images):,} images")
        return torch.cat(found)

    def _batch(self, images: Images, rows: slice | Tensor, device: torch.device) -> Batch:
        pixels = images.pixels[rows].to(device)  # bytes travel, not floats
        labels = None if images.labels is None else images.labels[rows].to(device)
        return Batch(self._clip.preprocessor.scaled(pixels), labels)

    def _images(self, split: Split) -> Images:
        if split not in self._splits:
            self._splits[split] = self._part(split)
        return self._splits[split]

    def _part(self, split: Split) -> Images:
        if split is Split.TEST and self._half is not None:
            return self._halves()[self._half]
        if split is Split.UNLABELED and self._halved:
            return Images(self._halves()[0].pixels, None)
        return self._read(split)

    def _halves(self) -> list[Images]:
        """Return the halves of the test images, drawn by the task's name."""
        if not self._parts:
            images = self._read(Split.TEST)
            labels, half = cast("Tensor", images.labels), len(images) // 2
            rows = shuffled_rows(0, len(images), len(images), key=f"halves\0{self.name}")
            drawn = (rows[:half], rows[half:])
            self._parts += [Images(images.pixels[each], labels[each]) for each in drawn]
        return self._parts

    def _read(self, split: Split) -> Images:
        data, read = self._data, self._clip.preprocessor
        if split is Split.TEST:
            return images_of(data, split, read, limit=self._config.limit)
        if data.has(split):
            return images_of(data, split, read, labeled=split is Split.TRAIN)
        if split is Split.UNLABELED and self._config.transductive:
            return Images(self._images(Split.TEST).pixels, None)
        raise RecipeError(
            f"task {self.name!r} has no {split} images",
            hint=f"Name a parquet file: task_pool.datasets.{self.name}.{split}.",
        )


def _measured_on(config: ClipClassificationConfig) -> str | None:
    """Say in words what is measured on, None for every test image."""
    if config.corruption is None and config.limit is None:
        return None
    images = "test images" if config.corruption is None else f"{config.corruption} test images"
    return images if config.limit is None else f"the first {config.limit} {images} of each task"


def _check_files(data: Mapping[str, DataSet]) -> None:
    """Find missing files before any work is done; raises `RecipeError` with one line a file."""
    local = {name: each for name, each in data.items() if isinstance(each, LocalDataSet)}
    missing = [line for name, each in local.items() for line in each.missing(name)]
    if missing:
        raise RecipeError("\n".join(missing), hint="Give parquet files.")


def _whole(given: str) -> ClipDirectory:
    directory = ClipDirectory.open(given, "task_pool.clip")
    if not directory.is_whole:
        raise CheckpointError(
            f"task_pool.clip: {given} is a CLIPVisionModel, without a text tower",
            hint="Zero-shot heads need the whole CLIPModel that the base comes from.",
        )
    return directory
