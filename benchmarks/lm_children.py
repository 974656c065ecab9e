"""The parts of `lm.py` that need torch and transformers, as separate programs."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from llama import Llama
from lm_merges import RANK
from methods_children import save, write_models
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_END = "<|end_of_text|>"


def plain(directory: str, shape: str, *names: str) -> None:
    """Write a base and experts with the same tokenizer."""
    sizes = Llama(*json.loads(shape))
    write_models(Path(directory), sizes, names)
    for name in names:
        save_tokenizer(Path(directory, name), sizes.vocabulary)


def renumbered(directory: str, model: str, new: str, more: str) -> None:
    """Write an expert with renumbered tokens and `more` additional ones."""
    old = Path(directory, model)
    config = json.loads((old / "config.json").read_text())
    tensors = load_file(old / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][: int(more)]])
    rows = config["vocab_size"]
    save(Path(directory, new), tensors, {**config, "vocab_size": rows + int(more)})
    tokens = _tokens(rows)
    random.Random(new).shuffle(tokens)
    added = [f"<|{new}_{number}|>" for number in range(int(more))]
    _save_tokenizer(Path(directory, new), tokens, added)


def adapters(directory: str, shape: str, *names: str) -> None:
    """Write LoRA adapters on all linear layers except the head, as PEFT does."""
    generator = torch.Generator().manual_seed(1)
    sizes = Llama(*json.loads(shape))
    targets = sorted({name.rpartition(".")[2] for name in sizes.linear})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    for name in names:
        factors = {}
        for module, (rows, columns) in sizes.linear.items():
            for part, size in (("A", (RANK, columns)), ("B", (rows, RANK))):
                values = torch.randn(size, generator=generator).mul_(0.01).bfloat16()
                factors[f"base_model.model.{module}.lora_{part}.weight"] = values
        Path(directory, name).mkdir()
        save_file(factors, Path(directory, name, "adapter_model.safetensors"))
        Path(directory, name, "adapter_config.json").write_text(json.dumps(config))


def built(directory: str, dtype: str) -> None:
    """Build a transformers model."""
    from pools_lm.config import LanguageConfig
    from pools_lm.pools import CausalPool

    pool = CausalPool(LanguageConfig(models={"model": directory}))
    pool.build(pool.reference, dtype=getattr(torch, dtype))


def _tokens(count: int) -> list[str]:
    """Return all bytes, then tokens that join two earlier ones, then an end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(letters)
    for number in range(count - len(letters) - 1):
        tokens.append("".join(_parts(tokens, number)))
    return [*tokens, _END]


def _parts(tokens: Sequence[str], number: int) -> tuple[str, str]:
    first, second = divmod(number, 256)
    return tokens[first], tokens[second]


def save_tokenizer(directory: Path, count: int) -> None:
    """Write a byte-level BPE tokenizer of invented tokens."""
    _save_tokenizer(directory, _tokens(count))


def _save_tokenizer(directory: Path, tokens: Sequence[str], added: Sequence[str] = ()) -> None:
    """Write a byte-level BPE tokenizer that numbers tokens in the given order."""
    ordered = _tokens(len(tokens))
    merges = [_parts(ordered, number) for number in range(len(ordered) - 257)]
    numbers = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=_END, eos_token=_END)
    tokenizer.add_tokens(list(added), special_tokens=True)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    children: dict[str, Callable[..., None]] = {
        function.__name__: function for function in (adapters, built, plain, renumbered)
    }
    children[sys.argv[1]](*sys.argv[2:])
