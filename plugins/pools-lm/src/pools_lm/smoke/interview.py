"""Ask several models the same prompts, with one model in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import cached_answer
from fusion_core.errors import CheckpointError, RecipeError
from pools_lm.smoke.answers import Answer
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.scoring import log_likelihoods

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import torch
    from torch import nn

    from fusion_core import WeightSource
    from fusion_core.weights import TensorInfo
    from pools_lm.language_pool import LanguagePool
    from pools_lm.tasks.prompts import Prompts

_BATCH = 16


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model of a pool, with its name in the smoke test."""

    name: str
    pool: LanguagePool
    weights: WeightSource
    #: adds the modules to a live model that its weights leave out; None without any
    add_modules: Callable[[nn.Module], object] | None = None

    @property
    def nbytes(self) -> int:
        """The stored size of its tensors in bytes. An adapter has its base's."""
        return sum(info.nbytes for info in self._infos)

    def build(self, device: torch.device) -> nn.Module:
        """Return a live model in the dtype of most of its stored values."""
        sizes: dict[torch.dtype, int] = {}
        for info in self._infos:
            if info.dtype.is_floating_point:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
        dtype = max(sizes, key=sizes.__getitem__)
        live = self.pool.build(self.weights, dtype=dtype, device=device)
        if self.add_modules is not None:
            self.add_modules(live)
        return live

    @property
    def _infos(self) -> Collection[TensorInfo]:
        """The tensors as stored; of an adapter its base's: its differences may be in fp64."""
        return (self.pool.reference if self.weights.is_delta else self.weights).infos.values()


@dataclass
class Interview:
    """The prompts as tokens, and the live model that was asked last.

    Answers and their likelihoods are cached (`fusion_core.commands.cached_answer`).
    """

    prompts: Prompts
    questions: Sequence[str]
    #: maximum number of tokens per answer
    max_tokens: int
    device: torch.device
    fresh: bool = False
    _live: tuple[NamedModel, nn.Module] | None = None

    def __post_init__(self) -> None:
        """Tokenize the prompts; raise `RecipeError` for a prompt without text.

        A chat template that fails raises `RecipeError` or `CheckpointError`. A long prompt loses
        its start.
        """
        if not all(question.strip() for question in self.questions):
            raise RecipeError("a prompt is empty", hint="Give a prompt with some text.")
        self.max_tokens = min(self.max_tokens, max(1, self.prompts.length // 2))
        try:
            texts = self.prompts.questions([[Turn(question)] for question in self.questions])
        except (RecipeError, CheckpointError) as error:
            raise type(error)(error.message, hint="Use no chat template: --plain") from error
        room = self.prompts.length - self.max_tokens
        contexts = self.prompts.contexts(texts)
        self.contexts = [list(Pair(tokens).within(room).context) for tokens in contexts]

    def answers(self, model: NamedModel) -> list[Answer]:
        """Return a model's greedy answer to each prompt."""
        ends = list(self.prompts.ends)
        question = {"contexts": self.contexts, "max_tokens": self.max_tokens, "ends": ends}
        rows = self._cached(model, question, lambda: self._generate(model))
        texts = self.prompts.decode([tokens for tokens, _ in rows])
        return [
            Answer(text, tokens, is_finite)
            for text, (tokens, is_finite) in zip(texts, rows, strict=True)
        ]

    def bits_per_byte(self, reader: NamedModel, answers: Sequence[Answer]) -> float | None:
        """Return a model's likelihood of answers, in bits per byte; None if all are empty.

        Bytes of UTF-8 compare models with different tokenizers.
        """
        size = sum(len(answer.text.encode()) for answer in answers)
        if not size:
            return None
        pairs = [
            Pair(context, answer.tokens)
            for context, answer in zip(self.contexts, answers, strict=True)
            if answer.tokens
        ]
        question = {"pairs": [[list(pair.context), list(pair.continuation)] for pair in pairs]}
        nats = self._cached(reader, question, lambda: -sum(self._score(reader, pairs)))
        return float(nats) / math.log(2) / size

    def _cached(
        self, model: NamedModel, question: dict[str, Any], compute: Callable[[], Any]
    ) -> Any:  # noqa: ANN401 - JSON
        if model.add_modules is not None:  # the weights do not identify it
            return compute()
        key = {"smoke test": 1, **question}
        return cached_answer(
            model.pool, model.weights, key, compute, device=self.device, fresh=self.fresh
        )

    def _generate(self, model: NamedModel) -> list[tuple[list[int], bool]]:
        """Return the tokens of each answer, and whether the model's scores are finite."""
        generator = TextGenerator(
            self.prompts, self._build(model), self.max_tokens, batch_size=_BATCH
        )
        rows = generator.generate_tokens(self.contexts, label=f"{model.name} answers")
        scores = self._score(model, list(map(Pair, self.contexts, rows)))
        answers = [[token for token in row if token not in self.prompts.ends] for row in rows]
        return list(zip(answers, map(math.isfinite, scores), strict=True))

    def _score(self, model: NamedModel, pairs: Sequence[Pair]) -> list[float]:
        live = self._build(model)
        return log_likelihoods(live, pairs, batch_size=_BATCH, label=f"{model.name} reads")

    def _build(self, model: NamedModel) -> nn.Module:
        if self._live is None or self._live[0] is not model:
            self._live = None  # free the memory first
            self._live = model, model.build(self.device)
        return self._live[1]
