"""Classification by transformers heads: the merged model's own head, or a classifier's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from fusion_core import FeatureTask
from fusion_core.errors import RecipeError
from fusion_core.weights import collect_origins
from pools_lm.tasks.classification import ClassTask
from pools_lm.tasks.encoder import Example, run_module
from pools_lm.tasks.examples import unbound_error
from pools_lm.tasks.heads import SCORE, ExpertHead, class_names_in, config_of
from pools_lm.tasks.modules import Pooling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Batch, Split
    from fusion_core.hub import FileRequest
    from pools_lm.tasks.classification import Scorer
    from pools_lm.tasks.lines import Line


@dataclass
class HeadTask(ClassTask):
    """Classification of texts by the model's own head."""

    def scorer(self, model: nn.Module) -> Scorer:
        """Return a function that applies the head to the model's encoder."""
        classifier: Any = self.classifier(model)
        if classifier.config.pad_token_id is None:
            raise RecipeError(
                f"missing pad_token_id in the config.json of a {type(classifier).__name__}",
                hint="Set it to the token that texts were padded with in training.",
            )
        return lambda inputs: run_module(classifier, inputs).logits

    def classifier(self, model: nn.Module) -> nn.Module:
        """Return a live model with its head."""
        return model

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the head's scores, shape (examples, classes)."""
        return self.scorer(model)(batch.tensors)

    @cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, from the task or from the head's configuration.

        Raises `RecipeError` if both have the same names in another order.
        """
        names, in_head = self.data.names, class_names_in(self.head_config)
        if not names:
            return in_head
        task_names, head_names = ([text.casefold() for text in texts] for texts in (names, in_head))
        if task_names != head_names and sorted(task_names) == sorted(head_names):
            option = f"task_pool.datasets.{self.name}.names"
            raise RecipeError(
                f"{option}: conflicting order of classes: the task has {', '.join(names)}, its "
                f"head has {', '.join(in_head)}",
                hint="Use the order of the head, or leave the names out.",
            )
        return names

    @property
    def head_config(self) -> Mapping[str, Any]:
        """The `config.json` of the model with the head."""
        return config_of(self.models)


@dataclass
class ExpertTask(HeadTask):
    """Classification of texts by the head of the task's expert, or of another classifier."""

    def check(self) -> None:
        """Check the first test example, and that the head exists."""
        super().check()
        _ = self.expert_head

    def downloads(self) -> list[FileRequest]:
        """Return the files on the hub that evaluation reads, including those of the head."""
        head_files = (origin.wanted for origin in collect_origins(self.expert_head.weights))
        return [*super().downloads(), *filter(None, head_files)]

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the accuracy depends on, including the head."""
        return {**super().identity(), "own_head": self.expert_head.digest}

    def classifier(self, model: nn.Module) -> nn.Module:
        """Return the head on a live model's encoder."""
        return self.expert_head.attach(model)

    @property
    def head_config(self) -> Mapping[str, Any]:
        """The `config.json` of the model with the head."""
        config: dict[str, Any] = self.expert_head.skeleton.config.to_dict()
        return config

    @cached_property
    def expert_head(self) -> ExpertHead:
        """The head; raises `RecipeError` if it does not exist."""
        if self.models is None:
            raise unbound_error(self.name)
        return ExpertHead.of(self.models, self.name, self.data.head)


@dataclass
class LastTokenTask(ExpertTask, FeatureTask):
    """Classification by a linear head on a decoder's output at the last token of a text.

    The last token is the last one that differs from the pad token in the head's configuration.
    """

    logits = FeatureTask.logits

    def examples(self, lines: Sequence[Line], split: Split) -> list[Example]:
        """Return each line's tokens without the padding at its end."""
        return [self._without_padding(example) for example in super().examples(lines, split)]

    def scorer(self, model: nn.Module) -> Scorer:
        """Return a function that applies the head to the model's decoder."""
        return lambda inputs: self.head(self.features(model, inputs))

    def features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the model's output at the last tokens, shape (texts, width)."""
        encoder = replace(self.bound_encoder, pooling=Pooling(("lasttoken",)), steps=())
        return encoder.embed(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        """Return the head's scores, shape (texts, classes)."""
        weight = self.expert_head.module.get_parameter(SCORE)
        return functional.linear(features, weight.to(features))

    def _without_padding(self, example: Example) -> Example:
        pad_id, ids = self.expert_head.skeleton.config.pad_token_id, example.tokens["input_ids"]
        lengths = [length for length, token in enumerate(ids, 1) if token != pad_id]
        end = max(lengths, default=1)
        tokens = {name: values[:end] for name, values in example.tokens.items()}
        return replace(example, tokens=tokens)
