"""Tiny language models, with tokenizers trained on three sentences."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    T5Config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

TEXTS = [
    "the quick brown fox jumps over the lazy dog and runs into the old forest",
    "merging models is adding up what they have learned, one tensor after the other",
    "a tokenizer cuts a text into pieces, and each piece has a row of its own",
]
_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@cache
def _train_tokenizer(kind: str, size: int) -> str:
    """Return the content of a `tokenizer.json`."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if kind == "bytes":  # as Llama 3, Qwen and GPT-2 have it
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=special)
    elif kind == "pieces":  # T5
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>"
        )
    else:  # BERT
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind == "words":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    return str(tokenizer.to_str())


def tokenizer(kind: str = "bytes", size: int = 90) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_train_tokenizer(kind, size)), **_SPECIAL
    )


_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_TWO: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = {**_TWO, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
_LLAMA = {**_BERT, "num_key_value_heads": 1}
FAMILIES: dict[str, tuple[str, Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": ("bytes", LlamaConfig, _LLAMA),
    "qwen2": ("bytes", Qwen2Config, {**_LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("bytes", GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "neox": ("bytes", GPTNeoXConfig, _BERT),
    "t5": ("pieces", T5Config, {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2,
                                "num_heads": 2, "decoder_start_token_id": 0}),
    "bert": ("words", BertConfig, {**_BERT, "num_labels": 3, "initializer_range": 0.3}),
}  # fmt: skip
CLASSES = {
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "sentence-encoder": AutoModel,
}
POOL_OF = {"llama": "causal-lm", "qwen2": "causal-lm", "gpt2": "causal-lm", "t5": "seq2seq-lm"}


def live(
    family: str, seed: int, *, pool: str | None = None, rows: int = 90, **changes: Any
) -> PreTrainedModel:
    """Return a model with reproducible random weights."""
    _, configure, fields = FAMILIES[family]
    config = configure(vocab_size=rows, **{**fields, **_IDS, **changes})
    auto_class = CLASSES[pool or POOL_OF[family]]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return auto_class.from_config(config, dtype=torch.float32).eval()


def save(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    **options: Any,
) -> str:
    model.save_pretrained(directory, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return str(directory)


class Tiny:
    """Factories of models and tokenizers for tests."""

    live = staticmethod(live)
    save = staticmethod(save)
    tokenizer = staticmethod(tokenizer)
    classes = CLASSES
    texts = TEXTS


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture
def models_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Save a base and experts of a family with one tokenizer; return a pool's options."""

    def make(family: str, pool: str | None = None, names: Sequence[str] = ("a", "b")) -> Any:
        shared = tokenizer(FAMILIES[family][0])
        paths = {
            name: save(tmp_path / name, live(family, seed, pool=pool, rows=len(shared)), shared)
            for seed, name in enumerate(["base", *names])
        }
        return {"base": paths.pop("base"), "models": paths}

    return make


@pytest.fixture
def adapter() -> Callable[..., str]:
    """Write a PEFT LoRA adapter of rank 2 and scale 2 for a linear layer or for embeddings."""

    def write(directory: Path, module: str, *, rows: int | None = None) -> str:
        directory.mkdir()
        drawn = torch.Generator().manual_seed(3)
        a, b = ("lora_A.weight", "lora_B.weight")
        if rows is not None:
            a, b = ("lora_embedding_A", "lora_embedding_B")
        factors = {
            f"base_model.model.{module}.{a}": torch.randn(2, rows or 16, generator=drawn),
            f"base_model.model.{module}.{b}": torch.randn(16, 2, generator=drawn),
        }
        save_file(factors, directory / "adapter_model.safetensors")
        target = module.rpartition(".")[2]
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target]}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return str(directory)

    return write


@pytest.fixture
def fake_harness(tmp_path: Path) -> str:
    """Write a program that stands in for a Python with lm-eval; return its path.

    It appends requests to `requests.jsonl`. A model's `total` is the sum of its values.
    """
    source = (Path(__file__).parent / "stand_in.py").read_text(encoding="utf-8")
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    path.chmod(0o755)
    return str(path)
