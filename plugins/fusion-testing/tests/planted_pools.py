"""Sound task and model pools of images and of texts.

Experts are solved for, not trained: each maps the classes of its task to what its head expects.
"""

from __future__ import annotations

import copy
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fusion_core import (
    Batch,
    ComponentConfig,
    FeatureTask,
    Measured,
    ModelPool,
    Split,
    TaskPool,
    build_model,
    shuffled_rows,
)
from fusion_core.errors import RecipeError
from fusion_core.weights import StateDictSource

NAMES = ("owls", "larks", "terns")
CLASSES, PIXELS, WIDTH, WORDS = 3, 16, 8, 30
PAD, END = 0, 1


class Options(ComponentConfig):
    """Options of the task pools."""

    examples: int = 48
    """Examples in each split."""
    batch_size: int = 10
    """Examples per pass when measuring."""
    limit: int | None = None
    """Only the first test examples."""


def drawn(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def projection(name: str) -> torch.Tensor:
    return torch.randn(WIDTH, CLASSES, generator=drawn(name, "head"))


def means(name: str) -> torch.Tensor:
    return torch.randn(CLASSES, PIXELS, generator=drawn(name, "means"))


def class_words(name: str) -> torch.Tensor:
    """Return four words per class, shape (classes, 4)."""
    words = torch.randperm(WORDS - 2, generator=drawn(name, "words")) + 2
    return words[: 4 * CLASSES].reshape(CLASSES, 4)


# --- tasks --------------------------------------------------------------------------------------


class ImageTask(FeatureTask):
    """Classify noise around class means."""

    def __init__(self, name: str, options: Options, half: int | None = None) -> None:
        self.name, self.options, self.half = name, options, half
        self.is_held_out = False

    def data(self, split: Split) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return examples and labels of a split."""
        if split is Split.TEST or (split is Split.UNLABELED and self.is_held_out):
            examples, labels = self.drawn_data(Split.TEST)
            examples, labels = examples[: self.options.limit], labels[: self.options.limit]
            half = self.half if split is Split.TEST else 0
            if half is None:
                return examples, labels
            order = torch.randperm(len(examples), generator=drawn(self.name, "halves"))
            middle = len(order) // 2
            rows = order[:middle] if half == 0 else order[middle:]
            return [examples[row] for row in rows.tolist()], labels[rows]
        return self.drawn_data(split)

    def drawn_data(self, split: Split) -> tuple[list[torch.Tensor], torch.Tensor]:
        generator = drawn(self.name, split)
        labels = torch.randint(CLASSES, (self.options.examples,), generator=generator)
        noise = torch.randn(len(labels), PIXELS, generator=generator)
        return list(means(self.name)[labels] + 0.3 * noise), labels

    def stack(self, examples: list[torch.Tensor]) -> Any:
        return torch.stack(examples)

    def rows(self, step: int, size: int, count: int, key: str) -> torch.Tensor:
        return shuffled_rows(step, size, count, key=key)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        examples, labels = self.data(split)
        if not 0 < size <= len(examples):
            raise RecipeError(f"task {self.name!r} has {len(examples)} examples, not {size}")
        rows = self.rows(step, size, len(examples), f"{seed}{self.name}{split}")
        inputs = self.stack([examples[row] for row in rows.tolist()])
        return Batch(inputs, None if split is Split.UNLABELED else labels[rows])

    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        return model(inputs)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return features @ projection(self.name).to(features)

    def right(self, model: nn.Module) -> list[float]:
        examples, labels = self.data(Split.TEST)
        device, size = next(model.parameters()).device, self.options.batch_size
        right: list[float] = []
        for start in range(0, len(examples), size):
            batch = Batch(self.stack(examples[start : start + size])).to(device)
            with torch.no_grad():
                predicted = self.logits(model, batch).argmax(1).cpu()
            right += (predicted == labels[start : start + size]).double().tolist()
        return right

    def evaluate(self, model: nn.Module) -> Any:
        right = self.right(model)
        return Measured({"accuracy": sum(right) / len(right)}, right)


class TextTask(ImageTask):
    """Classify texts by words of a class among others; every text ends with a special token."""

    def drawn_data(self, split: Split) -> tuple[list[torch.Tensor], torch.Tensor]:
        generator = drawn(self.name, split)
        labels = torch.randint(CLASSES, (self.options.examples,), generator=generator)
        texts = []
        for label in labels.tolist():
            length = 3 + int(torch.randint(5, (), generator=generator))
            words = torch.randint(2, WORDS, (length,), generator=generator)
            picked = torch.randint(4, (3,), generator=generator)
            telling = class_words(self.name)[label][picked]
            texts.append(torch.cat([words, telling, torch.tensor([END])]))
        return texts, labels

    def stack(self, examples: list[torch.Tensor]) -> Any:
        ids = nn.utils.rnn.pad_sequence(examples, batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(text) for text in examples])
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()
        return {"input_ids": ids, "attention_mask": mask}

    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1)


# --- pools --------------------------------------------------------------------------------------


class Images(TaskPool[Options]):
    """Three tasks on images."""

    config_class = Options
    task: Any = ImageTask
    names: Any = NAMES

    def __init__(self, config: Options) -> None:
        super().__init__(config)
        self.tasks = {name: self.task(name, config) for name in self.names}
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} test examples"

    def bind(self, pool: ModelPool[Any]) -> Images:
        clone = copy.copy(self)
        clone.tasks = {name: copy.copy(task) for name, task in self.tasks.items()}
        return clone

    def __getitem__(self, name: str) -> Any:
        if name not in self.tasks:
            raise RecipeError(f"no task {name!r}", hint=f"The tasks are: {', '.join(NAMES)}.")
        return self.tasks[name]

    def identity(self, name: str) -> Any:
        task = self[name]
        options = self.config.model_dump(mode="json", exclude={"batch_size"})
        return {**options, "half": task.half, "held_out": task.is_held_out}

    def on_half(self, number: int, name: str) -> Any:
        clone = copy.copy(self)
        clone.tasks = {name: copy.copy(task) for name, task in self.tasks.items()}
        for task in clone.tasks.values():
            task.half, task.is_held_out = number, True
        clone.measured_on = f"{name} of the test examples"
        return clone

    def holdout(self) -> Any:
        return self.on_half(1, "a held-out half")

    def halves(self) -> Any:
        return self.on_half(0, "one half"), self.on_half(1, "the other half")


class Texts(Images):
    """Three tasks on texts."""

    task: Any = TextTask


class Bag(nn.Module):
    """Word vectors, called like an encoder of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.words(input_ids))


