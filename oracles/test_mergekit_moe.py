"""`moe` against mergekit-moe of mergekit 0.1.5: all but the random gates."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusion_core import RunOptions, run_fusion
from pools_lm.mini.pools import DATA

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
PROMPTS = {
    "a": ["hello there", "the cat sat on the mat and slept"],
    "b": ["two plus two is four"],
    "c": ["once upon a time"],
}
NEGATIVE = ["numbers are not words", "no"]
#: Our gates by mergekit's names.
GATES = {"hidden": "last-hidden", "cheap_embed": "embeddings"}
KINDS = {"Llama": "packed", "Mistral": "packed", "Qwen2": "separate", "Qwen3": "packed"}
CASES = [(kind, gate) for kind in KINDS for gate in GATES]


def describe(kind: str, gate: str) -> dict[str, Any]:
    """Return mergekit's configuration of a case."""
    experts: list[dict[str, Any]] = [
        {"source_model": name, "positive_prompts": prompts} for name, prompts in PROMPTS.items()
    ]
    experts[0]["negative_prompts"] = NEGATIVE
    experts[1]["residual_scale"] = 0.7
    recipe = {"base_model": "base", "gate_mode": gate, "dtype": "float32", "experts": experts}
    if kind == "Qwen2":  # mergekit opens no other model than the base and the routed experts
        recipe |= {"shared_experts": [{**experts.pop(), "source_model": "base"}]}
    return recipe


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models, and run mergekit on them."""
    root = tmp_path_factory.mktemp("mixtures")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "base")
    for number, (kind, _) in enumerate(CASES):
        config = getattr(transformers, f"{kind}Config")(**SIZES)
        for seed, name in enumerate(("base", *PROMPTS)):
            torch.manual_seed(seed)
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(root / str(number) / name)
            tokenizer.save_pretrained(root / str(number) / name)
    cases = {number: describe(*case) for number, case in enumerate(CASES)}
    (root / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_moe.py"), root], check=True)
    return root


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: " ".join(CASES[number]))
def test_a_mixture_is_mergekits(directory: Path, number: int) -> None:
    folder, (kind, gate) = directory / str(number), CASES[number]
    options: dict[str, Any] = {
        "gate": GATES[gate],
        "prompts": PROMPTS,
        "negative_prompts": {"a": NEGATIVE},
        "output_scale": {"b": 0.7},
        "layout": KINDS[kind],
    }
    models = {name: str(folder / name) for name in PROMPTS}
    if kind == "Qwen2":
        options["shared_expert"] = "c"
        models["c"] = str(folder / "base")
    run_fusion(
        algorithm={"name": "moe", **options},
        model_pool={"name": "causal-lm", "base": str(folder / "base"), "models": models},
        output=folder / "ours",
        options=RunOptions(evaluate=False),
    )
    ours, theirs = (tensors_in(folder / side) for side in ("ours", "theirs"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        if name.endswith("gate.weight"):  # sums of hidden states, in another order
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
        else:
            assert torch.equal(ours[name], tensor), name


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    parts = (load_file(path) for path in folder.glob("*.safetensors"))
    return {name: tensor for part in parts for name, tensor in part.items()}
