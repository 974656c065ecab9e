"""Tensors that mergekit 0.1.5 loses without an error (mergekit#696): here they are all merged."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import transformers
from hybrid_mixture import HYBRID
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


def test_the_experts_of_a_hybrid_mixture_are_merged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = transformers.AutoModelForImageTextToText.from_config(HYBRID)
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
