"""What models predict, functions of it for objectives and gradients, and random numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from fusion_core import Split, evaluation_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask

#: Examples that a model is asked about at once.
_BATCH = 64


def predict_unlabeled(
    model: nn.Module, task: AdaptiveTask, samples: int, device: torch.device
) -> Tensor:
    """Return a model's logits for a task's first unlabeled examples, in whole batches.

    Of shape (examples, classes), in fp32 and on the CPU.
    """
    with torch.inference_mode(), evaluation_mode(model):
        return torch.cat(list(_predicted(model, task, samples, device)))


def _predicted(
    model: nn.Module, task: AdaptiveTask, samples: int, device: torch.device
) -> Iterator[Tensor]:
    size = min(_BATCH, samples)
    for step in range(samples // size):
        batch = task.batch(step, size=size, split=Split.UNLABELED, seed=0)
        yield task.logits(model, batch.to(device)).float().cpu()


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms of predicted probabilities, over the last dimension, and finite ones.

    So a class that a mask rules out adds nothing to an expectation, which 0 * inf would not.
    """
    return logits.log_softmax(dim=-1).clamp_min(torch.finfo(logits.dtype).min)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the predictions: logits of shape (examples, classes) -> scalar."""
    logs = log_probabilities(logits)
    return -(logs.exp() * logs).sum(dim=-1).mean()


def widened(values: Tensor) -> Tensor:
    """Return values in fp32, or in fp64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def disagreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL divergence, in nats, of predictions from a teacher's: both (examples, classes).

    Zero where they agree. Source: the self-labeling objective of SyMerge (arXiv:2412.19098).
    """
    wanted = log_probabilities(teacher)
    return (wanted.exp() * (wanted - log_probabilities(logits))).sum(dim=-1).mean()


def generator_of(seed: int, key: str) -> torch.Generator:
    """Return random numbers of a seed and a key, the same in every process."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
