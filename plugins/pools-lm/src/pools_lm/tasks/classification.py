"""Texts that are put into classes, by a model's own head, an expert's, or on their embeddings."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Batch, FeatureTask, Measured, Split
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.encoder import Encoder, Example, run, stacked
from pools_lm.tasks.examples import AdaptiveLinesTask, unbound
from pools_lm.tasks.heads import ExpertHead, LinearHead, logistic, names_of, nearest
from pools_lm.tasks.lines import Line
from pools_lm.tasks.scoring import by_length
from pools_lm.tasks.sentence_config import ClassLines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Metrics
    from pools_lm.tasks.sentence_config import ClassificationConfig

    Scores = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass
class ClassTask(AdaptiveLinesTask[ClassLines]):
    """Texts with classes."""

    config: ClassificationConfig
    #: None for a pool that is bound to no models yet
    encoder: Encoder | None = None
    models: Any = None

    @abstractmethod
    def scores(self, model: nn.Module) -> Scores:
        """Return what gives a batch's inputs scores, shape (examples, classes), by a model."""

    def look(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a text or a class."""
        self.examples([line], Split.TEST)

    def identity(self) -> Mapping[str, Any]:
        """Return all that the accuracy depends on."""
        how = {"head": self.config.head, **self.bound.identity()}
        return {**super().identity(), **how}

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return what the tokenizer makes of texts: tensors of shape (size, tokens), by name.

        Batches run through shuffled epochs, each of the whole number of batches that fit. Raises
        `RecipeError` for a size that no batch can have.
        """
        some = self.drawn(step, size=size, split=split, key=f"{seed}\0{self.name}\0{split}")
        is_labeled = split is not Split.UNLABELED
        return Batch(stacked(some), _labels(some) if is_labeled else None)

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"accuracy": fraction of the test texts}."""
        examples, scores = self.of(Split.TEST), self.scores(model)
        device = next(model.parameters()).device

        @torch.inference_mode()
        def scored(some: Sequence[Example]) -> Tensor:
            return scores({name: each.to(device) for name, each in stacked(some).items()}).cpu()

        size = self.config.batch_size
        found = torch.stack(by_length(scored, examples, model, batch_size=size, said=self.name))
        labels = _labels(examples)
        self._check_classes(int(labels.max()), found.shape[1])
        right = found.argmax(dim=1) == labels
        return Measured({"accuracy": float(right.double().mean())}, right.tolist())

    def examples(self, lines: Sequence[Line], split: Split) -> list[Example]:
        """Return every line's tokens and, where it may be seen, its class."""
        is_labeled = split is not Split.UNLABELED
        labels = [self._label(line) if is_labeled else None for line in lines]
        tokens = self.bound.tokens(lines, self.data.text, self.data.pair)
        return [Example(*each) for each in zip(tokens, labels, strict=True)]

    @property
    def bound(self) -> Encoder:
        """How texts are read; raises `RecipeError` where no models are known."""
        if self.encoder is None:
            raise unbound(self.name)
        return self.encoder

    @property
    def names(self) -> Sequence[str]:
        """What classes are called; nothing where they only have numbers."""
        return self.data.names or ()

    def _label(self, line: Line) -> int:
        given, names = line[self.data.label], list(self.names)
        if given in names:
            return names.index(given)
        if isinstance(given, int) and 0 <= given < (len(names) or given + 1):
            return given
        known = f"none of {', '.join(names)}" if names else "no number of a class"
        raise FusionError(
            f"{line.place}: {self.data.label} is {given!r}, {known}",
            hint=f"Say what classes 0, 1, ... are called: task_pool.datasets.{self.name}.names",
        )

    def _check_classes(self, largest: int, classes: int) -> None:
        if largest >= classes or len(self.names) not in {0, classes}:
            count = max(largest + 1, len(self.names))
            raise RecipeError(
                f"task {self.name!r} has {count} classes, and the head {classes}",
                hint="Name the head that belongs to the task: task_pool.head",
            )


@dataclass
class HeadTask(ClassTask):
    """Texts that a head of transformers puts into classes: the model's own, or an expert's."""

    def check(self) -> None:
        """Look at the first test example, and see that an expert has a head."""
        super().check()
        _ = self._head

    def scores(self, model: nn.Module) -> Scores:
        """Return the head's scores, around the model's encoder."""
        whole = model if self._head is None else self._head.around(model)
        config: Any = whole.config
        if config.pad_token_id is None:
            raise RecipeError(
                f"{type(whole).__name__} has no pad_token_id in its config.json",
                hint="Write there what texts were padded with in training.",
            )
        return lambda inputs: run(whole, inputs).logits

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the head's scores, of shape (examples, classes)."""
        return self.scores(model)(batch.tensors)

    def identity(self) -> Mapping[str, Any]:
        """Return all that the accuracy depends on, an expert's head included."""
        own = None if self._head is None else self._head.digest
        return {**super().identity(), "own_head": own}

    @property
    def names(self) -> Sequence[str]:
        """What the task, or else the head's configuration, calls the classes."""
        return self.data.names or self._named

    @cached_property
    def _named(self) -> Sequence[str]:
        return names_of(self.models, self.name if self._is_experts else None)

    @cached_property
    def _head(self) -> ExpertHead | None:
        return ExpertHead.of(self.models, self.name) if self._is_experts else None

    @property
    def _is_experts(self) -> bool:
        return self.config.head == "expert"


@dataclass
class EmbeddingTask(ClassTask, FeatureTask):
    """Texts that are put into classes by their embeddings.

    What is measured has a head of its own, made of its own embeddings. What adapts has the base's,
    which stays as it is.
    """

    def check(self) -> None:
        """Look at the first test example, and at what the head is made of."""
        super().check()
        if self._is_probe:
            self.lines(Split.TRAIN)
        else:
            self._of_names()

    def scores(self, model: nn.Module) -> Scores:
        """Return the scores of a head that is made of the model's own embeddings."""
        head = self._made(model)
        return lambda inputs: head(self.features(model, inputs))

    def features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of texts, shape (texts, width)."""
        return self.bound.embed(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        """Return the scores of the base's head, shape (texts, classes)."""
        return self._base_head(features)

    @cached_property
    def _base_head(self) -> LinearHead:
        return self._made(self.models.build(self.models.reference))

    def _made(self, model: nn.Module) -> LinearHead:
        examples = self.of(Split.TRAIN) if self._is_probe else self._of_names()
        how: dict[str, Any] = {"batch_size": self.config.batch_size, "said": f"{self.name}, head"}
        vectors = self.bound.embeddings(model, examples, **how)
        if not self._is_probe:
            return nearest(vectors)
        labels = _labels(examples)
        return logistic(vectors, labels, len(self.names) or int(labels.max()) + 1)

    def _of_names(self) -> list[Example]:
        if not self.names:
            raise RecipeError(
                f"task {self.name!r} does not say what its classes are called",
                hint=f"Say it: task_pool.datasets.{self.name}.names",
            )
        place = f"task_pool.datasets.{self.name}.names"
        lines = [Line(place, {"text": name}) for name in self.names]
        return [Example(each) for each in self.bound.tokens(lines, "{text}")]

    @property
    def _is_probe(self) -> bool:
        return self.config.head != "names"


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([each.label for each in examples])
