"""The task pool `clip-classification`: images in parquet files, with CLIP's zero-shot heads."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from fusion_adapting import map_batches, measure_accuracy, most_likely
from fusion_core import (
    Batch,
    ComponentConfig,
    FeatureTask,
    Split,
    TaskPool,
    choose_tasks,
    shuffled_rows,
    unknown_task,
)
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.files import file_stamps
from pools_clip.config import DEFAULT_SET, ClipClassificationConfig
from pools_clip.data_sets import DataSet, LocalDataSet, open_data_set
from pools_clip.directory import ClipDirectory
from pools_clip.families import all_tasks, expand_sets
from pools_clip.heads import FrozenClip
from pools_clip.images import Images
from pools_clip.stored_images import bytes_to_store, load_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import MetricValues
    from fusion_core.hub import FileRequest

#: Titles of the half that options are chosen on, and of the half that measures them.
_HALVES = ("a half", "the other half")


class ClipClassification(TaskPool[ComponentConfig]):
    """Image classification with CLIP's zero-shot heads, which are not merged.

    UNLABELED is a task's `unlabeled` images. A task without them uses its test images without
    labels, and adaptation on them is transductive. A pool that brings its own data passes a
    `ClipClassificationConfig` to this constructor and then sets `config` to its own options.

    Raises `RecipeError` for unknown tasks and missing files, `CheckpointError` for a model that is
    not a CLIPModel.
    """

    config_class: ClassVar[type[ComponentConfig]] = ClipClassificationConfig

    def __init__(self, config: ClipClassificationConfig) -> None:
        super().__init__(config)
        available = [
            *config.datasets,
            *(task for task in all_tasks() if task not in config.datasets),
        ]
        chosen = config.tasks or list(config.datasets) or [DEFAULT_SET]
        self.names = choose_tasks(expand_sets(chosen), available, "task_pool.tasks")
        self._data = {name: open_data_set(name, config) for name in self.names}
        missing = [
            line
            for name, data in self._data.items()
            if isinstance(data, LocalDataSet)
            for line in data.missing(name)
        ]
        if missing:
            raise RecipeError("\n".join(missing), hint="Name parquet files.")
        self.transductive = config.transductive and not all(
            data.has(Split.UNLABELED) for data in self._data.values()
        )
        self.measured_on = _measured_on(config)
        prompts = {name: data.prompts for name, data in self._data.items()}
        self._clip = FrozenClip(_open_clip(config.clip), prompts)
        self._tasks = {
            name: ClipTask(name, data, self._clip, config) for name, data in self._data.items()
        }

    def __getitem__(self, name: str) -> ClipTask:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def downloads(self) -> Sequence[FileRequest]:
        """Return the base, for the heads, and the test images of data sets on the hub."""
        images = [download for task in self._tasks.values() for download in task.downloads()]
        return [*self._clip.downloads(), *images]

    def inputs(self) -> Mapping[str, Any]:
        """Identify each split: local files by their hashes, data sets on the hub by commits."""
        return {name: dict(data.describe()) for name, data in self._data.items()}

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its images, its preprocessing and its head."""
        return self[name].identity()

    def holdout(self) -> Self:
        """Return these tasks with their test images in halves, seeded by the task's name."""
        clone = copy.copy(self)
        clone._tasks = {name: task.hold_out_half() for name, task in self._tasks.items()}  # noqa: SLF001
        clone.transductive = False
        clone.measured_on = (
            f"a half of {self.measured_on or 'the test images'}, which adaptation did not see"
        )
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return these tasks measured on the half that `holdout` adapts on, and on the other.

        Both share the test images, which are read once.
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
    """One data set, whose splits are decoded at first use, with its head."""

    def __init__(
        self, name: str, data: DataSet, clip: FrozenClip, config: ClipClassificationConfig
    ) -> None:
        self.name = name
        self._data = data
        self._clip = clip
        self._config = config
        self._splits: dict[Split, Images] = {}
        #: whether UNLABELED is the first half of the test images
        self._is_halved = False
        #: the half of the test images that TEST is; None for all of them
        self._half: int | None = None
        #: both halves after the first use, which the tasks of both halves share
        self._half_images: list[Images] = []

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the accuracy depends on."""
        return {
            "images": self._data.identity(Split.TEST) or file_stamps(self._data.files(Split.TEST)),
            "limit": self._config.limit,
            "halved": self._is_halved,
            "half": self._half,
            "batch_size": self._config.batch_size,
            "prompts": self._data.prompts,
            "clip": self._clip.identity,
        }

    def hold_out_half(self) -> Self:
        """Return this task with one half of its test images as UNLABELED, the other as TEST."""
        clone = copy.copy(self)
        clone._is_halved, clone._half = True, 1  # noqa: SLF001
        clone._splits, clone._half_images = {}, []  # noqa: SLF001
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return this task with one half of its test images as TEST, and with the other."""
        half_images: list[Images] = []
        return self._with_half(0, half_images), self._with_half(1, half_images)

    def _with_half(self, number: int, half_images: list[Images]) -> Self:
        clone = copy.copy(self)
        clone._is_halved = self._is_halved or not self._data.has(Split.UNLABELED)  # noqa: SLF001
        clone._half, clone._splits = number, {}  # noqa: SLF001
        clone._half_images = half_images  # noqa: SLF001
        return clone

    def check(self) -> None:
        """Check the headers of local files. `downloads` lists the files on the hub."""
        if isinstance(self._data, LocalDataSet):
            self._data.check()

    def downloads(self) -> Iterator[FileRequest]:
        """Yield the files of the test images, with the disk space for decoded images."""
        limit = self._config.limit
        for download in self._data.downloads(limit):
            decoded = bytes_to_store(self._data, Split.TEST, self._clip.preprocessor, limit=limit)
            yield replace(download, made=decoded)

    def count(self, split: Split) -> int:
        """Return the number of images in a split."""
        return len(self._images(split))

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return normalized pixels, fp32 of shape (size, channels, height, width).

        Batches run through shuffled epochs of full batches. Raises `RecipeError` for a size that
        no batch can have.
        """
        images = self._images(split)
        if not 0 < size <= len(images):
            raise RecipeError(
                f"invalid batch size {size}: task {self.name!r} has {len(images)} {split} images",
                hint=f"Use a batch size from 1 to {len(images)}.",
            )
        rows = shuffled_rows(step, size, len(images), key=f"{seed}\0{self.name}\0{split}")
        return self._batch(images, rows, torch.device("cpu"))

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the vision tower's pooled output, shape (images, width)."""
        pooled: Tensor = model(inputs).pooler_output
        return pooled

    def head(self, features: Tensor) -> Tensor:
        """Return exp(logit_scale) * cosine similarity, shape (images, classes)."""
        return self._clip.heads.logits(features, self.name)

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"accuracy": fraction of the test images}, measured on the model's device.

        The outcome of an image is NaN if the model computes NaN for it, and then so is the
        accuracy.
        """
        images = self._images(Split.TEST)
        labels = cast("Tensor", images.labels)  # the test split always has labels
        return measure_accuracy(self._predict(model, images).tolist(), labels.tolist())

    def _predict(self, model: nn.Module, images: Images) -> Tensor:
        """Return the class of each image, or `UNDEFINED` if a score is NaN."""
        device = next(model.parameters()).device
        _ = self._clip.heads  # computed here, before threads need them

        @torch.inference_mode()
        def predict(rows: list[int]) -> Tensor:
            batch = self._batch(images, torch.tensor(rows), device)
            return most_likely(self.logits(model, batch)).cpu()

        predictions = map_batches(
            predict,
            range(len(images)),
            model,
            batch_size=self._config.batch_size,
            label=self.name,
            kind="images",
            size_of=lambda _: 1,
        )
        return torch.stack(predictions)

    def _batch(self, images: Images, rows: Tensor, device: torch.device) -> Batch:
        pixels = images.pixels[rows].to(device)  # transfer bytes, not floats
        labels = None if images.labels is None else images.labels[rows].to(device)
        return Batch(self._clip.preprocessor.normalize(pixels), labels)

    def _images(self, split: Split) -> Images:
        if split not in self._splits:
            self._splits[split] = self._load(split)
        return self._splits[split]

    def _load(self, split: Split) -> Images:
        if split is Split.TEST and self._half is not None:
            return self._load_halves()[self._half]
        if split is Split.UNLABELED and self._is_halved:
            return Images(self._load_halves()[0].pixels, None)
        return self._read(split)

    def _load_halves(self) -> list[Images]:
        """Return the halves of the test images, seeded by the task's name."""
        if not self._half_images:
            images = self._read(Split.TEST)
            labels, half = cast("Tensor", images.labels), len(images) // 2
            rows = shuffled_rows(0, len(images), len(images), key=f"halves\0{self.name}")
            for selected in (rows[:half], rows[half:]):
                self._half_images.append(Images(images.pixels[selected], labels[selected]))
        return self._half_images

    def _read(self, split: Split) -> Images:
        data, preprocessor = self._data, self._clip.preprocessor
        if split is Split.TEST:
            return load_images(data, split, preprocessor, limit=self._config.limit)
        if data.has(split):
            return load_images(data, split, preprocessor, labeled=split is Split.TRAIN)
        if split is Split.UNLABELED and self._config.transductive:
            return Images(self._images(Split.TEST).pixels, None)
        raise RecipeError(
            f"task {self.name!r} has no {split} images",
            hint=f"Name a parquet file: task_pool.datasets.{self.name}.{split}.",
        )


def _measured_on(config: ClipClassificationConfig) -> str | None:
    """Describe the evaluated images; None for all test images."""
    if config.corruption is None and config.limit is None:
        return None
    images = "test images" if config.corruption is None else f"{config.corruption} test images"
    return images if config.limit is None else f"the first {config.limit} {images} of each task"


def _open_clip(name: str) -> ClipDirectory:
    directory = ClipDirectory.open(name, "task_pool.clip")
    if not directory.has_text:
        raise CheckpointError(
            f"task_pool.clip: expected a CLIPModel, found a CLIPVisionModel without a text tower: "
            f"{name}",
            hint="Zero-shot heads need the full CLIPModel of the base.",
        )
    return directory
