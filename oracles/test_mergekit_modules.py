"""Models with several modules through mergekit 0.1.5 and through `recipes-mergekit`.

The architectures are those whose modules mergekit merges with current transformers. Gradients run
over the layers of each module.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from fusion_core import run_fusion
from fusion_core.commands import load_recipe

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
VISION = {"hidden_size": 16, "intermediate_size": 32, "patch_size": 8}
SECTIONS = {"type": "mrope", "mrope_section": [1, 1, 2]}
TOWERS = ("text_decoder", "vision_tower", "multi_modal_projector")


def mistral() -> Any:
    tower = transformers.PixtralVisionConfig(
        **VISION, num_hidden_layers=3, num_attention_heads=2, image_size=16, head_dim=8
    )
    text = transformers.MistralConfig(**TEXT, head_dim=8)
    config = transformers.Mistral3Config(text_config=text, vision_config=tower)
    return transformers.Mistral3ForConditionalGeneration(config)


def qwen() -> Any:
    tower = {**VISION, "depth": 3, "out_hidden_size": 16, "num_heads": 2}
    text = {**TEXT, "rope_scaling": SECTIONS}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3}
    options = {"num_heads": 2, "vocab_size": 64, "feed_forward_proj": "gated-gelu"}
    config = transformers.T5Config(**sizes, **options, tie_word_embeddings=False)
    return transformers.T5ForConditionalGeneration(config)


MODELS = {
    "mistral": (mistral, TOWERS),
    "qwen": (qwen, TOWERS),
    "t5": (t5, ("encoder", "decoder", "shared")),
}


def configure(folder: Path, modules: tuple[str, ...], method: str) -> dict[str, Any]:
    """Return a configuration whose modules have different weights, one with a gradient."""
    weights: list[Any] = [[0.2, 0.9], [{"filter": "mlp", "value": 0.1}, {"value": 0.7}], 0.4]
    return {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "modules": {
            module: {
                "models": [
                    {"model": str(folder / "a"), "parameters": {"weight": weight}},
                    {"model": str(folder / "b")},
                ],
                "parameters": {"weight": 0.5},
            }
            for module, weight in zip(modules, weights, strict=True)
        },
        "parameters": {"density": 0.6, "weight": 0.3},
        "dtype": "float32",
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write models and configurations, and run mergekit on them."""
    root = tmp_path_factory.mktemp("modules")
    for kind, (build, modules) in MODELS.items():
        torch.manual_seed(0)
        model = build()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            for key, tensor in model.state_dict().items():
                tensor.copy_(state[key] + bool(seed) * 0.2 * torch.randn_like(tensor))
            model.save_pretrained(root / kind / name)
        for method in ("linear", "ties"):
            content = configure(root / kind, modules, method)
            (root / f"{kind}-{method}.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    script = Path(__file__).with_name("mergekit_recipes.py")
    subprocess.run([PYTHON, script, root], check=True)
    return root


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("kind", MODELS)
def test_each_module_has_mergekits_values(
    directory: Path, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    name = f"{kind}-{method}"
    run_fusion(load_recipe(f"{name}.yml"), output=f"ours/{name}")
    ours, theirs = (
        load_file(directory / side / name / "model.safetensors") for side in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if method == "ties" and key.endswith("attn.qkv.weight"):
            continue  # three matrices here, each with its own threshold
        torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6, msg=key)
