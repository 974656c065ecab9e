"""`stack` against `passthrough` with slices in mergekit 0.1.5."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusion_core import run_fusion

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 40}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
WORDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def gpt2() -> Any:
    config = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **tokens))


def make_builder(kind: str, head: str, **options: Any) -> Callable[[], Any]:
    model = getattr(transformers, f"{kind}{head}")
    return lambda: model(getattr(transformers, f"{kind}Config")(**SIZES, **options))


KINDS = {
    "llama": make_builder("Llama", "ForCausalLM"),
    "llama-tied": make_builder("Llama", "ForCausalLM", tie_word_embeddings=True),
    "mistral": make_builder("Mistral", "ForCausalLM"),
    "gemma": make_builder("Gemma", "ForCausalLM"),
    "bert": make_builder("Bert", "ForSequenceClassification"),
    "gpt2": gpt2,
}
SLICES = {
    "two models": [("a", [0, 2]), ("b", [1, 3])],
    "three slices": [("b", [1, 3]), ("a", [0, 3]), ("b", [0, 1])],
    "one layer": [("a", [2, 3])],
}
CASES = [(kind, slices) for kind in KINDS for slices in SLICES]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models in bf16, and run mergekit on them."""
    root = tmp_path_factory.mktemp("slices")
    for number, (kind, _) in enumerate(CASES):
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            model = KINDS[kind]()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            model.to(torch.bfloat16).save_pretrained(root / str(number) / name)
    cases = {number: SLICES[slices] for number, (_, slices) in enumerate(CASES)}
    (root / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_slices.py"), root], check=True)
    return root


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: " ".join(CASES[number]))
def test_a_stack_is_mergekits(directory: Path, number: int) -> None:
    folder, (_, slices) = directory / str(number), CASES[number]
    chosen = [{"model": model, "layers": layers} for model, layers in SLICES[slices]]
    run_fusion(
        algorithm={"name": "stack", "slices": chosen},
        model_pool={"models": {name: str(folder / name) for name in "ab"}},
        output=folder / "ours",
    )
    ours, theirs = (tensors_in(folder / side) for side in ("ours", "theirs"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype is tensor.dtype
        assert torch.equal(ours[name], tensor), name
    models = [transformers.AutoModel.from_pretrained(folder / side) for side in ("ours", "theirs")]
    one, other = (model.eval()(input_ids=WORDS)[0] for model in models)
    assert torch.equal(one, other)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    parts = (load_file(path) for path in folder.glob("*.safetensors"))
    return {name: tensor for part in parts for name, tensor in part.items()}
