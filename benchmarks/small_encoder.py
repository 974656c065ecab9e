"""Train a small text encoder from nothing, and its experts.

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
from small_tasks import class_tasks
from small_training import Recipe, end_texts, padded, train, tune_matrices
from tasks import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from small_training import Batch, Line, Parts

#: How the base is trained: steps, rate, and texts per step.
_BASE_STEPS, _BASE_RATE, _BASE_SIZE = 2000, 2e-3, 64
_EXPERT = Recipe(steps=160, rate=5e-4, size=32, seed=0)
_SHAPE = Shape()


class TextEncoder:
    """BERT's architecture: pre-trained to tell WordNet's 45 files apart, with a head per expert."""

    def __init__(self, texts: Path) -> None:
        inputs = Inputs(texts)
        tasks = build(inputs)
        read = pretrain.texts(inputs, tasks, pretrain.Recipe())
        self.tokenizer = train_tokenizer(random.Random(0).sample(read, 40_000), _SHAPE)
        end_texts(self.tokenizer)
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
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=_BASE_RATE, weight_decay=0.0, fused=True
        )
        draw = random.Random(0)

        def batches() -> Iterator[Parts]:
            while True:
                yield [(1.0, self._batch(draw.sample(self._glosses, _BASE_SIZE)))]

        train(model, optimiser, batches(), _BASE_STEPS)
        model.base_model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def write_expert(self, name: str, base: Path, path: Path, seed: int) -> None:
        """Train and save a task's expert: its matrices and head, without embeddings and norms."""
        from transformers import BertForSequenceClassification

        torch.manual_seed(seed)
        names = dict(enumerate(self.data[name].options["names"]))
        model = BertForSequenceClassification.from_pretrained(base, id2label=names)
        tune_matrices(
            model, self.data[name].lines["train"], self._batch, replace(_EXPERT, seed=seed)
        )
        model.save_pretrained(path)

    def _batch(self, lines: Sequence[Line]) -> Batch:
        texts = [line["text"] for line in lines]
        rows = self.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
        labels = torch.tensor([line["label"] for line in lines])
        return {**padded(rows, self.tokenizer.pad_token_id), "labels": labels}
