"""Functions of what models predict, for objectives and gradients, and random numbers for them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
