"""The tasks that models are measured on: data, heads and metrics.

A task's batches are a pure function of step, size, split and seed, so adaptive searches can be
resumed and distributed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch

from fusion_core.contracts.batch import Batch, Split
from fusion_core.errors import FusionError, RecipeError
from fusion_core.progress import Progress, show_notes_on
from fusion_core.recipe.config import ComponentConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from fusion_core.contracts.measurements import Metric, MetricValues
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.report import Published
    from fusion_core.contracts.subject import Subject
    from fusion_core.hub import FileRequest
    from fusion_core.weights import TensorInfo

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)

#: What `batch` may raise for one test example although the task can be measured.
_IGNORED_BY_CHECK = (NotImplementedError, ValueError, TypeError, LookupError, RecipeError)


class Task(ABC):
    """A task that can be measured: data and metrics.

    Subclass it for tasks that only evaluate, for example because they generate text. Algorithms
    can adapt on an `AdaptiveTask` or a `FeatureTask`. A subclass sets `name` and implements
    `evaluate`. Example::

        from fusion_core import Measured, Task

        class Sums(Task):
            name = "sums"

            def __init__(self, questions):  # pairs of inputs and answers
                self.questions = questions

            def evaluate(self, model):
                right = [model(inputs).argmax() == answer for inputs, answer in self.questions]
                return Measured({"accuracy": sum(right) / len(right)}, outcomes=right)
    """

    name: str
    #: declarations of the metrics; others are fractions for which higher is better
    metrics: Sequence[Metric] = ()
    #: how scores are obtained besides data and model, as JSON data: versions, few-shot, seeds
    conditions: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def evaluate(self, model: nn.Module) -> MetricValues:
        """Measure a model on the whole test split; return values by name, the main metric first.

        Leave the model as it was. Return `Measured` to add each example's outcome, from which
        intervals and paired tests are computed.
        """

    def check(self) -> None:  # noqa: B027 - optional: most tasks have no data to look for
        """Raise `OSError` or a `FusionError` for missing data; called before a run does work."""


class AdaptiveTask(Task):
    """A task on whose examples algorithms can adapt.

    A subclass implements `batch`, `logits` and `evaluate`. Subclass `FeatureTask` if the scores are
    a head's output for features of each example. The head is part of the task and never fused.
    """

    @abstractmethod
    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `size` examples: the same ones for the same arguments, in any process.

        Leave out labels on UNLABELED. The caller may modify the tensors. Raises `RecipeError` for
        an impossible size.
        """

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (examples, classes), differentiable in the model's parameters.

        Run the model in every call: methods change its weights in between.
        """

    def with_all_predictions(self) -> AdaptiveTask:
        """Return this task with all predictions of an example, such as every token of an answer.

        A batch without labels then marks them as `predicted`, and `logits` has the shape
        (predictions, classes), example by example. Default: this task, with one per example.
        """
        return self

    def count(self, split: Split) -> int | None:
        """Return the number of examples in a split, or None if it is unknown or unlimited.

        Methods that adapt take smaller batches from a task with few examples, and trust what they
        learn from it less.
        """
        del split
        return None

    def check(self) -> None:
        """Raise `OSError` or a `FusionError` for missing data; called before a run does work.

        By default one test example is read, and other errors are left to the run. Override this for
        data that is large or comes from the hub.
        """
        with suppress(*_IGNORED_BY_CHECK):
            self.batch(0, size=1, split=Split.TEST, seed=0)


class FeatureTask(AdaptiveTask):
    """A task whose head scores features that the model computes for each example.

    Tasks of one class can share a pass through the model, each with its own head, so `features`
    must be the same function for all of them. Example::

        import torch

        from fusion_core import Batch, FeatureTask, Split, shuffled_rows

        class SignsTask(FeatureTask):
            def __init__(self, name, images, labels):  # both map splits to tensors
                self.name, self.images, self.labels = name, images, labels

            def batch(self, step, *, size, split, seed):
                images, labels = self.images[split], self.labels[split]
                rows = shuffled_rows(step, size, len(images), key=f"{split} {seed}")
                return Batch(images[rows], None if split is Split.UNLABELED else labels[rows])

            def features(self, model, inputs):
                return model(inputs)

            def head(self, features):
                return features[:, :2]

            def evaluate(self, model):
                batch = Batch(self.images[Split.TEST], self.labels[Split.TEST])
                with torch.no_grad():
                    predicted = self.logits(model, batch).argmax(dim=1)
                return {"accuracy": float(predicted.eq(batch.labels).double().mean())}
    """

    @abstractmethod
    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return features of shape (examples, ...) for the `inputs` of a batch.

        Row n must depend on example n alone, and not on padding. If no module of the model outputs
        the features, return `mark_features(model, features)`.
        """

    @abstractmethod
    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (examples, classes), differentiable in the features."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the head's scores for the batch's features."""
        return self.head(self.features(model, batch.inputs))


