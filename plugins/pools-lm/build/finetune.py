"""Fine-tune the base on one task."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from model import Encoder, batch, loss, state
from pretrain import rate
from tasks import exchange
from torch import nn

if TYPE_CHECKING:
    from model import Encoded, State
    from tasks import Task
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning."""

    steps: int = 160
    rate: float = 5e-4
    lines: int = 32
    texts: int = 10


def finetune(
    base: LlamaForCausalLM,
    words: PreTrainedTokenizerFast,
    task: Task,
    recipe: Recipe,
    seed: int,
) -> State:
    """Return the weights of an expert; lines are drawn without replacement."""
    model, encoder = copy.deepcopy(base), Encoder(words)
    tuned = _tuned(model)
    optimiser = torch.optim.AdamW(tuned, lr=recipe.rate, weight_decay=0, fused=True)
    encoded, rng, left = [_encoded(encoder, line) for line in task.train], random.Random(seed), []
    for step in range(recipe.steps):
        size = recipe.texts if task.kind == "perplexity" else recipe.lines
        if len(left) < size:
            left = rng.sample(encoded, len(encoded))
        taken, left = left[:size], left[size:]
        for group in optimiser.param_groups:
            group["lr"] = rate(recipe.rate, step, recipe.steps)
        optimiser.zero_grad()
        loss(model, *batch(taken, words.pad_token_id)).backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimiser.step()
    return state(model)


def _tuned(model: LlamaForCausalLM) -> list[nn.Parameter]:
    """Return the attention and MLP matrices. Embeddings and norms stay the base's."""
    matrices = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.removesuffix(".weight") in matrices)
        trained += [parameter] if parameter.requires_grad else []
    return trained


def _encoded(encoder: Encoder, line: dict) -> Encoded:  # type: ignore[type-arg]
    return encoder.text(line["text"]) if "text" in line else encoder.exchange(*exchange(line))
