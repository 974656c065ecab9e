"""Merging by tokens against mergekit 0.1.5's `tokenizer`: rows of tokens, and all other tensors.

The tests compare rows by token, because mergekit numbers the tokens of a union differently.
mergekit has as many rows as tokens, or a multiple. Our additional rows belong to no token.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle_tokenizers import TOKENIZERS
from safetensors.torch import load_file
from transformers import AutoTokenizer

from fusion_core import run_fusion

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2}
KINDS = ("llama", "llama-tied", "gpt2")
CHOICES = ("union", "base", "a")
#: rows of single tokens, ours and mergekit's; `<|new|>` is in no tokenizer
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "<|user|>": ({"model": "b"}, {"source": "b"}),
    "<|a|>": (
        {"model": "b", "token": "<|b|>", "force": True},
        {"source": {"kind": "model_token", "model": "b", "token": "<|b|>"}, "force": True},
    ),
    "<|new|>": (
        {"model": "base", "id": 7},
        {"source": {"kind": "model_token", "model": "base", "token_id": 7}},
    ),
    "<s>": ({"model": "a", "force": True}, {"source": "a", "force": True}),
    "<unk>": ({"force": True}, {"source": {"kind": "zero"}, "force": True}),
}


def rows_for(choice: str, side: int) -> dict[str, Any]:
    """Return the rows of one tool; mergekit fails on tokens that the base's tokenizer lacks."""
    known = TOKENIZERS["base"].get_vocab()
    return {
        token: row[side] for token, row in ROWS.items() if choice != "base+rows" or token in known
    }


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"name": "simple-average"}, {"merge_method": "linear"}),
    "task_arithmetic": (
        {"name": "task-arithmetic", "scale": 0.5},
        {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.5}},
    ),
}
CASES = [
    f"{kind} {choice} {method} {step}"
    for kind in KINDS
    for choice in CHOICES
    for method in METHODS
    for step in (0, 32)
] + [f"{kind} {choice}+rows task_arithmetic 0" for kind in KINDS for choice in CHOICES]


def model(kind: str, rows: int) -> Any:
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": rows}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens))
    tied = kind == "llama-tied"
    config = transformers.LlamaConfig(**SIZES, **tokens, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models, and run mergekit on them."""
    root = tmp_path_factory.mktemp("tokens")
    for kind in KINDS:
        for seed, (name, tokenizer) in enumerate(TOKENIZERS.items()):
            torch.manual_seed(seed)
            model(kind, len(tokenizer)).save_pretrained(root / kind / name)
            tokenizer.save_pretrained(root / kind / name)
    recipes = {f"theirs/{case}": recipe(root, *case.split()) for case in CASES}
    (root / "cases.json").write_text(json.dumps(recipes))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_tokens.py"), root], check=True)
    return root


def recipe(root: Path, kind: str, choice: str, method: str, step: str) -> dict[str, Any]:
    paths = {name: str(root / kind / name) for name in TOKENIZERS}
    experts = [{"model": paths[name], "parameters": {"weight": 1.0}} for name in "ab"]
    if method == "linear":  # which has the base among its models
        experts.append({"model": paths["base"], "parameters": {"weight": 0.0}})
    source, _, rows = choice.partition("+")
    tokens: dict[str, Any] = {"source": paths.get(source, source) if source == "a" else source}
    if rows:
        text = json.dumps(rows_for(choice, 1))
        for name, path in paths.items():
            text = text.replace(f': "{name}"', f": {json.dumps(path)}")
        tokens["tokens"] = json.loads(text)
    if step != "0":
        tokens["pad_to_multiple_of"] = int(step)
    return {
        **METHODS[method][1],
        "models": experts,
        "base_model": paths["base"],
        "dtype": "float32",
        "tokenizer": tokens,
    }


@pytest.mark.parametrize("case", CASES)
def test_every_token_has_the_row_that_mergekit_gives_it(directory: Path, case: str) -> None:
    kind, choice, method, step = case.split()
    run_fusion(
        algorithm=METHODS[method][0],
        model_pool={
            "name": "causal-lm",
            "base": str(directory / kind / "base"),
            "models": {name: str(directory / kind / name) for name in "ab"},
            "tokenizer": choice.partition("+")[0],
            "tokens": rows_for(choice, 0) if "+" in choice else {},
            "pad_to_multiple_of": int(step) or None,
        },
        output=directory / "ours" / case,
    )
    ours, theirs = (load(directory / who / case) for who in ("ours", "theirs"))
    assert ours[1].keys() == theirs[1].keys()
    numbers = [(number, theirs[1][token]) for token, number in ours[1].items()]
    here, there = torch.tensor(numbers).T
    assert ours[0].keys() == theirs[0].keys()
    for name, tensor in ours[0].items():
        other = theirs[0][name]
        if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
            assert tensor.shape == other.shape
            tensor, other = tensor[here], other[there]  # noqa: PLW2901
        torch.testing.assert_close(tensor, other, rtol=1e-6, atol=1e-7)


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    return load_file(folder / "model.safetensors"), AutoTokenizer.from_pretrained(
        folder
    ).get_vocab()
