"""The base class of text tasks. Adaptation uses the next token as the class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_adapting import make_generator
from fusion_core import Batch, Split
from fusion_core.errors import RecipeError
from pools_lm.tasks.examples import AdaptiveLinesTask, DataT, ExampleTask, unbound_error
from pools_lm.tasks.scoring import ANSWERS, PREDICTED, next_token_scores, pad_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from pools_lm.tasks.config import LanguageTasksConfig
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair, Prompts, Turn
    from pools_lm.tasks.sampling import PromptSampler

#: About how many tokens of a task a search predicts: its teachers' predictions stay in memory.
_PREDICTIONS = 512


@dataclass
class TokenTask(ExampleTask):
    """A task whose examples are contexts with, if known, their continuations.

    The vocabulary is the set of classes. A batch predicts one token per example, drawn from its
    continuation, or all of them if the task is `with_all_predictions`. Without a known
    continuation, it is the first token after the context. For encoder-decoders, one token is always
    the first.
    """

    #: None until the pool is bound to models
    prompts: Prompts | None = field(default=None, kw_only=True)
    #: None until the pool is bound to models, which can write prompts
    sampler: PromptSampler | None = field(default=None, kw_only=True)
    #: whether batches predict all tokens of a continuation
    predicts_all: bool = field(default=False, kw_only=True)

    def with_all_predictions(self) -> Self:
        """Return this task with all tokens of each continuation, or as many as memory allows.

        A step then learns from every token that a pass computes anyway.
        """
        return replace(self, predicts_all=True)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `input_ids` and `attention_mask`, shape (size, tokens); labels are next tokens.

        Batches run through shuffled epochs of full batches. With all predictions there are no
        labels, and `predicted` marks the positions before the predicted tokens. Raises
        `RecipeError` for a size that no batch can have.
        """
        key = f"{seed}\0{self.name}\0{split}"
        pairs = self.draw(step, size=size, split=split, key=key)
        if self.predicts_all:
            return self._batch_of_all(pairs, split)
        is_seq2seq = self.bound_prompts.is_seq2seq
        fractions = torch.rand(len(pairs), generator=make_generator(0, f"{key}\0{step}")).tolist()
        rows: list[list[int]] = []
        labels: list[int] = []
        for pair, fraction in zip(pairs, fractions, strict=True):
            position = int(fraction * (1 if is_seq2seq else len(pair.continuation)))
            rows.append([*pair.context, *pair.continuation[:position]])
            labels.append([*pair.continuation, -1][position])
        return Batch(pad_rows(rows), None if split is Split.UNLABELED else torch.tensor(labels))

    def _batch_of_all(self, pairs: Sequence[Pair], split: Split) -> Batch:
        """Return texts with marks of the tokens to predict, in every batch the same of a text.

        The batches of an encoder-decoder's task hold answers of one length, which need no mask.
        """
        every = self.load_examples(split)
        most = max(1, _PREDICTIONS // len(every))
        rows = [_draw_predictions(pair, most) for pair in pairs]
        if self.bound_prompts.is_seq2seq:
            longest = max(1, *(len(pair.continuation) for pair in every))
            answers = pad_rows([pair.continuation for pair in pairs], length=longest)["input_ids"]
            marks = _mark(answers, rows)
            texts = pad_rows([pair.context for pair in pairs])
            return Batch({**texts, ANSWERS: answers.unsqueeze(1), PREDICTED: marks.unsqueeze(1)})
        texts = pad_rows([[*pair.context, *pair.continuation[:-1]] for pair in pairs])
        shifted = [row + len(pair.context) - 1 for row, pair in zip(rows, pairs, strict=True)]
        return Batch({**texts, PREDICTED: _mark(texts["input_ids"], shifted)})

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of the predicted tokens, shape (predictions, vocabulary)."""
        return next_token_scores(model, batch.tensors)

    @property
    def bound_prompts(self) -> Prompts:
        """The prompts; raises `RecipeError` for a task that is not bound to models."""
        if self.prompts is None:
            raise unbound_error(self.name)
        return self.prompts

    def on_device(self, device: torch.device) -> Self:
        """Return this task with prompts and answers that models write on a device."""
        return replace(self, sampler=self.sampler and replace(self.sampler, device=device))


def _draw_predictions(pair: Pair, most: int) -> Tensor:
    """Return the positions in a continuation that count, at most this many."""
    generator = make_generator(0, str(pair.context))
    return torch.randperm(max(1, len(pair.continuation)), generator=generator)[:most]


def _mark(tokens: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Return marks at some positions of each row of tokens, of the shape of `tokens`."""
    marks = torch.zeros_like(tokens, dtype=torch.bool)
    for row, positions in zip(marks, rows, strict=True):
        row[positions] = True
    return marks


@dataclass
class LanguageTask(AdaptiveLinesTask[DataT], TokenTask):
    """A task of lines that models read as tokens."""

    config: LanguageTasksConfig
    #: whether the base answers the UNLABELED prompts of a task without an expert
    asks_base: ClassVar[bool] = False

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the tokens of lines; UNLABELED lines need no answer."""
        raise NotImplementedError

    def examples(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the pair of each line."""
        return self.pairs(lines, split)

    def read_examples(self, split: Split) -> list[Pair]:
        """Return the examples of a split.

        Models may write the UNLABELED prompts of a task with an expert. The expert answers those
        without an answer. A search on TEST examples reads them as if they were UNLABELED, without
        their answers.
        """
        if split is Split.TEST and self.predicts_all:
            hidden = replace(self, data=self.data.model_copy(update={"unlabeled": None}))
            pairs = hidden.pairs(self.lines(split), Split.UNLABELED)
            return self._answer(pairs)
        if split is not Split.UNLABELED or self.sampler is None:
            return super().read_examples(split)
        if self.is_sampled and self.sampler.has_expert(self.name):
            return self.sampler.pairs(self.name, self.system, key=str(split))
        return self._answer(super().read_examples(split))

    def _answer(self, pairs: list[Pair]) -> list[Pair]:
        """Return pairs, those without a continuation with an answer of the task's expert."""
        if self.sampler is None:
            return pairs
        return self.sampler.answer(self.name, pairs, or_base=self.asks_base)

    @property
    def is_sampled(self) -> bool:
        """Whether models write the UNLABELED prompts."""
        return self.config.prompts != "own"

    @property
    def is_transductive(self) -> bool:
        """Whether the UNLABELED lines are the test lines."""
        return super().is_transductive and not self.is_sampled

    @property
    def system(self) -> str | None:
        """The system message of the task's conversations."""
        return None

    def check_template(self, turns: Sequence[Turn]) -> None:
        """Raise `RecipeError` if the chat template refuses a conversation of the task."""
        if self.prompts is None or not self.prompts.is_chat:
            return
        try:
            self.prompts.questions([turns], self.system)
        except RecipeError as error:
            option = f"task_pool.datasets.{self.name}.system"
            advice = "" if self.system is None else f" Or leave out {option}."
            hint = f"{error.hint or ''}{advice}".strip()
            raise RecipeError(f"task {self.name!r}: {error.message}", hint=hint) from error

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the metrics depend on."""
        return {
            **super().identity(),
            "chat": self.bound_prompts.is_chat,
            "length": self.bound_prompts.length,
            "models": self.bound_prompts.digest,
            "reading": 3,  # increases with every change to how models read questions and answers
        }
