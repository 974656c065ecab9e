"""What fused models are measured on: tasks with data, heads and metrics, and the report.

A task's batches are a pure function of step, split and seed, so an adaptive search can be resumed
and shared out. The report is the data of `report.json`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import TypeAdapter

from fusion_core.config import ComponentConfig
from fusion_core.errors import FusionError, RecipeError
from fusion_core.progress import Progress, noting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from fusion_core.hub import Wanted

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)
Metrics = Mapping[str, float]

SCHEMA = 1
REPORT = "report.json"
_STORED = ("tasks", "transductive", "measured_on", "published")
_REFERENCES = ("pretrained", "individual")
#: What a task may raise that has no batches of one test example, and measures all the same.
_LEFT_TO_THE_RUN = (NotImplementedError, ValueError, TypeError, LookupError, RecipeError)


class Split(StrEnum):
    """Which examples: UNLABELED for adaptive algorithms, TEST to measure results on."""

    TRAIN = "train"
    UNLABELED = "unlabeled"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task: whatever the task's `logits` takes; no labels on UNLABELED."""

    inputs: torch.Tensor
    labels: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.inputs.to(device), labels)


class Task(ABC):
    """One task: data, a head that is not fused, and a metric."""

    name: str

    @abstractmethod
    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `size` examples; the same ones for the same arguments, in any process."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (examples, classes), differentiable in the model's parameters."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Metrics:
        """Measure a model on the whole test split: fractions by name, the main metric first."""

    def check(self) -> None:
        """Raise `OSError` or a `FusionError` if data is missing here, before anything runs.

        By default one test example is read, and what else that raises is left for the run to say.
        A task whose data is large, or comes from the hub, looks at less.
        """
        with suppress(*_LEFT_TO_THE_RUN):
            self.batch(0, size=1, split=Split.TEST, seed=0)


class FeatureTask(Task):
    """A task whose head reads features, which the model computes of each example by itself.

    Tasks of one class can share a pass through the model, each with its own head: `features` is the
    same function for all of them.
    """

    @abstractmethod
    def features(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Return features of shape (examples, ...); row n depends on the n-th example alone."""

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
    #: whether UNLABELED are the test examples themselves: adapting on them is then transductive
    transductive: bool = False
    #: what `evaluate` measures on, in words, where that is not every test example
    measured_on: str | None = None
    #: figures that others published for these models and tasks
    published: Published | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def __getitem__(self, name: str) -> Task:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""

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

    def holdout(self) -> Self:
        """Return these tasks with their test examples in halves: one UNLABELED, the other TEST.

        So a method may adapt on examples like those that it is measured on, and none of them. The
        same halves every time. Raises `RecipeError` where a pool cannot.
        """
        raise RecipeError(
            f"{type(self).__name__} has no halves of its test examples to hold out",
            hint="Adapt on the pool's own unlabeled examples: --set algorithm.adapt_split=test",
        )

    def evaluate(
        self,
        model: nn.Module,
        *,
        tasks: Sequence[str] | None = None,
        label: str = "evaluate",
        progress: Progress | None = None,
    ) -> dict[str, Metrics]:
        """Measure a model on every task, or on some; returns each task's metrics."""
        found: dict[str, Metrics] = {}
        names = self.names if tasks is None else tasks
        track = (progress or Progress()).track(label, total=len(names))
        with track as advance, noting(advance):
            for name in names:
                found[name] = dict(self[name].evaluate(model))
                advance(1, note=name)
        return found


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of others, to be seen beside one's own: the main metric by method and task."""

    #: whose checkpoints they were measured on
    family: str
    #: where they stand
    source: str
    #: fractions: method -> task -> main metric
    rows: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Report:
    """What the tasks measured of one model, beside the models that it was made from.

    All numbers are fractions. A task's *main metric* is its first; `average` is the mean of the
    main metrics, `normalised_average` the mean of main metric / the individual expert's.
    """

    tasks: Mapping[str, Metrics]
    #: the base on every task, and each task's own expert, where the pool has them
    pretrained: Mapping[str, Metrics] = field(default_factory=dict)
    individual: Mapping[str, Metrics] = field(default_factory=dict)
    #: whether the algorithm saw the (unlabeled) test examples; None if it saw none at all
    transductive: bool | None = None
    #: what was measured on, in words; None for every test example
    measured_on: str | None = None
    #: what others published for the same models and tasks
    published: Published | None = None

    @property
    def average(self) -> float:
        """Mean of the tasks' main metrics."""
        return mean_of(self.tasks)

    @property
    def normalised_average(self) -> float | None:
        """Mean of main metric / individual expert's; None unless every task has such a number."""
        individual = {name: main(each) for name, each in self.individual.items()}
        if not self.tasks or not all(individual.get(name) for name in self.tasks):
            return None
        ratios = [main(each) / individual[name] for name, each in self.tasks.items()]
        return sum(ratios) / len(ratios)

    def over(self, tasks: Collection[str]) -> Self:
        """Return the report on some of the tasks: averages are then over these."""
        return replace(self, tasks={name: self.tasks[name] for name in tasks})

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json` (documented in docs/reference/report.md)."""
        rows = {"pretrained": self.pretrained, "individual": self.individual}
        return {
            "schema": SCHEMA,
            "average": self.average,
            "normalised_average": self.normalised_average,
            "tasks": self.tasks,
            "transductive": self.transductive,
            "measured_on": self.measured_on,
            "reference": {name: row for name, row in rows.items() if row},
            **({} if self.published is None else {"published": asdict(self.published)}),
        }

    @classmethod
    def from_json(cls, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report that `as_json` gave; raises `ValueError` for anything else."""
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"it is not of schema {SCHEMA}")
        fields = {name: content[name] for name in _STORED if name in content}
        beside = TypeAdapter(Mapping[str, Any]).validate_python(content.get("reference"))
        references = {name: beside[name] for name in _REFERENCES if name in beside}
        report = TypeAdapter(cls).validate_python({**fields, **references})
        rows = (report.tasks, report.pretrained, report.individual)
        if not report.tasks or not all(metrics for each in rows for metrics in each.values()):
            raise ValueError("it has no tasks, or one without metrics")
        return report


def main(metrics: Metrics) -> float:
    """Return a task's main metric, its first."""
    return next(iter(metrics.values()))


def mean_of(tasks: Mapping[str, Metrics]) -> float:
    """Return the mean of the tasks' main metrics."""
    return sum(map(main, tasks.values())) / len(tasks)


def how_to_measure(directory: Path) -> str:
    """Say how a model is measured for which no tasks, or no way to build it, are recorded."""
    return (
        f"If it is of a family that a pool knows, name it: fuse evaluate {directory} --pool NAME; "
        "see: fuse list pools\nAny other model is measured with its own library."
    )