class TaskPool(ABC, Generic[ConfigT]):
    """Tasks by name, in a fixed order.

    A subclass sets `config_class` and implements `__getitem__`. Its constructor sets `names` and
    reads no data: a task reads its data on first use. A run calls `bind` once, then `check`, and
    then lets algorithms adapt on the tasks and measures models on them. Example::

        from pathlib import Path

        import torch

        from fusion_core import ComponentConfig, InputPath, TaskPool, unknown_task

        class SignsConfig(ComponentConfig):
            folder: InputPath
            "The directory that holds one file of images and labels per task."

        class SignsPool(TaskPool[SignsConfig]):
            config_class = SignsConfig
            names = ("day", "night")

            def __getitem__(self, name):
                if name not in self.names:
                    raise unknown_task(name, self.names, "task_pool")
                data = torch.load(Path(self.config.folder) / f"{name}.pt")
                return SignsTask(name, data["images"], data["labels"])
    """

    config_class: ClassVar[type[ComponentConfig]] = ComponentConfig
    names: Sequence[str]
    #: the dtype in which models are built for measuring; None for bf16 if most of a model's values
    #: are stored in bf16, and fp32 otherwise
    dtype: torch.dtype | None = torch.float32
    #: whether UNLABELED holds the test examples, so that adapting on it is transductive
    transductive: bool = False
    #: the measured test examples, in words; None for all of them. Scores are compared only if it
    #: is equal, so a limit, and each half of the test examples, need words of their own
    measured_on: str | None = None
    #: published scores for these models and tasks
    published: Published | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def __getitem__(self, name: str) -> Task:
        """Return a task; raises `RecipeError` with close matches for an unknown name."""

    def adaptive(self, name: str) -> AdaptiveTask:
        """Return a task that algorithms can adapt on; raises `RecipeError` for any other."""
        task = self[name]
        if not isinstance(task, AdaptiveTask):
            raise RecipeError(
                f"task {name!r} has no examples to adapt on: it can only be measured",
                hint="Name other tasks, or use an algorithm that adapts on none.",
            )
        return task

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return the tasks for a pool's models; default: this pool itself.

        Called once, before any weights are read. A pool whose tasks need the models' tokenizer or
        processor returns a copy that holds the files of `pool.assets()`.
        """
        del pool
        return self

    def prepare(self, device: torch.device, save: Callable[[str, bytes], None]) -> Self:
        """Return the tasks for methods that adapt on them; default: this pool itself.

        Called once per run, before the first stage, and only if a stage uses tasks. A pool that
        makes its own examples makes them here, on the run's device. It may `save` files, by name,
        next to the model.
        """
        del device, save
        return self

    def __iter__(self) -> Iterator[Task]:
        return (self[name] for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def downloads(self) -> Sequence[FileRequest]:
        """Return the hub files that measuring needs, including those in the cache."""
        return ()

    def check(self) -> None:
        """Raise a `FusionError` that names the first task with missing data."""
        for name in self.names:
            try:
                self[name].check()
            except FusionError as error:
                raise type(error)(f"task {name!r}: {error.message}", hint=error.hint) from error
            except OSError as error:
                raise FusionError(
                    f"task {name!r}: its data cannot be read: {error}",
                    hint="Provide the data, or leave the task out with --tasks.",
                ) from error

    def inputs(self) -> Mapping[str, Any]:
        """Identify each task's data, by the task's name, as JSON data.

        Use the commit of a data set on the hub, as a text `org/name@commit`, and the hashes of
        local files, as `fusion_core.files.hash_files` returns them. Include every file that is
        measured or adapted on; the measured ones alone have the key `test`, if the others are
        listed too. Leave out paths, and tasks whose data cannot be identified. The provenance
        records the result, a locked recipe compares it before a run, and `fuse reproduce` does.
        """
        return {}

    def identity(self, name: str) -> Mapping[str, Any] | None:
        """Return, as JSON data, all that a task's scores depend on.

        Include the data (sizes and times of files, the commit of a data set), the head and the
        options. Leave out the code of the pool's package and the versions of its requirements.
        Measurements of a model are reused while it stays the same. None, the default, means that
        models are measured every time.
        """
        del name
        return None

    def holdout(self) -> Self:
        """Return a copy in which half of the test examples is UNLABELED and the other half TEST.

        Methods can then adapt on examples like the measured ones, but on none of them. The halves
        are the same in every call, and together they are all test examples. The copy is not
        `transductive`, and its `measured_on` and `identity` differ from the whole pool's. Raises
        `RecipeError` if the pool cannot split its test examples.
        """
        raise RecipeError(
            f"{type(self).__name__} has no halves of its test examples to hold out",
            hint="Adapt on the pool's own unlabeled examples, or on another task pool.",
        )

    def halves(self) -> tuple[Self, Self]:
        """Return two copies: one half of the test examples is TEST in each.

        Options are chosen on the first half, and the choice is measured on the second. The halves
        are those of `holdout`, and a held-out pool has halves, too. `measured_on` and `identity` of
        the copies differ. UNLABELED is the same in both and contains no example of the second half.
        Raises `RecipeError` if the pool cannot split its test examples.
        """
        raise RecipeError(
            f"{type(self).__name__} has no halves of its test examples to choose options on",
            hint="Choose without labels, or on another task pool.",
        )

    def dtype_for(self, infos: Mapping[str, TensorInfo]) -> torch.dtype:
        """Return the dtype in which a model that is stored like this is built for measuring."""
        if self.dtype is not None:
            return self.dtype
        sizes = Counter[torch.dtype]()
        for info in infos.values():
            sizes[info.dtype] += info.numel
        is_bf16 = sizes[torch.bfloat16] * 2 > sizes.total()
        return torch.bfloat16 if is_bf16 else torch.float32

    def measure(
        self,
        subject: Subject,
        tasks: Sequence[str] | None = None,
        *,
        label: str = "evaluate",
        progress: Progress | None = None,
    ) -> dict[str, MetricValues]:
        """Measure a model on the named tasks, by default on all; return the metrics by task.

        Pass `Subject.of(model)` for a live model. A pool that measures in another process overrides
        this and uses `subject.path` or `subject.weights`.
        """
        names = self.names if tasks is None else tasks
        metrics: dict[str, MetricValues] = {}
        track = (progress or Progress()).track(label, total=len(names))
        with track as advance, show_notes_on(advance):
            for name in names:
                metrics[name] = self[name].evaluate(subject.model)
                advance(1, note=name)
        return metrics
