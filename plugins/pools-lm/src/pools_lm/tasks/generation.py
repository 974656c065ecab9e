"""Generation of texts in batches: greedy answers, and reproducible samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_adapting import make_generator, map_batches, map_on_cores
from fusion_core import evaluation_mode
from pools_lm.tasks.reading import check_ids, limit_padding
from pools_lm.tasks.scoring import answer_start, pad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pools_lm.tasks.prompts import Prompts


@dataclass(frozen=True)
class _GumbelNoise:
    """Noise that makes the most likely token a sample: softmax(s) = P(argmax of s + noise).

    The global random state stays as it is, so batches can be sampled on several cores.
    """

    generator: torch.Generator

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (texts, vocabulary) with noise from a Gumbel distribution."""
        del tokens
        uniform = torch.rand(scores.shape, generator=self.generator, dtype=torch.float64)
        return scores - uniform.log().neg().log().to(scores)


@dataclass(frozen=True)
class TextGenerator:
    """A live model that continues texts."""

    prompts: Prompts
    model: nn.Module
    max_tokens: int
    #: texts that end an answer and are not part of it
    stop: Sequence[str] = ()
    batch_size: int = 16

    def generate(self, contexts: Sequence[Sequence[int]], *, label: str) -> list[str]:
        """Return the continuation of each context; `label` names the model in progress notes."""
        rows = self.generate_tokens(contexts, label=label)
        return list(map(self._truncate, self.prompts.decode(rows)))

    def generate_tokens(self, contexts: Sequence[Sequence[int]], *, label: str) -> list[list[int]]:
        """Return the tokens that follow each context, including the end token.

        Tokens that contain a stop text are included.
        """
        check_ids(self.model, contexts)
        size = limit_padding(self.model, self._first_scores, contexts, self.batch_size)
        return map_batches(self._batch, contexts, self.model, batch_size=size, label=label)

    def sample_tokens(
        self, contexts: Sequence[Sequence[int]], *, seed: int, key: str
    ) -> list[list[int]]:
        """Return tokens drawn from the model's own distribution after each context.

        The draws are a function of seed, key and contexts, for any number of cores.
        """
        check_ids(self.model, contexts)
        size = self.batch_size
        starts = range(0, len(contexts), size)

        def sample(start: int) -> list[list[int]]:
            noise = _GumbelNoise(make_generator(seed, f"{key}\0{start}"))
            return self._batch(contexts[start : start + size], noise)

        with evaluation_mode(self.model):
            return [row for rows in map_on_cores(sample, starts) for row in rows]

    def _batch(
        self, contexts: Sequence[Sequence[int]], noise: _GumbelNoise | None = None
    ) -> list[list[int]]:
        inputs, start = self._inputs(contexts)
        model: Any = self.model
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                generation_config=self._settings(self.max_tokens),
                logits_processor=[noise] if noise else None,
                **self._stopping(start),
            )
        rows = []
        for row in tokens[:, start:].tolist():
            ends = (length for length, token in enumerate(row, 1) if token in self.prompts.ends)
            rows.append(row[: next(ends, len(row))])
        return rows

    def _first_scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the scores of the first token after each context, shape (texts, vocabulary)."""
        inputs, _ = self._inputs(contexts)
        model: Any = self.model
        settings = self._settings(1, return_dict_in_generate=True, output_logits=True)
        with torch.inference_mode():
            result = model.generate(**inputs, generation_config=settings)
        scores: torch.Tensor = result.logits[0]
        return scores

    def _inputs(self, contexts: Sequence[Sequence[int]]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the inputs of `generate`, and the number of tokens before what it generates."""
        model: Any = self.model
        # A decoder continues the last token. An encoder counts positions from the first one.
        rows = pad_rows(contexts, value=self._pad_id, left=not self.prompts.is_seq2seq)
        inputs = {name: tensor.to(model.device) for name, tensor in rows.items()}
        if not self.prompts.is_seq2seq:
            return inputs, rows["input_ids"].shape[1]
        begun = torch.tensor(answer_start(model), device=model.device)
        inputs["decoder_input_ids"] = begun.expand(len(contexts), -1)
        return inputs, len(begun)

    def _stopping(self, start: int) -> dict[str, Any]:
        """Return the criterion that stops at a text of `stop` in the tokens from `start` on.

        transformers has such a criterion, but it runs the model's tokenizer in this process,
        without limits.
        """
        if not self.stop:
            return {}
        from transformers import StoppingCriteriaList

        def has_stopped(tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            del scores
            texts = self.prompts.decode(tokens[:, start:].tolist())
            stopped = [any(stop in text for stop in self.stop) for text in texts]
            return torch.tensor(stopped, device=tokens.device)

        return {"stopping_criteria": StoppingCriteriaList([has_stopped])}

    def _settings(self, most: int, **output: bool) -> Any:  # noqa: ANN401 - transformers' class
        """Return the settings of `generate` for at most so many tokens, and those of its output.

        Most of the model's own settings do not count; transformers applies some of them, such as
        BART's `forced_eos_token_id`.
        """
        from transformers import GenerationConfig

        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=list(self.prompts.ends) or None,
            pad_token_id=self._pad_id,
            **output,
        )

    @property
    def _pad_id(self) -> int:
        return next(iter(self.prompts.ends), 0)

    def _truncate(self, text: str) -> str:
        ends = [end for stop in self.stop if (end := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]
