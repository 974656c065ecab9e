"""Tiny dense models of transformers, and a pool that cuts texts into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from fusion_core import RunOptions, run_fusion
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from fusion_core import RunResult

_WORDS = ["<s>", "one", "two", "three", "red", "green", "blue", "cat", "dog"]
WORDS = {word: number for number, word in enumerate(_WORDS)}
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8),
}


def make_model(kind: str, seed: int) -> PreTrainedModel:
    """Return a dense model whose weights are large enough to tell models apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model.eval()


class WordPool(CheckpointsPool):
    """Live models, and texts as one token per word after the token that begins a text."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0, *(WORDS[word] for word in text.split())] for text in texts]


def word_pool(kind: str = "llama", experts: Sequence[int] = (1, 2), base: int = 0) -> WordPool:
    """Return a pool of live models; experts `a`, `b`, ... are made by their seeds."""
    models = {chr(ord("a") + n): make_model(kind, seed) for n, seed in enumerate(experts)}
    return WordPool(CheckpointsConfig(base=make_model(kind, base), models=models))


def mix(pool: Any, output: Path | None = None, *, seed: int = 0, **options: Any) -> RunResult:
    """Make a mixture, by default with random gates."""
    options = {"name": "moe", **({} if "prompts" in options else {"gate": "random"}), **options}
    return run_fusion(
        algorithm=options,
        model_pool=pool,
        output=output,
        seed=seed,
        options=RunOptions(evaluate=False),
    )