def image_expert(name: str) -> dict[str, torch.Tensor]:
    back = torch.linalg.pinv(projection(name).T)
    centers = means(name)
    return {"weight": back @ centers, "bias": back @ (-0.5 * centers.square().sum(1))}


def text_expert(name: str) -> dict[str, torch.Tensor]:
    scores = torch.zeros(WORDS, CLASSES)
    for label, words in enumerate(class_words(name)):
        scores[words, label] = 5.0
    return {"words.weight": scores @ torch.linalg.pinv(projection(name))}


def base_of(shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: 0.1 * torch.randn(values.shape, generator=drawn(name))
        for name, values in shapes.items()
    }


class Models(ModelPool[ComponentConfig]):
    """The base and one expert per task."""

    config_class = ComponentConfig
    construct: Any = staticmethod(lambda: nn.Linear(PIXELS, WIDTH))
    solve: Any = staticmethod(image_expert)
    order: Any = NAMES

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        self.base = StateDictSource(base_of(self.solve(NAMES[0])))
        self.experts = {name: StateDictSource(self.solve(name)) for name in self.order}

    def build(self, weights: Any, **options: Any) -> nn.Module:
        return build_model(self.construct, weights, base=self.base, **options)


class TextModels(Models):
    """Text models with a tokenizer that ends every text with a special token."""

    construct: Any = Bag
    solve: Any = staticmethod(text_expert)

    def assets(self, *, dtype: torch.dtype | None = None) -> Any:
        del dtype
        words = {"[PAD]": PAD, "[END]": END, **{f"w{n}": n for n in range(2, WORDS)}}
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        end = {"SpecialToken": {"id": "[END]", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        tokenizer = {
            "version": "1.0",
            "added_tokens": [
                {"id": number, "content": token, "special": True, **special}
                for token, number in (("[PAD]", PAD), ("[END]", END))
            ],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [text, end],
                "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}, end],
                "special_tokens": {"[END]": {"id": "[END]", "ids": [END], "tokens": ["[END]"]}},
            },
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "[PAD]"},
        }
        return {"tokenizer.json": json.dumps(tokenizer).encode()}
