"""Tiny text encoders with a tokenizer beside them, for task pools of texts.

Letters are the words, so any text can be read; positions that the mask leaves out are not seen.
"""

from __future__ import annotations

import copy
import json
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core.builtin.checkpoints import CheckpointsPool
from fusion_core.builtin.checkpoints_config import CheckpointsConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LETTERS = ("[PAD]", "[UNK]", " ", *string.ascii_lowercase)
_WIDTH, _LONGEST = 16, 128


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder returns, as those of transformers do."""

    #: of shape (examples, length, width)
    last_hidden_state: torch.Tensor


class TinyEncoder(nn.Module):
    """Embeddings and a layer of attention: called like an encoder of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(_LETTERS), _WIDTH)
        self.positions = nn.Embedding(_LONGEST, _WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)
        self.output = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Encoded:
        """Read token ids of shape (examples, length); the mask says which are not padding."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        seen = self.words(input_ids) + self.positions(places)
        found, _ = self.attention(
            seen, seen, seen, key_padding_mask=attention_mask == 0, need_weights=False
        )
        return Encoded(torch.tanh(self.output(seen + found)))


class TinyTextPool(CheckpointsPool):
    """Live encoders, and the files that would lie beside them."""

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the tokenizer."""
        del dtype
        return {"tokenizer.json": json.dumps(_tokenizer()).encode()}


def tiny_text_pool(*, experts: int = 2, seed: int = 0) -> TinyTextPool:
    """Return a pool of text encoders: a base, and experts `a`, `b`, ... that differ from it.

    They take `input_ids` and `attention_mask` and return `last_hidden_state`, as encoders of
    transformers do; `assets()` holds a `tokenizer.json`.
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
    """Return a tokenizer of letters in the format of the library tokenizers."""
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
