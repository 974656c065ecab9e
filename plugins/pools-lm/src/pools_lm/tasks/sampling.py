"""Prompts that models write themselves, for merges without any data of the tasks.

An instruction-tuned model that reads only the start of a user's turn writes a question that a user
could ask (Magpie, arXiv:2406.08464). A model without a chat template writes a text from its start
token on.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import build_live
from fusion_core import Split
from fusion_core.commands import cached_answer
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.scoring import greedy_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from fusion_core import ModelPool, WeightSource
    from pools_lm.tasks.config import SamplingConfig
    from pools_lm.tasks.prompts import Prompts
    from pools_lm.tasks.task import TokenTask

#: The file next to a merge that holds the prompts it was adapted on.
PROMPTS_FILE = "prompts.jsonl"
#: Draws per prompt that is wanted, since some are empty or repeated.
_DRAWS = 2
_BATCH = 32
#: Share of answers that the base begins as the expert does, above which prompts are idle.
_IDLE = 0.5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSampler:
    """Samples prompts of a pool's models, and lets an expert answer them.

    The result is a function of the models, the options and the key, and is cached.
    """

    pool: ModelPool[Any]
    prompts: Prompts
    config: SamplingConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def pairs(self, task: str, system: str | None = None, key: str = "") -> list[Pair]:
        """Return the tokens of prompts for a task, with those of its expert's greedy answers.

        Without a chat template, a text's first token is the context and the rest its continuation.
        Different keys give different prompts. Raises `RecipeError` for a task without an expert and
        for encoder-decoders, and `FusionError` if the model writes no prompt.
        """
        if self.prompts.is_seq2seq:
            raise RecipeError(
                f"task {task!r}: an encoder-decoder writes answers, but no prompts",
                hint="Name a file of prompts: task_pool.datasets.NAME.unlabeled",
            )
        expert = _LazyModel(self, self.pool.expert_of(task))
        source = self.pool.base if self.config.prompts == "base" else None
        # A base is released before the expert is built to answer.
        rows = self._write(_LazyModel(self, source) if source else expert, system, key)
        if not self.prompts.is_chat:
            return [Pair(row[:1], row[1:]) for row in rows]
        texts = list(dict.fromkeys(text.strip() for text in self.prompts.decode(rows)))
        texts = [text for text in texts if text][: self.config.sampled]
        if not texts:
            raise FusionError(
                f"{(source or expert.source).describe()} writes no prompts",
                hint="Name a file of prompts: task_pool.datasets.NAME.unlabeled",
            )
        questions = self.prompts.questions([[Turn(text)] for text in texts], system)
        length = self.prompts.length
        contexts = [Pair(ids).within(length) for ids in self.prompts.contexts(questions)]
        return self._answer(expert, contexts)

    def answer(self, task: str, pairs: Sequence[Pair], *, or_base: bool = False) -> list[Pair]:
        """Return pairs, those without a continuation with the greedy answer of the task's expert.

        With `or_base`, the base answers for a task without an expert. Contexts are cut so that the
        answers fit. Pairs stay as they are if no model is to answer, or if the options ask for no
        answers.
        """
        teacher = self._teacher_of(task) if or_base or self.has_expert(task) else None
        return list(pairs) if teacher is None else self._answer(_LazyModel(self, teacher), pairs)

    def has_expert(self, task: str) -> bool:
        """Tell whether the pool has an expert for a task."""
        return task in map(self.pool.task_of, self.pool.experts)

    def warn_of_idle_prompts(self, task: str, pairs: Sequence[Pair]) -> None:
        """Warn if the base begins most answers as the task's expert does.

        Such prompts do not show what the expert has learned. On real adapters the shares were at
        most 0.13, and on experts that write noise 0.6 to 0.75, where a merge adapted on them was
        worse than its start.
        """
        base = self.pool.base
        if base is None or not self.prompts.is_chat:
            return
        answered = [
            Pair(pair.context, pair.continuation[:1]) for pair in pairs if pair.continuation
        ]
        if not answered:
            return

        def begin(model: nn.Module) -> list[list[int]]:
            return greedy_tokens(model, answered, batch_size=_BATCH, label=f"{task}, base")

        question = {"begin": [[list(pair.context), list(pair.continuation)] for pair in answered]}
        begun = _LazyModel(self, base).ask(question, begin)
        same = sum(
            row == list(pair.continuation) for row, pair in zip(begun, answered, strict=True)
        )
        if same > _IDLE * len(answered):
            _LOG.warning(
                "the prompts that models write for %s say little about it: the base begins %d of "
                "%d answers as the expert does. Compare the merge with tsv-m, or give prompts of "
                "your own: task_pool.datasets.%s.unlabeled",
                task,
                same,
                len(answered),
                task,
            )

    def predict(self, task: str, pairs: Sequence[Pair]) -> list[list[int]]:
        """Return the most likely token at each position of the continuations.

        The task's expert predicts it, or the base for a task without an expert.
        """

        def predict(model: nn.Module) -> list[list[int]]:
            return greedy_tokens(model, pairs, batch_size=_BATCH, label=f"{task}, teacher")

        question = {"pairs": [[list(pair.context), list(pair.continuation)] for pair in pairs]}
        teacher = self._teacher_of(task) or self.pool.expert_of(task)  # which raises
        return _LazyModel(self, teacher).ask(question, predict)

    def _teacher_of(self, task: str) -> WeightSource | None:
        """Return the expert of a task, or the base if the pool has no such expert."""
        return self.pool.expert_of(task) if self.has_expert(task) else self.pool.base

    def _write(self, writer: _LazyModel, system: str | None, key: str) -> list[list[int]]:
        """Return the tokens of prompts; without a chat template, the start token is the first."""
        start = self.prompts.user_start(system)
        count = self.config.sampled * (_DRAWS if self.prompts.is_chat else 1)

        def write(model: nn.Module) -> list[list[int]]:
            generator = self._generator(model, self.config.prompt_tokens)
            rows = generator.sample_tokens([start] * count, seed=self.config.sampling_seed, key=key)
            return rows if self.prompts.is_chat else [[*start, *row] for row in rows]

        seed, tokens = self.config.sampling_seed, self.config.prompt_tokens
        question = {"start": start, "key": key, "count": count, "tokens": tokens, "seed": seed}
        return writer.ask(question, write)

    def _answer(self, teacher: _LazyModel, pairs: Sequence[Pair]) -> list[Pair]:
        """Return pairs, those without a continuation with a model's answer and its end token."""
        tokens = self.config.answer_tokens
        room = self.prompts.room_for_question(tokens, "task_pool.answer_tokens")
        contexts = [pair.within(room).context for pair in pairs if not pair.continuation]
        if not contexts or not tokens:
            return list(pairs)

        def answer(model: nn.Module) -> list[list[int]]:
            return self._generator(model, tokens).generate_tokens(contexts, label="answers")

        question = {"contexts": list(map(list, contexts)), "tokens": tokens}
        answered = map(Pair, contexts, teacher.ask(question, answer))
        return [pair if pair.continuation else next(answered) for pair in pairs]

    def _generator(self, model: nn.Module, tokens: int) -> TextGenerator:
        return TextGenerator(self.prompts, model, tokens, batch_size=_BATCH)


