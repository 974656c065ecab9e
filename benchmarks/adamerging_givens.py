"""Define the tower, images and heads that all contenders of benchmarks/adamerging.py share."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig

CLASSES, WIDTH = 100, 768


def config() -> CLIPVisionConfig:
    """Return the configuration of ViT-B/32."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
    )


def batch_of(task: int, images: int) -> torch.Tensor:
    """Return one task's images, the same for all contenders."""
    generator = torch.Generator().manual_seed(task)
    return torch.randn(images, 3, 224, 224, generator=generator)


def head_of(task: int) -> torch.Tensor:
    """Return one task's frozen head."""
    generator = torch.Generator().manual_seed(1000 + task)
    return torch.randn(WIDTH, CLASSES, generator=generator) / WIDTH**0.5
