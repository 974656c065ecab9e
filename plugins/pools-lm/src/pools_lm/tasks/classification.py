"""Texts that are put into classes, and those that are by their embeddings."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Batch, FeatureTask, Measured, Split
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.encoder import Encoder, Example, stacked
from pools_lm.tasks.examples import AdaptiveLinesTask, unbound
from pools_lm.tasks.heads import LinearHead, logistic, nearest
from pools_lm.tasks.lines import Line, on_hub
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
                hint=f"Name the head that belongs to it: task_pool.datasets.{self.name}.head",
            )


@dataclass
class EmbeddingTask(ClassTask, FeatureTask):
    """Texts that are put into classes by their embeddings.

    What is measured has a head of its own, made of its own embeddings. What adapts has the base's,
    which stays as it is.
    """

    def check(self) -> None:
        """Look at the first test example, and at what the head is made of, if that is here."""
        super().check()
        if not self._is_probe:
            self._of_names()
        elif self.data.train is None or on_hub(self.data.train) is None:
            self.lines(Split.TRAIN)

    def measured(self) -> list[str]:
        """Return the test examples, and those that a probe is fitted to."""
        fitted = self.data.train if self._is_probe else None
        return [*super().measured(), *filter(None, [fitted])]

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
        return [Example(token) for token in self.bound.tokens(lines, "{text}")]

    @property
    def _is_probe(self) -> bool:
        return self.config.head != "names"


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])
