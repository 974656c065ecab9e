"""Tensors that mergekit 0.1.5 loses without an error (mergekit#696): here they are all merged."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import transformers
from safetensors.torch import load_file

from fusion_core import run_fusion

PROGRAM = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "mergekit-yaml"
RECIPE = """
models:
  - {{model: {root}/a, parameters: {{weight: 0.5}}}}
  - {{model: {root}/b, parameters: {{weight: 0.5}}}}
merge_method: linear
dtype: float32
"""
TEXT = {
    "vocab_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 8,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 8,
    "num_experts_per_tok": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}


def test_the_experts_of_a_hybrid_mixture_are_merged(tmp_path: Path) -> None:
    config = transformers.Qwen3_5MoeConfig(
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=20,
        video_token_id=21,
        vision_start_token_id=22,
        vision_end_token_id=23,
    )
    for name in ("a", "b"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
        model.float().save_pretrained(tmp_path / name)
    (tmp_path / "mergekit.yml").write_text(RECIPE.format(root=tmp_path))
    theirs = tmp_path / "theirs"
    subprocess.run([PROGRAM, "mergekit.yml", theirs], cwd=tmp_path, check=True)
    models = {name: str(tmp_path / name) for name in ("a", "b")}
    run_fusion(algorithm="simple-average", model_pool={"models": models}, output=tmp_path / "ours")
    stored, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "ours"))
    assert merged.keys() == stored.keys()
    written = {name for file in theirs.glob("*.safetensors") for name in load_file(file)}
    lost = stored.keys() - written
    assert lost == {name for name in stored if ".experts." in name}
