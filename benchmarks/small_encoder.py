"""Train a small text encoder from nothing, and its experts.

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
from small_tasks import class_tasks
from tasks import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Line = Mapping[str, Any]
    Batch = Mapping[str, torch.Tensor]

#: Steps of training the base and each expert, their rates, and texts per step.
_BASE_STEPS, _BASE_RATE, _BASE_SIZE = 2000, 2e-3, 64
_EXPERT_STEPS, _EXPERT_RATE, _EXPERT_SIZE = 160, 5e-4, 32
_SHAPE = Shape()


class TextEncoder:
    """BERT's architecture: pre-trained to tell WordNet's 45 files apart, with a head per expert."""

    def __init__(self, texts: Path) -> None:
        inputs = Inputs(texts)
        tasks = build(inputs)
        read = pretrain.texts(inputs, tasks, pretrain.Recipe())
        self.tokenizer = train_tokenizer(random.Random(0).sample(read, 40_000), _SHAPE)
        ends = [(END, self.tokenizer.convert_tokens_to_ids(END))]
        self.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            f"$A {END}", special_tokens=ends
        )
        self.data = class_tasks(inputs, tasks)
        held = {
            line["text"]
            for data in self.data.values()
            for split in ("test", "unlabeled")
            for line in data.lines[split]
        }
        self._glosses = [
            {"text": synset.gloss, "label": synset.lexname}
            for synset in inputs.synsets()
            if synset.gloss not in held
        ]

    def write_base(self, path: Path) -> None:
        """Train and save the base, without its head."""
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config: dict[str, Any] = {
            "vocab_size": _SHAPE.vocabulary,
            "hidden_size": _SHAPE.width,
            "num_hidden_layers": _SHAPE.layers,
            "num_attention_heads": _SHAPE.heads,
            "intermediate_size": _SHAPE.inner,
            "max_position_embeddings": 128,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": self.tokenizer.pad_token_id,
            "num_labels": max(line["label"] for line in self._glosses) + 1,
        }
        model = BertForSequenceClassification(BertConfig(**config))
        draw = random.Random(0)

        def batches() -> Iterator[Batch]:
            while True:
                yield self._batch(draw.sample(self._glosses, _BASE_SIZE))

        _train(model, batches(), _BASE_STEPS, _BASE_RATE)
        model.base_model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def write_expert(self, name: str, base: Path, path: Path, seed: int) -> None:
        """Train and save a task's expert: its matrices and head, without embeddings and norms."""
        from transformers import BertForSequenceClassification

        torch.manual_seed(seed)
        names = dict(enumerate(self.data[name].options["names"]))
        model = BertForSequenceClassification.from_pretrained(base, id2label=names)
        matrices = {part for part, module in model.named_modules() if isinstance(module, nn.Linear)}
        for full_name, parameter in model.named_parameters():
            parameter.requires_grad_(full_name.rpartition(".")[0] in matrices)
        lines, draw = list(self.data[name].lines["train"]), random.Random(seed)

        def batches() -> Iterator[Batch]:
            while True:
                mixed = draw.sample(lines, len(lines))
                for start in range(0, len(mixed) - _EXPERT_SIZE + 1, _EXPERT_SIZE):
                    yield self._batch(mixed[start : start + _EXPERT_SIZE])

        _train(model, batches(), _EXPERT_STEPS, _EXPERT_RATE)
        model.save_pretrained(path)

    def _batch(self, lines: Sequence[Line]) -> Batch:
        texts = [line["text"] for line in lines]
        rows = self.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
        pad = self.tokenizer.pad_token_id
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
        labels = torch.tensor([line["label"] for line in lines])
        return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}


def _train(model: Any, batches: Iterator[Batch], steps: int, rate: float) -> None:  # noqa: ANN401
    """Train a model's parameters that require gradients."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = pretrain.rate(rate, step, steps)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**next(batches)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", file=sys.stderr, flush=True)
