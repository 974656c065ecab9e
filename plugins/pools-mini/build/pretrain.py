"""Contrastive pre-training of the base."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mixture
import torch
from model import Shape, autocast, create, image_features, text_features, tokenizer
from tasks import TEMPLATES
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of pre-training."""

    steps: int = 4000
    batch: int = 256
    rate: float = 1e-3
    decay: float = 0.05
    first_scale: float = 15.0
    largest_scale: float = 50.0
    generic: int = 6000
    weak: int = 4000
    weak_share: float = 0.5
    seed: int = 0


def pretrain(
    recipe: Recipe, shape: Shape, extra_names: list[str], nonce_words: list[str]
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Build the mixture and train a model on it; ``extra_names`` only extend the vocabulary."""
    started = time.time()
    data = mixture.build(recipe.generic, recipe.weak, recipe.weak_share)
    captions = sorted(set(data.captions))
    words = tokenizer([*captions, *extra_names], nonce_words)
    torch.manual_seed(recipe.seed)
    model = create(shape, words)
    print(
        f"pre-training: {len(data.captions)} images, {len(captions)} captions, {len(words)} words,"
        f" mixture made in {time.time() - started:.0f} s",
        flush=True,
    )
    index = {caption: row for row, caption in enumerate(captions)}
    labels = torch.tensor([index[caption] for caption in data.captions])
    _train(model.train(), words, torch.cat(data.images), labels, captions, recipe)
    return model.eval().requires_grad_(requires_grad=False), words


def _train(
    model: CLIPModel,
    words: PreTrainedTokenizerFast,
    images: Tensor,
    labels: Tensor,
    captions: list[str],
    recipe: Recipe,
) -> None:
    with torch.no_grad():
        model.logit_scale.fill_(math.log(recipe.first_scale))
    optimiser = _optimiser(model, recipe)
    generator, choice = torch.Generator().manual_seed(recipe.seed + 1), random.Random(recipe.seed)
    started, running = time.time(), 0.0
    for step in range(recipe.steps):
        _set_rate(optimiser, recipe, step)
        rows = torch.randint(0, len(images), (recipe.batch,), generator=generator)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        loss = _loss(
            model,
            words,
            torch.roll(images[rows], shift, (1, 2)),
            labels[rows],
            captions,
            choice.choice(TEMPLATES),
            recipe.largest_scale,
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 500 == 0:
            print(
                f"  step {step + 1}: loss {running:.3f}, {time.time() - started:.0f} s", flush=True
            )


def _loss(
    model: CLIPModel,
    words: PreTrainedTokenizerFast,
    images: Tensor,
    labels: Tensor,
    captions: list[str],
    template: str,
    largest_scale: float,
) -> Tensor:
    """Return CLIP's symmetric loss over unique captions, because images share captions."""
    unique, target = torch.unique(labels, return_inverse=True)
    with autocast():
        seen = image_features(model, images)
        described = text_features(model, words, [template.format(captions[row]) for row in unique])
    logits = model.logit_scale.exp().clamp(max=largest_scale) * seen @ described.T
    spread = functional.one_hot(target, len(unique)).float()
    by_text = -(functional.log_softmax(logits, 0) * spread / spread.sum(0)).sum(0).mean()
    return (functional.cross_entropy(logits, target) + by_text) / 2


def _optimiser(model: CLIPModel, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)


def _set_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Set the learning rate: sixty steps of warm-up in a cosine."""
    warm, cosine = min(1.0, (step + 1) / 60), 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate * warm * cosine
