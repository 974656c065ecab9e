"""Texts that heads of transformers put into classes: the models' own, or those of classifiers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from fusion_core import FeatureTask
from fusion_core.errors import RecipeError
from fusion_core.weights import origins
from pools_lm.tasks.classification import ClassTask
from pools_lm.tasks.encoder import Example, run
from pools_lm.tasks.examples import unbound
from pools_lm.tasks.heads import SCORE, ExpertHead, config_of, names_in
from pools_lm.tasks.modules import Pooling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Batch, Split
    from fusion_core.hub import Wanted
    from pools_lm.tasks.classification import Scores
    from pools_lm.tasks.lines import Line


@dataclass
class HeadTask(ClassTask):
    """Texts that a model's own head puts into classes."""

    def scores(self, model: nn.Module) -> Scores:
        """Return the head's scores, around the model's encoder."""
        whole: Any = self.whole(model)
        if whole.config.pad_token_id is None:
            raise RecipeError(
                f"{type(whole).__name__} has no pad_token_id in its config.json",
                hint="Write there what texts were padded with in training.",
            )
        return lambda inputs: run(whole, inputs).logits

    def whole(self, model: nn.Module) -> nn.Module:
        """Return a live model with the head."""
        return model

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the head's scores, of shape (examples, classes)."""
        return self.scores(model)(batch.tensors)

    @cached_property
    def names(self) -> Sequence[str]:
        """What the task, or else the head's configuration, calls the classes."""
        return self.data.names or names_in(self.head_config())

    def head_config(self) -> Mapping[str, Any]:
        """Return what lies beside the head."""
        return config_of(self.models)


@dataclass
class ExpertTask(HeadTask):
    """Texts that the head of a task's expert, or of another classifier, puts into classes."""

    def check(self) -> None:
        """Look at the first test example, and see that there is a head."""
        super().check()
        _ = self.own

    def downloads(self) -> list[Wanted]:
        """Return the files on the hub that measuring reads, those of the head included."""
        of_head = (origin.wanted for origin in origins(self.own.weights))
        return [*super().downloads(), *filter(None, of_head)]

    def identity(self) -> Mapping[str, Any]:
        """Return all that the accuracy depends on, the head included."""
        return {**super().identity(), "own_head": self.own.digest}

    def whole(self, model: nn.Module) -> nn.Module:
        """Return the head around a live model's encoder."""
        return self.own.around(model)

    def head_config(self) -> Mapping[str, Any]:
        """Return what lies beside the head."""
        config: dict[str, Any] = self.own.empty.config.to_dict()
        return config

    @cached_property
    def own(self) -> ExpertHead:
        """The head; raises `RecipeError` where there is none."""
        if self.models is None:
            raise unbound(self.name)
        return ExpertHead.of(self.models, self.name, self.data.head)


@dataclass
class LastTokenTask(ExpertTask, FeatureTask):
    """Texts that a linear head puts into classes, which reads what a decoder says of their end.

    That is the last token that is not the one which the head's configuration pads with.
    """

    logits = FeatureTask.logits

    def examples(self, lines: Sequence[Line], split: Split) -> list[Example]:
        """Return every line's tokens up to the last that counts: a decoder reads no further."""
        return [self._ended(example) for example in super().examples(lines, split)]

    def scores(self, model: nn.Module) -> Scores:
        """Return the head's scores, around the model's decoder."""
        return lambda inputs: self.head(self.features(model, inputs))

    def features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the model says of the last tokens, shape (texts, width)."""
        return replace(self.bound, pooling=Pooling(("lasttoken",)), steps=()).embed(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        """Return the head's scores, of shape (texts, classes)."""
        return functional.linear(features, self.own.shell.get_parameter(SCORE).to(features))

    def _ended(self, example: Example) -> Example:
        filler, ids = self.own.empty.config.pad_token_id, example.tokens["input_ids"]
        counted = [place for place, token in enumerate(ids, 1) if token != filler]
        end = max(counted, default=1)
        return replace(example, tokens={name: each[:end] for name, each in example.tokens.items()})
