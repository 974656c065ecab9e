"""Predictions of models, objectives on them, and reproducible random numbers."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch

from fusion_core import Split, evaluation_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask

#: Up to so many examples per batch.
_BATCH = 64


def predict_unlabeled(
    model: nn.Module,
    task: AdaptiveTask,
    samples: int,
    device: torch.device,
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return a model's logits for a task's first unlabeled examples, or for all if it has fewer.

    Of shape (predictions, classes), in fp32 and on the CPU. Batches have one size, so up to one
    example in 64 may be left out. `reduce` takes the logits of each batch and returns a tensor with
    a row per prediction to keep in their place.
    """
    count = task.count(Split.UNLABELED)
    examples = samples if count is None else min(samples, count)
    steps = max(1, math.ceil(examples / _BATCH))
    size = max(1, examples // steps)
    results: list[Tensor] = []
    with torch.inference_mode(), evaluation_mode(model):
        for step in range(steps):
            batch = task.batch(step, size=size, split=Split.UNLABELED, seed=0)
            logits = task.logits(model, batch.to(device)).float().cpu()
            results.append(logits if reduce is None else reduce(logits))
        return torch.cat(results)


def log_probabilities(logits: Tensor) -> Tensor:
    """Return finite log-probabilities over the last dimension.

    A class that a mask rules out then adds nothing to an expectation; 0 * inf would be NaN.
    """
    return logits.log_softmax(dim=-1).clamp_min(torch.finfo(logits.dtype).min)


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of predictions, in nats: logits (examples, classes) -> scalar."""
    logs = log_probabilities(logits)
    return -(logs.exp() * logs).sum(dim=-1).mean()


def widened(values: Tensor) -> Tensor:
    """Return values in fp32, or in fp64 if they already are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def disagreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL divergence from a teacher's predictions, in nats.

    Both logits have the shape (examples, classes). The divergence is zero if they agree. Source:
    the self-labeling objective of SyMerge (arXiv:2412.19098).
    """
    target = log_probabilities(teacher)
    return (target.exp() * (target - log_probabilities(logits))).sum(dim=-1).mean()


def standardise(logits: Tensor) -> Tensor:
    """Return a batch's logits (examples, classes) without their size.

    Each example's logits get a mean of 0, and all together a root mean square of 1. So they say
    which classes a model prefers, and on which examples more clearly, but not how sure it is.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    smallest = torch.finfo(logits.dtype).tiny
    return centred / centred.square().mean().clamp_min(smallest).sqrt()


def make_generator(seed: int, key: str) -> torch.Generator:
    """Return a random generator for a seed and a key, the same in every process."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
