"""Train a small encoder-decoder and a small encoder from nothing, and their experts.

The build of lm-mini, in `plugins/pools-lm/build`, says where the texts come from.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import processors
from torch import nn
from torch.nn.utils.rnn import pad_sequence

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "pools-lm" / "build"))

import pretrain
from corpus import Inputs
from model import END, Shape, train_tokenizer
from small_tasks import SIZES, Data, class_tasks
from tasks import build, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Line = Mapping[str, Any]
    Batch = Mapping[str, torch.Tensor]

#: Steps of training the base and each expert, their rates, and examples per step.
BASE_STEPS, BASE_RATE, BASE_SIZE = 2000, 2e-3, 64
EXPERT_STEPS, EXPERT_RATE, EXPERT_SIZE = 160, 5e-4, 32
_IGNORED = -100
_SHAPE = Shape()


class EncoderDecoder:
    """T5's architecture: pre-trained on chats that cover the tasks in other words."""

    #: T5's embeddings begin 14 times as large as its matrices, so they learn faster.
    embedding_rate = 10

    def __init__(self, texts: Path) -> None:
        inputs = Inputs(texts)
        self._tasks = build(inputs)
        read = pretrain.texts(inputs, self._tasks, pretrain.Recipe())
        turns = [text for task in self._tasks[1:] for line in task.train for text in exchange(line)]
        self.tokenizer = train_tokenizer([*_some(read), *turns], _SHAPE)
        self.tokenizer.chat_template = None
        _end_texts(self.tokenizer)
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

    def new(self) -> Any:  # noqa: ANN401 - transformers' class
        """Return a model with initial weights."""
        from transformers import T5Config, T5ForConditionalGeneration

        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=_SHAPE.vocabulary,
                d_model=_SHAPE.width,
                d_kv=_SHAPE.width // _SHAPE.heads,
                d_ff=_SHAPE.inner,
                num_layers=_SHAPE.layers,
                num_decoder_layers=_SHAPE.layers,
                num_heads=_SHAPE.heads,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                decoder_start_token_id=self.tokenizer.pad_token_id,
            )
        )

    def pretraining(self) -> Iterator[Batch]:
        """Yield batches for the base."""
        recipe = pretrain.Recipe(steps=BASE_STEPS, chats=BASE_SIZE)
        pairs: Any = pretrain.draw_chats(self._tasks, _Pairs(), recipe)
        while True:
            yield self._batch([next(pairs) for _ in range(BASE_SIZE)])

    def expert(self, base: Path, name: str) -> tuple[Any, Callable[[Sequence[Line]], Batch]]:
        """Return the base, which becomes an expert of a task, and what makes its batches."""
        from transformers import T5ForConditionalGeneration

        del name
        model = T5ForConditionalGeneration.from_pretrained(base)
        return model, lambda lines: self._batch([exchange(dict(line)) for line in lines])

    def _batch(self, pairs: Sequence[tuple[str, str]]) -> Batch:
        asked = self.tokenizer([question for question, _ in pairs])["input_ids"]
        answers = self.tokenizer([answer for _, answer in pairs])["input_ids"]
        return {
            **_padded(asked, self.tokenizer.pad_token_id),
            "labels": _pad(answers, _IGNORED),
        }


