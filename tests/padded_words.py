"""Texts of several lengths, padded, and a model of them that uses its layers in every way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fusion_core import AdaptiveTask, Batch, ComponentConfig, Split, TaskPool
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import MetricValues

WORDS, CLASSES = 12, 3
SAMPLES, SIZE = 11, 4  # two batches and a part of one


class WordModel(nn.Module):
    """A layer called twice that shares its weight with another, a Conv1D, a tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.mix, self.pooler = nn.Linear(6, 6), nn.Linear(6, 6)
        self.pooler.weight = self.mix.weight
        self.turn, self.up = Conv1D(4, 6), nn.Linear(4, 6)
        self.idle = nn.Linear(2, 2)
        self.output = nn.Linear(6, WORDS, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.embedding(input_ids)
        states = self.mix(self.mix(states).tanh()).tanh()
        states = self.up(self.turn(states).tanh())
        mask = attention_mask.to(states.dtype).unsqueeze(-1)
        pooled = (states * mask).sum(1) / mask.sum(1)
        return self.output(self.pooler(input=pooled).tanh())[:, :CLASSES]


class WordTask(AdaptiveTask):
    """Texts of one to seven words; what stands in the padding is a word, too."""

    def __init__(self, name: str) -> None:
        self.name = name

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        assert split is Split.UNLABELED
        generator = torch.Generator().manual_seed(1000 * seed + 10 * step + ord(self.name))
        lengths = torch.randint(1, 8, (size,), generator=generator)
        words = torch.randint(WORDS, (size, int(lengths.max())), generator=generator)
        mask = torch.arange(words.shape[1]) < lengths[:, None]
        return Batch({"input_ids": words, "attention_mask": mask.long()})

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(**batch.tensors)

    def evaluate(self, model: nn.Module) -> MetricValues:
        raise NotImplementedError


class WordTasks(TaskPool[ComponentConfig]):
    def __init__(self, names: Sequence[str] = "abc", kind: type[WordTask] = WordTask) -> None:
        super().__init__(ComponentConfig())
        self.names, self.kind = tuple(names), kind

    def __getitem__(self, name: str) -> WordTask:
        return self.kind(name)


def examples(task: WordTask, seed: int) -> list[torch.Tensor]:
    """Return the words of every example of `SAMPLES`, shape (length,): no padding."""
    texts: list[torch.Tensor] = []
    for step in range(3):
        batch: Any = task.batch(step, size=SIZE, split=Split.UNLABELED, seed=seed).inputs
        lengths = batch["attention_mask"].sum(1).tolist()
        texts += [words[:n] for words, n in zip(batch["input_ids"], lengths, strict=True)]
    return texts[:SAMPLES]


def is_hooked(model: nn.Module) -> bool:
    return any(module._forward_pre_hooks for module in model.modules())  # noqa: SLF001 - none public


def word_pool(seed: int, dtype: torch.dtype) -> CheckpointsPool:
    models: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for number, name in enumerate("abc"):
            torch.manual_seed(10 * seed + number)
            models[name] = WordModel().to(dtype).eval()
    return CheckpointsPool(CheckpointsConfig(models=models))
