"""Train a small encoder-decoder from nothing, and its experts.

The build of lm-mini, in `plugins/pools-lm/build`, says where the texts come from.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "pools-lm" / "build"))

import pretrain
from corpus import Inputs
from model import Shape, train_tokenizer
from small_tasks import SIZES, Data
from small_training import Recipe, end_texts, pad_rows, padded, train, tune_matrices
from tasks import build, exchange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from small_training import Batch, Line, Parts

    Pair = tuple[str, str]

#: How the base is trained: steps, rate, chats per step, and texts in every fourth step.
_STEPS, _RATE, _CHATS, _TEXTS = 6000, 1e-3, 48, 24
#: Of a step's chats, the shorter ones: they are a batch of their own, which saves padding.
_SHORT = 32
#: The longest text, in words; its first half is the prompt.
_WORDS = 16
#: T5's embeddings begin 14 times as large as its matrices: they learn so many times faster.
_EMBEDDINGS = 10
_EXPERT = Recipe(steps=400, rate=1e-3, size=32, seed=0)
_IGNORED = -100
_SHAPE = Shape()


class EncoderDecoder:
    """T5's architecture: pre-trained on texts, and on chats that cover the tasks in other words."""

    def __init__(self, texts: Path) -> None:
        inputs = Inputs(texts)
        self._tasks = build(inputs)
        self._read = pretrain.texts(inputs, self._tasks, pretrain.Recipe())
        turns = [text for task in self._tasks[1:] for line in task.train for text in exchange(line)]
        self.tokenizer = train_tokenizer(
            [*random.Random(0).sample(self._read, 40_000), *turns], _SHAPE
        )
        self.tokenizer.chat_template = None
        end_texts(self.tokenizer)
        self.data = {
            task.name: Data(
                {
                    "train": task.train,
                    "unlabeled": [_without_answer(line) for line in task.unlabeled],
                    "test": task.test[: SIZES["test"]],
                },
                {"kind": "choice"}
                if task.kind == "choice"
                else {"kind": "generate", "max_tokens": 16},
            )
            for task in self._tasks[1:]
        }

    def write_base(self, path: Path) -> None:
        """Train and save the base."""
        from transformers import T5Config, T5ForConditionalGeneration

        torch.manual_seed(0)
        config: dict[str, Any] = {
            "vocab_size": _SHAPE.vocabulary,
            "d_model": _SHAPE.width,
            "d_kv": _SHAPE.width // _SHAPE.heads,
            "d_ff": _SHAPE.inner,
            "num_layers": _SHAPE.layers,
            "num_decoder_layers": _SHAPE.layers,
            "num_heads": _SHAPE.heads,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "decoder_start_token_id": self.tokenizer.pad_token_id,
        }
        model: Any = T5ForConditionalGeneration(T5Config(**config))
        embedding = model.get_input_embeddings().weight
        others = [parameter for parameter in model.parameters() if parameter is not embedding]
        optimiser = torch.optim.AdamW(
            [{"params": others, "lr": _RATE}, {"params": [embedding], "lr": _EMBEDDINGS * _RATE}],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )
        train(model, optimiser, self._steps(), _STEPS)
        model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def write_expert(self, name: str, base: Path, path: Path, seed: int) -> None:
        """Train and save a task's expert: its matrices, without embeddings and norms."""
        from transformers import T5ForConditionalGeneration

        torch.manual_seed(seed)
        model = T5ForConditionalGeneration.from_pretrained(base)
        lines = self.data[name].lines["train"]
        tune_matrices(model, lines, self._batch_of_lines, replace(_EXPERT, seed=seed))
        model.save_pretrained(path)

    def _steps(self) -> Iterator[Parts]:
        """Yield the batches of each step of pre-training."""
        recipe = pretrain.Recipe(steps=_STEPS, chats=_CHATS)
        chats: Any = pretrain.draw_chats(self._tasks, _Pairs(), recipe)
        draw = random.Random(7)
        for step in range(_STEPS):
            pairs = sorted((next(chats) for _ in range(_CHATS)), key=lambda pair: len(pair[0]))
            short, long = self._batch(pairs[:_SHORT]), self._batch(pairs[_SHORT:])
            parts = [(_SHORT / _CHATS, short), (1 - _SHORT / _CHATS, long)]
            if step % 4 == 0:
                texts = [_halves(draw.choice(self._read)) for _ in range(_TEXTS)]
                parts.append((0.5, self._batch(texts)))
            yield parts

    def _batch_of_lines(self, lines: Sequence[Line]) -> Batch:
        return self._batch([exchange(dict(line)) for line in lines])

    def _batch(self, pairs: Sequence[Pair]) -> Batch:
        asked = self.tokenizer([question for question, _ in pairs])["input_ids"]
        answers = self.tokenizer([answer for _, answer in pairs])["input_ids"]
        return {
            **padded(asked, self.tokenizer.pad_token_id),
            "labels": pad_rows(answers, _IGNORED),
        }


class _Pairs:
    """Leaves a question and its answer as they are."""

    @staticmethod
    def exchange(question: str, answer: str) -> Pair:
        return question, answer


def _halves(text: str) -> Pair:
    words = text.split()[:_WORDS]
    half = max(1, len(words) // 2)
    return " ".join(words[:half]), " ".join(words[half:])


def _without_answer(line: Line) -> Line:
    return {key: value for key, value in line.items() if key != "answer"}
