"""Nonce words in class names: heads that pre-training does not align.

The target head of a class is ``normalise(h + mixing * r)``: the head ``h`` of its English name,
turned by a random direction ``r`` among those that the text projection can give (the text tower is
narrower than the embedding, so not every direction can be reached). Only the embeddings of the
class's own nonce words are changed (by gradient descent through the frozen text tower). So
zero-shot CLIP still computes the head from a template and a class name, and other texts keep
their meaning.
``mixing`` controls the misalignment of the benchmark.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from model import head, text_features
from tasks import TEMPLATES, Task
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import CLIPModel, PreTrainedTokenizerFast

_STEPS, _RATE = 400, 0.05


def wanted(
    model: CLIPModel, words: PreTrainedTokenizerFast, tasks: Sequence[Task], mixing: float
) -> dict[str, Tensor]:
    """Return the target heads of the nonce words, unit vectors ``[classes, d]``."""
    generator = torch.Generator().manual_seed(1)
    # The text tower is narrower than the projection, so texts stay in the span of these columns.
    reach = torch.linalg.qr(model.text_projection.weight)[0]
    targets = {}
    for task in tasks:
        plain = head(model, words, task.names)
        noise = torch.randn(len(plain), reach.shape[1], generator=generator) @ reach.T
        turn = functional.normalize(noise, dim=-1)
        targets[task.name] = functional.normalize(plain + mixing * turn, dim=-1)
    return targets


def fit(
    model: CLIPModel,
    words: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    nonce: Sequence[str],
    targets: Mapping[str, Tensor],
) -> float:
    """Set the nonce words' embeddings; return the heads' mean cosine to their targets."""
    table = model.text_model.embeddings.token_embedding.weight
    rows = torch.tensor(words.convert_tokens_to_ids(list(nonce)))
    free = _start(table, rows).requires_grad_()
    fixed = table.detach().clone()
    goal = torch.cat([targets[task.name] for task in tasks])
    names = [name for task in tasks for name in task.classnames]
    optimiser = torch.optim.Adam([free], lr=_RATE, betas=(0.9, 0.98))
    closeness = goal.new_zeros(())
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        weight = fixed.index_copy(0, rows, free)
        closeness = (_heads(model, words, names, weight) * goal).sum(-1).mean()
        optimiser.zero_grad()
        (1 - closeness).backward()
        optimiser.step()
    with torch.no_grad():
        table.copy_(fixed.index_copy(0, rows, free))
    return closeness.item()


def _start(table: Tensor, rows: Tensor) -> Tensor:
    """Return random directions with the length of a typical word."""
    usual = table[3 : int(rows.min())].norm(dim=1).mean()
    noise = torch.randn(len(rows), table.shape[1], generator=torch.Generator().manual_seed(0))
    return functional.normalize(noise, dim=1) * usual


def _heads(
    model: CLIPModel, words: PreTrainedTokenizerFast, names: Sequence[str], weight: Tensor
) -> Tensor:
    """Return the heads of all class names with another embedding table, ``[n, d]``."""
    texts = [template.format(name) for template in TEMPLATES for name in names]
    features = text_features(model, words, texts, embeddings=weight)
    return functional.normalize(features.view(len(TEMPLATES), len(names), -1).mean(0), dim=-1)
