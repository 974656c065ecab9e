"""What fused models are measured on: tasks with data, heads and metrics, and the report.

A task's batches are a pure function of step, split and seed, so an adaptive search can be resumed
and shared out. The report is the data of `report.json`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch

from fusion_core.contracts.batch import Batch, Split
from fusion_core.errors import FusionError, RecipeError
from fusion_core.progress import Progress, noting
from fusion_core.recipe.config import ComponentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from fusion_core.contracts.measures import Metric, Metrics
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.report import Published
    from fusion_core.contracts.subject import Subject
    from fusion_core.hub import Wanted

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)

#: What a task may raise that has no batches of one test example, and measures all the same.
_LEFT_TO_THE_RUN = (NotImplementedError, ValueError, TypeError, LookupError, RecipeError)


class Task(ABC):
    """One task: data, and what is measured of a model on it."""

    name: str
    #: what `evaluate` measures; what is not declared is a fraction, and higher is better
    metrics: Sequence[Metric] = ()
    #: what the figures stand for beside data and model, as JSON's data: versions, few-shot, seeds
    conditions: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Measure a model on the whole test split: values by name, the main metric first.

        A `Measured` also holds what each example came to, which gives the figure an interval.
        """

    def check(self) -> None:  # noqa: B027 - most tasks that only measure have nothing to look at
        """Raise `OSError` or a `FusionError` if data is missing here, before anything runs."""


class AdaptiveTask(Task):
    """A task whose examples algorithms look at: batches of them, and what a model says of each.

    The head that turns what the model computes into scores is not fused.
    """

    @abstractmethod
    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `size` examples; the same ones for the same arguments, in any process.

        The caller may write to them. Raises `RecipeError` for a size that no batch can have.
        """

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (examples, classes), differentiable in the model's parameters."""

    def check(self) -> None:
        """Raise `OSError` or a `FusionError` if data is missing here, before anything runs.

        By default one test example is read, and what else that raises is left for the run to say.
        A task whose data is large, or comes from the hub, looks at less.
        """
        with suppress(*_LEFT_TO_THE_RUN):
            self.batch(0, size=1, split=Split.TEST, seed=0)


class FeatureTask(AdaptiveTask):
    """A task whose head reads features, which the model computes of each example by itself.

    Tasks of one class can share a pass through the model, each with its own head: `features` is the
    same function for all of them.
    """

    @abstractmethod
    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return features of shape (examples, ...) of what the task's batches hold as `inputs`.

        Row n depends on the n-th example alone, and on no padding.
        """

    @abstractmethod
    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (examples, classes), differentiable in the features."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the head's scores for the batch's features."""
        return self.head(self.features(model, batch.inputs))


class TaskPool(ABC, Generic[ConfigT]):
    """Tasks by name, in a fixed order.

    A subclass's constructor sets `names` and reads no data; a task reads its data when first used.
    """

    config_class: ClassVar[type[ComponentConfig]]
    names: Sequence[str]
    #: what models are built in to be measured
    dtype: torch.dtype = torch.float32
    #: whether UNLABELED are the test examples themselves: adapting on them is then transductive
    transductive: bool = False
    #: which test examples are measured, in words; None for all of them. Figures are compared only
    #: where it is the same, so a limit and each half of the test examples have words of their own
    measured_on: str | None = None
    #: figures that others published for these models and tasks
    published: Published | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def __getitem__(self, name: str) -> Task:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""

    def adaptive(self, name: str) -> AdaptiveTask:
        """Return a task that algorithms can adapt on; raises `RecipeError` for another one."""
        task = self[name]
        if not isinstance(task, AdaptiveTask):
            raise RecipeError(
                f"task {name!r} has no examples to adapt on: it can only be measured",
                hint="Name other tasks, or use an algorithm that adapts on none.",
            )
        return task

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks, knowing the models that they are for; by default, as they are.

        Called once, before anything is adapted on or measured, and before any weights are read. A
        pool whose tasks need the models' tokenizer or processor finds the files in `pool.assets()`,
        and returns a copy of itself that holds them.
        """
        del pool
        return self

    def __iter__(self) -> Iterator[Task]:
        return (self[name] for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def downloads(self) -> Sequence[Wanted]:
        """Return the files on the hub that measuring needs, those in the cache too."""
        return ()

    def check(self) -> None:
        """Raise a `FusionError` naming the first task whose data is missing here."""
        for name in self.names:
            try:
                self[name].check()
            except FusionError as error:
                raise type(error)(f"task {name!r}: {error.message}", hint=error.hint) from error
            except OSError as error:
                raise FusionError(
                    f"task {name!r}: its data cannot be read: {error}",
                    hint="Put it there, or leave the task out with --tasks.",
                ) from error

    def inputs(self) -> Mapping[str, Any]:
        """Identify the tasks' data for the provenance, as far as it has a name of its own."""
        return {}

    def identity(self, name: str) -> Mapping[str, Any] | None:
        """Return all that a task measures by, as JSON's data: it changes where a figure might.

        The data (size and times of files, the commit of a data set), the head and the options; the
        code of the pool's package and the versions of what it requires need not be named.
        What was measured of the base and the experts is then shown again by later runs. None, the
        default: it is measured every time.
        """
        del name
        return None

    def holdout(self) -> Self:
        """Return these tasks with their test examples in halves: one UNLABELED, the other TEST.

        A method may then adapt on examples like those that it is measured on, but on none of them.
        Returns a copy with the same halves every time, each test example in one of them. The copy
        is not `transductive`, and its `measured_on` and `identity` tell it from the whole. Raises
        `RecipeError` where a pool has no halves.
        """
        raise RecipeError(
            f"{type(self).__name__} has no halves of its test examples to hold out",
            hint="Adapt on the pool's own unlabeled examples, or on another task pool.",
        )

    def halves(self) -> tuple[Self, Self]:
        """Return these tasks with one half of their test examples as TEST, and with the other.

        Options are chosen on the first half, and the choice is measured on the second; they are the
        halves of `holdout`, whose result has halves, too. Returns two copies whose `measured_on`
        and `identity` differ. UNLABELED is the same in both and holds no example of the second
        half. Raises `RecipeError` where a pool has no halves.
        """
        raise RecipeError(
            f"{type(self).__name__} has no halves of its test examples to choose options on",
            hint="Choose without labels, or on another task pool.",
        )

    def measure(
        self,
        subject: Subject,
        tasks: Sequence[str] | None = None,
        *,
        label: str = "evaluate",
        progress: Progress | None = None,
    ) -> dict[str, Metrics]:
        """Measure a model on every task, or on some; returns each task's metrics.

        A live model in a notebook is `Subject.of(model)`. A pool that measures in another process,
        from `subject.path` or `subject.weights`, overrides this.
        """
        found: dict[str, Metrics] = {}
        names = self.names if tasks is None else tasks
        track = (progress or Progress()).track(label, total=len(names))
        with track as advance, noting(advance):
            for name in names:
                found[name] = self[name].evaluate(subject.model)
                advance(1, note=name)
        return found
