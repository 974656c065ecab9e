"""Comparison of a merge with its base, on general prompts and texts that belong to no expert."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from language_prompts import MEASURED
from torch.nn.functional import kl_div

from fusion_adapting import map_on_cores
from pools_lm.mini.pools import DATA
from pools_lm.tasks.config import PerplexityTasksConfig
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.pool import PerplexityTasks
from pools_lm.tasks.prompts import Prompts, Turn
from pools_lm.tasks.scoring import pad_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_core import ModelPool

_ANSWER_TOKENS, _AT_ONCE, _PASSAGES = 32, 10, 50
_ROOT = Path(__file__).parents[1]


class General:
    """The base's answers to general prompts, and texts, with which models are compared."""

    def __init__(self, pool: ModelPool[Any], directory: Path) -> None:
        self._pool, self._prompts = pool, Prompts.of_pool(pool)
        config = PerplexityTasksConfig(datasets=_write_texts(directory), dtype="float32")
        self._texts = PerplexityTasks(config).bind(pool)

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Compare an fp32 model with the base.

        Returns the bits per byte of every text, and for each prompt the number of tokens of the
        base's greedy answer, how many of them are the model's most likely ones too, and the mean
        divergence KL(base || model) per token in nats.
        """
        texts: dict[str, list[float]] = {}
        for name in self._texts.names:
            measured: Any = self._texts[name].evaluate(model)
            texts[name] = [round(bits, 4) for bits in measured.outcomes]
        equal, divergence = [], []
        for ours, base in zip(self._score(model), self._base_scores, strict=True):
            equal.append(int((ours.argmax(-1) == base.argmax(-1)).sum()))
            sums = kl_div(ours, base, log_target=True, reduction="none").sum(-1)
            divergence.append(round(float(sums.mean()), 4))
        sizes = [len(answer) for answer in self._answers]
        return {"tokens": sizes, "equal": equal, "kl": divergence, "bits": texts}

    @cached_property
    def _contexts(self) -> list[list[int]]:
        return self._prompts.contexts(self._prompts.questions([[Turn(text)] for text in MEASURED]))

    @cached_property
    def _base(self) -> nn.Module:
        assert self._pool.base is not None
        return self._pool.build(self._pool.base)

    @cached_property
    def _answers(self) -> list[list[int]]:
        generator = TextGenerator(self._prompts, self._base, _ANSWER_TOKENS, batch_size=50)
        return generator.generate_tokens(self._contexts, label="base")

    @cached_property
    def _base_scores(self) -> list[Tensor]:
        scores = self._score(self._base)
        del self._base
        return scores

    def _score(self, model: Any) -> list[Tensor]:  # noqa: ANN401 - transformers' many classes
        """Return the log-probabilities at each token of the base's answers, by prompt."""
        starts = range(0, len(self._answers), _AT_ONCE)
        parts = map_on_cores(lambda start: self._score_batch(model, start), starts)
        return [row for rows in parts for row in rows]

    @torch.inference_mode()
    def _score_batch(self, model: Any, start: int) -> list[Tensor]:  # noqa: ANN401 - as above
        contexts = self._contexts[start : start + _AT_ONCE]
        answers = self._answers[start : start + _AT_ONCE]
        rows = [[*asked, *answer[:-1]] for asked, answer in zip(contexts, answers, strict=True)]
        logits = model(**pad_rows(rows)).logits
        scores = []
        for row, asked, answer in zip(logits, contexts, answers, strict=True):
            first = len(asked) - 1
            scores.append(row[first : first + len(answer)].log_softmax(-1))
        return scores


def _write_texts(directory: Path) -> dict[str, Any]:
    """Write texts as lines: passages of the King James Bible, and paragraphs of Apache-2.0."""
    bible = (DATA / "tasks" / "scripture" / "test.jsonl").read_text().splitlines()[:_PASSAGES]
    licence = (_ROOT / "LICENSE").read_text().partition("APPENDIX")[0]
    paragraphs = [" ".join(text.split()) for text in re.split(r"\n\s*\n", licence)]
    texts = {
        "bible": [json.loads(line)["text"] for line in bible],
        "licence": [text for text in paragraphs if len(text) >= 100],
    }
    datasets = {}
    for name, lines in texts.items():
        path = directory / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in lines))
        datasets[name] = {"kind": "perplexity", "test": str(path)}
    return datasets
