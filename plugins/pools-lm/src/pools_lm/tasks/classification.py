"""Classification of texts, and classification by embeddings."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import map_batches, measure_accuracy, most_likely
from fusion_core import Batch, FeatureTask, Split
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.encoder import Encoder, Example, stack_examples
from pools_lm.tasks.examples import AdaptiveLinesTask, unbound_error
from pools_lm.tasks.heads import LinearHead, fit_logistic, nearest_name_head
from pools_lm.tasks.lines import Line, find_on_hub
from pools_lm.tasks.reading import limit_padding
from pools_lm.tasks.sentence_config import ClassLines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import MetricValues
    from pools_lm.tasks.sentence_config import ClassificationConfig

    #: from a batch's inputs to scores, shape (examples, classes)
    Scorer = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass
class ClassTask(AdaptiveLinesTask[ClassLines]):
    """Classification of texts."""

    config: ClassificationConfig
    #: None until the pool is bound to models
    encoder: Encoder | None = None
    models: Any = None

    @abstractmethod
    def scorer(self, model: nn.Module) -> Scorer:
        """Return the function that scores the classes with a model."""

    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a text or a class."""
        self.examples([line], Split.TEST)

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the accuracy depends on."""
        return {
            **super().identity(),
            "head": self.config.head,
            **self.bound_encoder.identity(),
        }

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return the named inputs of a batch, each of shape (size, tokens).

        Batches run through shuffled epochs of full batches. Raises `RecipeError` for a size that
        no batch can have.
        """
        key = f"{seed}\0{self.name}\0{split}"
        examples = self.draw(step, size=size, split=split, key=key)
        labels = None if split is Split.UNLABELED else _labels(examples)
        return Batch(stack_examples(examples), labels)

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"accuracy": fraction of the test texts}."""
        examples, scorer = self.load_examples(Split.TEST), self.scorer(model)
        device = next(model.parameters()).device

        @torch.inference_mode()
        def score(batch: Sequence[Example]) -> Tensor:
            inputs = stack_examples(batch)
            return scorer({name: tensor.to(device) for name, tensor in inputs.items()}).cpu()

        size = limit_padding(model, score, examples, self.config.batch_size)
        scores = torch.stack(map_batches(score, examples, model, batch_size=size, label=self.name))
        labels = _labels(examples)
        self._check_classes(int(labels.max()), scores.shape[1])
        return measure_accuracy(most_likely(scores).tolist(), labels.tolist())

    def examples(self, lines: Sequence[Line], split: Split) -> list[Example]:
        """Return each line's tokens and, unless the split is unlabeled, its class."""
        is_labeled = split is not Split.UNLABELED
        labels = [self._label(line) if is_labeled else None for line in lines]
        tokens = self.bound_encoder.tokenize(lines, self.data.text, self.data.pair)
        return [Example(*example) for example in zip(tokens, labels, strict=True)]

    @property
    def bound_encoder(self) -> Encoder:
        """The encoder; raises `RecipeError` for a task that is not bound to models."""
        if self.encoder is None:
            raise unbound_error(self.name)
        return self.encoder

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; empty if they only have numbers."""
        return self.data.names or ()

    def _label(self, line: Line) -> int:
        label, names = line[self.data.label], self.class_names
        if names:
            words = {"of": "number", "noun": "name", "thing": "class"}
            index = line.index_in(names, self.data.label, **words)
            if index is not None:
                return index
        elif isinstance(label, int) and label >= 0:
            return int(label)
        expected = f"one of {', '.join(names)}" if names else "the number of a class"
        raise FusionError(
            f"{line.location}: unknown {self.data.label} {label!r}, expected {expected}",
            hint=f"Name the classes 0, 1, ...: task_pool.datasets.{self.name}.names",
        )

    def _check_classes(self, largest: int, classes: int) -> None:
        if largest >= classes or len(self.class_names) not in {0, classes}:
            count = max(largest + 1, len(self.class_names))
            raise RecipeError(
                f"task {self.name!r} has {count} classes, but its head has {classes}",
                hint=f"Name the task's own head: task_pool.datasets.{self.name}.head",
            )


@dataclass
class EmbeddingTask(ClassTask, FeatureTask):
    """Classification of texts by their embeddings.

    Evaluation builds a new head from each model's own embeddings. Adaptation uses a fixed head from
    the base's embeddings.
    """

    def check(self) -> None:
        """Check the first test example and, if they are local, the examples for the head."""
        super().check()
        if not self._is_probe:
            self._name_examples()
        elif self.data.train is None:
            data = f"task_pool.datasets.{self.name}"
            raise RecipeError(
                f"no {data}.train, whose texts the head `probe` is fitted to",
                hint=f"Name a file, or let the nearest name decide: task_pool.head: names, with "
                f"{data}.names.",
            )
        elif find_on_hub(self.data.train) is None:
            self.lines(Split.TRAIN)

    def evaluation_data(self) -> list[str]:
        """Return the test examples, and the examples that a probe is fitted to."""
        train = self.data.train if self._is_probe else None
        return [*super().evaluation_data(), *filter(None, [train])]

    def scorer(self, model: nn.Module) -> Scorer:
        """Return a function that applies a head built from the model's own embeddings."""
        head = self._build_head(model)
        return lambda inputs: head(self.features(model, inputs))

    def features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of texts, shape (texts, width)."""
        return self.bound_encoder.embed(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        """Return the scores of the base's head, shape (texts, classes)."""
        return self._base_head(features)

    @cached_property
    def _base_head(self) -> LinearHead:
        return self._build_head(self.models.build(self.models.reference))

    def _build_head(self, model: nn.Module) -> LinearHead:
        examples = self.load_examples(Split.TRAIN) if self._is_probe else self._name_examples()
        vectors = self.bound_encoder.embed_all(
            model, examples, batch_size=self.config.batch_size, label=f"{self.name}, head"
        )
        if not self._is_probe:
            return nearest_name_head(vectors)
        labels = _labels(examples)
        return fit_logistic(vectors, labels, len(self.class_names) or int(labels.max()) + 1)

    def _name_examples(self) -> list[Example]:
        option = f"task_pool.datasets.{self.name}.names"
        if not self.class_names:
            raise RecipeError(
                f"task {self.name!r} has no class names, which the head `names` needs",
                hint=f"Set {option}.",
            )
        lines = [Line(option, {"text": name}) for name in self.class_names]
        return [Example(tokens) for tokens in self.bound_encoder.tokenize(lines, "{text}")]

    @property
    def _is_probe(self) -> bool:
        return self.config.head != "names"


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])
