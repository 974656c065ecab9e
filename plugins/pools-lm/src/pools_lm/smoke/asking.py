"""Models that are asked the same, one at a time in memory, and each but once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import remembered
from fusion_core.errors import CheckpointError, RecipeError
from pools_lm.smoke.answers import Answer
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.scoring import log_likelihoods
from pools_lm.tasks.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from fusion_core import WeightSource
    from pools_lm.pools import LanguagePool
    from pools_lm.tasks.prompts import Prompts

_BATCH = 16


@dataclass(frozen=True, eq=False)
class Speaker:
    """A model that can be asked."""

    name: str
    pool: LanguagePool
    weights: WeightSource

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors as they are stored."""
        return sum(info.nbytes for info in self.weights.infos.values())

    def build(self, device: torch.device) -> nn.Module:
        """Return it live, in the dtype that most of its numbers are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for info in self.weights.infos.values():
            if info.dtype.is_floating_point:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
        return self.pool.build(self.weights, dtype=max(sizes, key=sizes.__getitem__), device=device)


@dataclass
class Asking:
    """Prompts as tokens, and the model that was asked last.

    Answers and their likelihoods are remembered (`fusion_core.commands.remembered`).
    """

    prompts: Prompts
    questions: Sequence[str]
    #: tokens that an answer has at most
    max_tokens: int
    device: torch.device
    fresh: bool = False
    _live: tuple[Speaker, nn.Module] | None = None

    def __post_init__(self) -> None:
        """Raise `RecipeError` for a prompt that comes to nothing, or for the chat template."""
        self.max_tokens = min(self.max_tokens, max(1, self.prompts.length // 2))
        self.contexts = self._contexts()

    def answers(self, speaker: Speaker) -> list[Answer]:
        """Return what a model says to each prompt: the likeliest token each time."""
        ends = self.prompts.ends
        question = {"contexts": self.contexts, "max_tokens": self.max_tokens, "ends": list(ends)}
        found = self._asked(speaker, question, lambda: self._written(speaker))
        said = self.prompts.said([row for row, _ in found])
        return [Answer(text, row, finite) for text, (row, finite) in zip(said, found, strict=True)]

    def bits_per_byte(self, reader: Speaker, answers: Sequence[Answer]) -> float | None:
        """Return how likely a model finds answers, in bits a byte of theirs; None for empty ones.

        Bytes are those of UTF-8: so models of other tokenizers compare.
        """
        given = zip(self.contexts, answers, strict=True)
        pairs = [Pair(context, answer.tokens) for context, answer in given if answer.tokens]
        size = sum(len(each.text.encode()) for each in answers)
        if not size:
            return None
        question = {"pairs": [[list(pair.context), list(pair.continuation)] for pair in pairs]}
        nats = self._asked(reader, question, lambda: -sum(self._scores(reader, pairs)))
        return float(nats) / math.log(2) / size

    def _asked(self, speaker: Speaker, question: dict[str, Any], answer: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
        asked = {"smoke test": 1, **question}
        how: Any = {"device": self.device, "fresh": self.fresh}
        return remembered(speaker.pool, speaker.weights, asked, answer, **how)

    def _written(self, speaker: Speaker) -> list[tuple[list[int], bool]]:
        """Return each answer's tokens, and whether it was computed in numbers."""
        writer = Writer(self.prompts, self._model(speaker), self.max_tokens, batch_size=_BATCH)
        rows = writer.tokens(self.contexts, said=f"{speaker.name} answers")
        scores = self._scores(speaker, list(map(Pair, self.contexts, rows)))
        said = [[token for token in row if token not in self.prompts.ends] for row in rows]
        return list(zip(said, map(math.isfinite, scores), strict=True))

    def _scores(self, speaker: Speaker, pairs: Sequence[Pair]) -> list[float]:
        model = self._model(speaker)
        return log_likelihoods(model, pairs, batch_size=_BATCH, said=f"{speaker.name} reads")

    def _model(self, speaker: Speaker) -> nn.Module:
        if self._live is None or self._live[0] is not speaker:
            self._live = None  # before the next one is there
            self._live = speaker, speaker.build(self.device)
        return self._live[1]

    def _contexts(self) -> list[list[int]]:
        """Return the prompts' tokens, the end of those that are too long."""
        try:
            asked = self.prompts.questions([[Turn(question)] for question in self.questions])
        except (RecipeError, CheckpointError) as error:
            raise type(error)(error.message, hint="Ask without it: --plain") from error
        room = self.prompts.length - self.max_tokens
        contexts = self.prompts.contexts(asked)
        for question, tokens in zip(self.questions, contexts, strict=True):
            if not tokens:
                raise RecipeError(
                    f"the prompt {question!r} comes to no tokens", hint="Ask something."
                )
        return [list(Pair(tokens).within(room).context) for tokens in contexts]