@dataclass(frozen=True)
class _LazyModel:
    """A model that is built for the first question whose answer is not cached."""

    sampler: PromptSampler
    source: WeightSource

    def ask(
        self, question: dict[str, Any], answer: Callable[[nn.Module], list[list[int]]]
    ) -> list[list[int]]:
        """Return what `answer(model)` says, or what it said to the same question before."""
        pool, device = self.sampler.pool, self.sampler.device
        key = {"sampled prompts": 1, "ends": list(self.sampler.prompts.ends), **question}
        rows: list[list[int]] = cached_answer(
            pool, self.source, key, lambda: answer(self._live), device=device
        )
        return rows

    @cached_property
    def _live(self) -> nn.Module:
        return build_live(self.sampler.pool, self.source, self.sampler.device)


def write_prompts(tasks: Iterable[TokenTask], save: Callable[[str, bytes], None]) -> None:
    """Let models write the prompts to adapt on, check these, and save them as JSON lines.

    A line has the task, the prompt and its answer, which is empty if it is unknown. Prompts are the
    texts that models read, chat template included, without special tokens.
    """
    lines: list[str] = []
    for task in tasks:
        pairs, decode = task.load_examples(Split.UNLABELED), task.bound_prompts.decode
        if task.sampler is not None:
            task.sampler.warn_of_idle_prompts(task.name, pairs)
        contexts = decode([pair.context for pair in pairs])
        answers = decode([pair.continuation for pair in pairs])
        lines += [
            json.dumps({"task": task.name, "prompt": context, "answer": answer})
            for context, answer in zip(contexts, answers, strict=True)
        ]
    save(PROMPTS_FILE, "".join(f"{line}\n" for line in lines).encode())
