"""Answers that models write: greedily, the likeliest token each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pools_lm.tasks.scoring import by_length, padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pools_lm.tasks.prompts import Prompts


@dataclass(frozen=True)
class Writer:
    """A live model that goes on with texts."""

    prompts: Prompts
    model: nn.Module
    max_tokens: int
    #: texts that end an answer, and are none of it
    stop: Sequence[str] = ()
    batch_size: int = 16

    def write(self, contexts: Sequence[Sequence[int]], *, said: str) -> list[str]:
        """Return what follows each context; `said` is what progress is called."""
        rows = self.tokens(contexts, said=said)
        return list(map(self._cut, self.prompts.said(rows)))

    def tokens(self, contexts: Sequence[Sequence[int]], *, said: str) -> list[list[int]]:
        """Return the tokens that follow each context, up to one that ends an answer; it included.

        Of texts that end an answer, those that they are part of are there, too.
        """
        size = self.batch_size
        return by_length(self._batch, contexts, self.model, batch_size=size, said=said)

    def _batch(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        model: Any = self.model
        inputs = padded(contexts, filler=self._filler, left=True)
        moved = {name: each.to(model.device) for name, each in inputs.items()}
        begun = 1 if self.prompts.is_seq2seq else inputs["input_ids"].shape[1]
        with torch.inference_mode():
            tokens = model.generate(**moved, **self._how, **self._until(begun))
        return [self._ended(row) for row in tokens[:, begun:].tolist()]

    def _until(self, begun: int) -> dict[str, Any]:
        """Return what ends an answer early: a text of `stop` in what was written since `begun`.

        transformers has this, too, but in this process, by a tokenizer that may have no end.
        """
        if not self.stop:
            return {}
        from transformers import StoppingCriteriaList

        def has_stopped(tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            del scores
            said = self.prompts.said(tokens[:, begun:].tolist())
            ended = [any(stop in text for stop in self.stop) for text in said]
            return torch.tensor(ended, device=tokens.device)

        return {"stopping_criteria": StoppingCriteriaList([has_stopped])}

    @property
    def _how(self) -> dict[str, Any]:
        """What `generate` of transformers is told, whatever the model's own settings say."""
        from transformers import GenerationConfig

        config: Any = self.model.config
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_tokens,
            eos_token_id=list(self.prompts.ends) or None,
            pad_token_id=self._filler,
            decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
        )
        return {"generation_config": settings}

    @property
    def _filler(self) -> int:
        """The token of places before a text, and after one that has ended."""
        return next(iter(self.prompts.ends), 0)

    def _ended(self, row: list[int]) -> list[int]:
        ends = (place for place, token in enumerate(row, 1) if token in self.prompts.ends)
        return row[: next(ends, len(row))]

    def _cut(self, text: str) -> str:
        ends = [place for each in self.stop if (place := text.find(each)) >= 0]
        return text[: min(ends, default=len(text))]
