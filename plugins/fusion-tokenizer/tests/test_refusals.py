"""Inputs that must be refused, with the next step, and without a trace of an output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transplant_models import TEXTS, Models, byte_level, permute, save_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


def edit(path: Any, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_tensor(models: Models, name: str, shape: tuple[int, ...], side: str = "model") -> None:
    file = getattr(models, side) / "model.safetensors"
    save_file({**load_file(file), name: torch.zeros(shape)}, file)


def quantise(models: Models) -> None:
    edit(models.model / "config.json", quantization_config={"quant_method": "unheard-of"})


def make_adapter(models: Models) -> None:
    (models.model / "model.safetensors").unlink()
    (models.model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x": torch.zeros(1)}, models.model / "adapter_model.safetensors")


def keep_only_sentencepiece(models: Models) -> None:
    (models.donor / "tokenizer.json").rename(models.donor / "tokenizer.model")


def same_tokenizer(models: Models) -> None:
    content = (models.donor / "tokenizer.json").read_bytes()
    (models.model / "tokenizer.json").write_bytes(content)


def truncate(models: Models) -> None:
    file = models.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage(models: Models) -> None:
    file = models.donor / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:1000])


def word_piece(models: Models) -> None:
    edit(models.donor / "tokenizer.json", model={"type": "WordPiece", "vocab": {"a": 0}})


def huge_id(models: Models) -> None:
    tokenizer = json.loads((models.donor / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 2**31
    edit(models.donor / "tokenizer.json", **tokenizer)


def infinity(models: Models) -> None:
    file = models.donor / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][7, 1] = torch.inf
    save_file(tensors, file)


CASES: dict[str, tuple[Callable[[Models], object], list[str], str, str]] = {
    "quantised": (quantise, [], "is quantised", "dequantise it first"),
    "adapter": (make_adapter, [], "expected a full model, found an adapter", "Merge it into"),
    "no tokenizer.json": (
        keep_only_sentencepiece,
        [],
        "missing tokenizer.json; it has tokenizer.model",
        "save_pretrained",
    ),
    "same": (same_tokenizer, [], "nothing to do", "another tokenizer"),
    "truncated weights": (truncate, [], "model.safetensors", ""),
    "truncated tokenizer": (damage, [], "invalid tokenizer.json", "damaged or hostile"),
    "WordPiece": (
        word_piece,
        [],
        "tokenizer.json: unsupported model 'WordPiece'; expected BPE",
        "Choose a model whose tokenizer is BPE",
    ),
    "huge id": (huge_id, [], "reading its tokenizer.json", "damaged or hostile"),
    "huge vocab_size": (
        lambda models: edit(models.donor / "config.json", vocab_size=10**12),
        [],
        "vocab_size of at most",
        "",
    ),
    "no config.json": (
        lambda models: (models.model / "config.json").unlink(),
        [],
        "missing config.json",
        "Copy it",
    ),
    "infinity": (infinity, [], "model.embed_tokens.weight has values that are not finite", ""),
    "per layer": (
        lambda models: add_tensor(models, "model.embed_tokens_per_layer.weight", (340, 8)),
        [],
        "embeddings per layer: model.embed_tokens_per_layer.weight",
        "one embedding per token",
    ),
    "two inputs": (
        lambda models: add_tensor(models, "decoder.embed_tokens.weight", (340, 16)),
        [],
        "expected one input embedding",
        "Decoders",
    ),
    "unknown head": (
        lambda models: add_tensor(models, "medusa_head.weight", (340, 16)),
        [],
        "medusa_head.weight has one row per token",
        "",
    ),
    "other rows": (
        lambda models: add_tensor(models, "lm_head.weight", (339, 16), "donor"),
        [],
        "lm_head.weight has 339 rows, model.embed_tokens.weight 420",
        "",
    ),
    "too few shared": (bool, ["-k", "400"], "-k 400 needs as many tokens", "Use a smaller -k"),
    "method": (bool, ["--method", "magic"], "--method: expected omp, ", ""),
    "k without effect": (bool, ["--method", "mean", "-k", "3"], "-k has no effect", ""),
    "weights without effect": (bool, ["--subword-weights", "ends"], "has no effect", ""),
    "no center without effect": (
        bool,
        ["--method", "zero", "--no-center"],
        "--no-center has no effect",
        "",
    ),
    "template": (bool, ["--chat-template", "donor"], "the donor has no chat template", ""),
    "text": (bool, ["--text", "missing.txt"], "--text missing.txt: No such file", ""),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_the_next_step(pair: Models, case: str) -> None:
    change, options, problem, hint = CASES[case]
    change(pair)
    error = pair.refuse(*options)
    assert problem in error.message
    assert hint in (error.hint or "")


def test_nothing_in_common_is_refused_for_omp_only(pair: Models) -> None:
    tokenizer = json.loads((pair.donor / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"] |= {"vocab": {f"\U00013000{t}": n for t, n in vocabulary.items()}}
    tokenizer["model"] |= {"merges": [], "byte_fallback": False, "unk_token": None}
    tokenizer["added_tokens"] = []
    edit(pair.donor / "tokenizer.json", **tokenizer)
    assert "and there are 0" in pair.refuse().message
    assert "new: subword" in pair.transplant("--method", "subword")


def test_a_donor_without_any_tokenizer_is_refused(pair: Models, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    error = pair.refuse("--method", "subword", donor=empty)
    assert f"donor ({empty}): missing tokenizer.json" in error.message


def test_outputs_of_others_are_kept(pair: Models) -> None:
    pair.output.mkdir()
    (pair.output / "notes.txt").write_text("mine")
    assert "already exists" in pair.refuse().message
    assert "not written by fuse" in pair.refuse("--overwrite").message


def test_an_output_around_an_input_is_refused(pair: Models) -> None:
    pair.transplant("--method", "mean")
    other, _ = permute(byte_level(350, TEXTS), 1)
    save_tokenizer(other, pair.root / "other")
    error = pair.refuse(
        "--overwrite", "--method", "mean", model=pair.output, donor=pair.root / "other"
    )
    assert "contains the input" in error.message


def test_a_failed_measurement_leaves_nothing(pair: Models) -> None:
    edit(pair.model / "config.json", num_hidden_layers="two")
    assert "transformers cannot load it" in pair.refuse("--measure", "--method", "mean").message
