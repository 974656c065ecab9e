"""A tiny language model, one fine-tuned from it, and vision-language models with its backbone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "image_size": 8}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}
VISION: dict[str, tuple[Any, Any]] = {
    "llava": (
        transformers.LlamaConfig(**SIZES),
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**{**SIZES, "vocab_size": 24}),
            vision_config=transformers.CLIPVisionConfig(
                **TOWER, num_attention_heads=2, patch_size=4, projection_dim=8
            ),
            image_token_index=20,
        ),
    ),
    "qwen2_vl": (
        transformers.Qwen2Config(**SIZES),
        transformers.Qwen2VLConfig(
            text_config={**SIZES, "rope_parameters": ROPE},
            vision_config={"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 2},
            image_token_id=10,
            video_token_id=11,
            vision_start_token_id=12,
            vision_end_token_id=13,
        ),
    ),
}


def noisy(model: Any, seed: int) -> Any:
    """Return a copy with other weights."""
    model = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


def write_models(kind: str, folder: Path, *, original_names: bool = True) -> None:
    """Write `language`, `language-math` and `vision-language`, with published or live names."""
    language, vision = VISION[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(language, dtype=torch.float32)
        whole = transformers.AutoModelForImageTextToText.from_config(vision, dtype=torch.float32)
    base.save_pretrained(folder / "language")
    noisy(base, 1).save_pretrained(folder / "language-math")
    whole.save_pretrained(folder / "vision-language", save_original_format=original_names)
