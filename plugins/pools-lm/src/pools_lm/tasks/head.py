"""The class that a head of its own finds in a model's features: heads are not fused."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from fusion_core import FeatureTask, Metric, Split, note
from fusion_core.errors import CheckpointError
from fusion_core.weights import locate
from pools_lm.tasks.config import HeadLines
from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.scoring import each_batch, padded
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Metrics, WeightSource
    from fusion_core.hub import Wanted
    from pools_lm.tasks.lines import Line

#: What transformers calls the head of a decoder that was fine-tuned to classify.
_SCORE = "score.weight"


class HeadTask(LanguageTask[HeadLines], FeatureTask):
    """Texts, and a linear head that reads what a decoder says of their last token.

    As `GPT2ForSequenceClassification` and its like do it. The tokens of a pair of texts follow each
    other; what is too long is cut at the end of the longer one.
    """

    metrics = (Metric("accuracy"),)
    logits = FeatureTask.logits

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return every text's tokens, and its class where that may be seen."""
        hidden = split is Split.UNLABELED and self.hides_answers
        return [
            Pair(self._tokens(line), () if hidden else (line[self.data.label],)) for line in lines
        ]

    def features(self, model: nn.Module, inputs: Any) -> Tensor:  # noqa: ANN401 - a mapping
        """Return the last token's hidden states, of shape (texts, width)."""
        states: Tensor = model(**inputs).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        return states[torch.arange(len(last), device=last.device), last]

    def head(self, features: Tensor) -> Tensor:
        """Return the head's scores, of shape (texts, classes)."""
        return functional.linear(features, self._weight.to(features))

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"accuracy": fraction of the test texts}."""
        pairs = sorted(self._of(Split.TEST), key=len)
        size, device = self.config.batch_size, next(model.parameters()).device
        batches = [pairs[n : n + size] for n in range(0, len(pairs), size)]

        def count(some: Sequence[Pair]) -> int:
            inputs = {k: v.to(device) for k, v in padded([each.context for each in some]).items()}
            with torch.inference_mode():
                found = self.head(self.features(model, inputs)).argmax(dim=-1).tolist()
            return sum(map(int.__eq__, found, (each.continuation[0] for each in some)))

        right = 0
        for number, each in enumerate(each_batch(count, batches, model), 1):
            right += each
            note(f"{self.name}: {min(number * size, len(pairs)):,} of {len(pairs):,} texts")
        return {"accuracy": right / len(pairs)}

    def check(self) -> None:
        """See that the head is there, too."""
        super().check()
        _ = self._classifier

    def downloads(self) -> Sequence[Wanted]:
        """Return the test examples and the classifier on the hub."""
        return [*super().downloads(), *self._classifier.downloads()]

    def identity(self) -> Mapping[str, Any]:
        """Return all that the figures depend on, the head's file or commit included."""
        classifier = self._classifier
        return {**super().identity(), "head": [classifier.describe(), dict(classifier.files())]}

    @cached_property
    def _classifier(self) -> WeightSource:
        found = locate(self.data.head, f"task {self.name!r}").source()
        if _SCORE not in found.infos:
            raise CheckpointError(
                f"{found.describe()} has no tensor {_SCORE!r}, the head of task {self.name!r}",
                hint="Name a decoder that was fine-tuned to classify texts.",
            )
        return found

    @cached_property
    def _weight(self) -> Tensor:
        return self._classifier.tensor(_SCORE)

    def _tokens(self, line: Line) -> list[int]:
        texts = [line[field] for field in self.data.texts]
        cut = {"truncation": True, "max_length": self.bound.length}
        return list(self.bound.tokenizer(*texts, **cut).input_ids)
