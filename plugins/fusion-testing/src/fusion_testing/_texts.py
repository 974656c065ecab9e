"""Tiny text encoders and their tokenizer, for task pools of texts.

Tokens are letters, so the tokenizer reads any text. The encoder ignores masked positions.
"""

from __future__ import annotations

import copy
import json
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LETTERS = ("[PAD]", "[UNK]", " ", *string.ascii_lowercase)
_WIDTH, _LONGEST = 16, 128


@dataclass(frozen=True, slots=True)
class Encoded:
    """The output of an encoder, with the field name that transformers uses."""

    #: shape (examples, length, width)
    last_hidden_state: torch.Tensor


class TinyEncoder(nn.Module):
    """Embeddings and one attention layer, called like an encoder of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(_LETTERS), _WIDTH)
        self.positions = nn.Embedding(_LONGEST, _WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)
        self.output = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Encoded:
        """Encode token ids of shape (examples, length); the mask is 0 at padding."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.words(input_ids) + self.positions(positions)
        attended, _ = self.attention(
            states, states, states, key_padding_mask=attention_mask == 0, need_weights=False
        )
        return Encoded(torch.tanh(self.output(states + attended)))


class TinyTextPool(CheckpointsPool):
    """A pool of live encoders with a `tokenizer.json` among its assets."""

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the tokenizer's file."""
        del dtype
        return {"tokenizer.json": json.dumps(_tokenizer()).encode()}


def tiny_text_pool(*, experts: int = 2, seed: int = 0) -> TinyTextPool:
    """Return a pool of text encoders: a base, and experts `a`, `b`, ... that differ from it.

    Encoders take `input_ids` and `attention_mask` and return `last_hidden_state`, as encoders of
    transformers do. The pool's `assets()` have a `tokenizer.json`.
    """
    models: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = TinyEncoder().eval()
        for number in range(experts):
            models[chr(ord("a") + number)] = expert = copy.deepcopy(base)
            with torch.no_grad():
                for parameter in expert.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return TinyTextPool(CheckpointsConfig(base=base, models=models))


def _tokenizer() -> dict[str, Any]:
    """Return a tokenizer of letters in the file format of the library tokenizers."""
    vocabulary = {letter: number for number, letter in enumerate(_LETTERS)}
    letters = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": letters,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