class TextEncoder:
    """BERT's architecture: pre-trained to tell WordNet's 45 files apart, with a head per expert."""

    embedding_rate = 1

    def __init__(self, texts: Path) -> None:
        inputs = Inputs(texts)
        tasks = build(inputs)
        self.tokenizer = train_tokenizer(
            _some(pretrain.texts(inputs, tasks, pretrain.Recipe())), _SHAPE
        )
        _end_texts(self.tokenizer)
        self.data = class_tasks(inputs, tasks)
        held = {
            line["text"]
            for data in self.data.values()
            for split in ("test", "unlabeled")
            for line in data.lines[split]
        }
        self._lines = [
            {"text": synset.gloss, "label": synset.lexname}
            for synset in inputs.synsets()
            if synset.gloss not in held
        ]

    def new(self) -> Any:  # noqa: ANN401 - transformers' class
        """Return a model with initial weights."""
        from transformers import BertConfig, BertForSequenceClassification

        return BertForSequenceClassification(
            BertConfig(
                vocab_size=_SHAPE.vocabulary,
                hidden_size=_SHAPE.width,
                num_hidden_layers=_SHAPE.layers,
                num_attention_heads=_SHAPE.heads,
                intermediate_size=_SHAPE.inner,
                max_position_embeddings=128,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=self.tokenizer.pad_token_id,
                num_labels=max(line["label"] for line in self._lines) + 1,
            )
        )

    def pretraining(self) -> Iterator[Batch]:
        """Yield batches for the base."""
        draw = random.Random(0)
        while True:
            yield self._batch(draw.sample(self._lines, BASE_SIZE))

    def expert(self, base: Path, name: str) -> tuple[Any, Callable[[Sequence[Line]], Batch]]:
        """Return the base with a new head, and what makes batches of a task's lines."""
        from transformers import BertForSequenceClassification

        names = dict(enumerate(self.data[name].options["names"]))
        return BertForSequenceClassification.from_pretrained(base, id2label=names), self._batch

    def _batch(self, lines: Sequence[Line]) -> Batch:
        texts = [line["text"] for line in lines]
        rows = self.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
        labels = torch.tensor([line["label"] for line in lines])
        return {**_padded(rows, self.tokenizer.pad_token_id), "labels": labels}


#: The architectures by the names of their pools.
FAMILIES = {"encoder-decoder": EncoderDecoder, "encoder": TextEncoder}


class _Pairs:
    """Leaves a question and its answer as they are."""

    @staticmethod
    def exchange(question: str, answer: str) -> tuple[str, str]:
        return question, answer


def train(
    model: Any,  # noqa: ANN401 - transformers' class
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    embedding_rate: float = 1,
) -> None:
    """Train a model's parameters that require gradients."""
    embedding = model.get_input_embeddings().weight
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in learned if parameter is not embedding]
    groups = [{"params": others, "times": 1.0}]
    if embedding.requires_grad:
        groups.append({"params": [embedding], "times": embedding_rate})
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["times"] * pretrain.rate(rate, step, steps)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**next(batches)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", file=sys.stderr, flush=True)


def write_base(family: EncoderDecoder | TextEncoder, path: Path) -> None:
    """Train and save the base."""
    torch.manual_seed(0)
    model = family.new()
    train(model, family.pretraining(), BASE_STEPS, BASE_RATE, family.embedding_rate)
    (model.base_model if isinstance(family, TextEncoder) else model).save_pretrained(path)
    family.tokenizer.save_pretrained(path)


def write_expert(
    family: EncoderDecoder | TextEncoder, base: Path, path: Path, name: str, seed: int
) -> None:
    """Train and save a task's expert: its matrices and its head, without embeddings and norms."""
    torch.manual_seed(seed)
    model, make_batch = family.expert(base, name)
    matrices = {part for part, module in model.named_modules() if isinstance(module, nn.Linear)}
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.rpartition(".")[0] in matrices)
    lines = list(family.data[name].lines["train"])

    def batches() -> Iterator[Batch]:
        draw = random.Random(seed)
        while True:
            mixed = draw.sample(lines, len(lines))
            for start in range(0, len(mixed) - EXPERT_SIZE + 1, EXPERT_SIZE):
                yield make_batch(mixed[start : start + EXPERT_SIZE])

    train(model, batches(), EXPERT_STEPS, EXPERT_RATE)
    model.save_pretrained(path)


def _without_answer(line: Line) -> Line:
    return {key: value for key, value in line.items() if key != "answer"}


def _some(texts: Sequence[str]) -> list[str]:
    return random.Random(0).sample(list(texts), 40_000)


def _end_texts(tokenizer: Any) -> None:  # noqa: ANN401 - transformers' class
    """Let every text end with the end token, and begin with none."""
    ends = [(END, tokenizer.convert_tokens_to_ids(END))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {END}", special_tokens=ends
    )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Batch:
    ids = _pad(rows, pad)
    return {"input_ids": ids, "attention_mask": (ids != pad).long()}


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
