"""The page for users of mergekit: every pair is an import, and its commands run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from port_pages import check_import, pairs_of, read_page, run_commands
from safetensors.torch import load_file, save_file

from fusion_core.commands import load_recipe

if TYPE_CHECKING:
    from hub_server import HubServer

pytestmark = pytest.mark.plugins

PAGE = read_page("port-from-mergekit.md")
PAIRS = pairs_of(PAGE)


@pytest.mark.parametrize("title", PAIRS)
def test_a_pair_is_an_import(title: str, tmp_path: Path) -> None:
    check_import(PAIRS[title], tmp_path / "mergekit.yml")


def test_there_are_sixteen_pairs_and_all_methods_are_listed() -> None:
    from recipes_mergekit.methods import METHODS

    assert len(PAIRS) == 16
    (table,) = re.findall(r"## Methods\n(.*?)\n## ", PAGE, re.DOTALL)
    assert {*METHODS} <= {*re.findall(r"`([^`]+)`", table)}


def test_all_layers_of_a_model_on_the_hub_are_the_model(tmp_path: Path, hub: HubServer) -> None:
    for name, layers in {"base": 2, "math": 2, "deep": 3}.items():
        (tmp_path / name).mkdir()
        save_file({"layers.0.w": torch.zeros(1)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        hub.add_directory(f"org/{name}", tmp_path / name)
    text = """
slices:
  - sources: [{model: org/base, layer_range: [0, 2]}, {model: org/math, layer_range: [0, 2]}]
merge_method: slerp
base_model: org/base
parameters: {t: 0.5}
tokenizer_source: base
dtype: float32
"""
    (tmp_path / "mergekit.yml").write_text(text)
    pool = load_recipe(tmp_path / "mergekit.yml")["model_pool"]
    assert pool["base"] == "org/base"
    assert pool["models"] == {"math": "org/math"}
    (tmp_path / "mergekit.yml").write_text(text.replace("org/math", "org/deep"))
    deep = load_recipe(tmp_path / "mergekit.yml")["model_pool"]["models"]["deep"]
    assert deep["algorithm"] == {"name": "stack", "slices": [{"model": "deep", "layers": [0, 2]}]}


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, Any] = {}
    for seed, name in enumerate(("base", "math", "code")):
        draw = torch.Generator().manual_seed(seed)
        (tmp_path / name).mkdir()
        states[name] = {
            f"model.layers.{n}.mlp.weight": torch.randn(3, 4, generator=draw) for n in range(2)
        }
        save_file(states[name], tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    monkeypatch.chdir(tmp_path)
    configuration, _ = PAIRS["A weighted average"]
    Path("mergekit.yml").write_text(configuration.replace("org/", ""))
    run_commands(PAGE)
    for name, tensor in load_file("merged/model.safetensors").items():
        expected = 0.7 * states["math"][name] + 0.3 * states["code"][name]
        assert torch.equal(tensor, expected.bfloat16())
    assert load_recipe("recipe.yaml")["algorithm"]["name"] == "weighted-average"
