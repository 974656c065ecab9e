"""Configurations run on tiny models, against values computed in fp64 from the file's own words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import run_fusion
from fusion_core.commands import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from subprocess import CompletedProcess

LAYERS = 5
IN_A_LAYER = {
    "self_attn.q_proj.weight": (4, 4),
    "mlp.up_proj.weight": (6, 4),
    "input_layernorm.weight": (4,),
}
SHAPES = {
    "model.embed_tokens.weight": (7, 4),
    **{
        f"model.layers.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in IN_A_LAYER.items()
    },
    "model.norm.weight": (4,),
    "lm_head.weight": (7, 4),
}
State = dict[str, torch.Tensor]
#: The rules of a parameter as mergekit reads them: filter and values, the first match decides.
Rules = list[tuple[str, list[float]]]


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, State]:
    """Write four models in the working directory, and return them in fp64."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    states = {
        model: {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        for model in ("base", "a", "b", "c")
    }
    for model, state in states.items():
        (tmp_path / model).mkdir()
        save_file(state, tmp_path / model / "model.safetensors")
        config = {"model_type": "llama", "num_hidden_layers": LAYERS}
        (tmp_path / model / "config.json").write_text(json.dumps(config))
    return {
        model: {name: tensor.double() for name, tensor in state.items()}
        for model, state in states.items()
    }


def merge(text: str, tmp_path: Path) -> State:
    (tmp_path / "mergekit.yml").write_text(text)
    run_fusion(tmp_path / "mergekit.yml", output=tmp_path / "merged")
    return load_file(tmp_path / "merged" / "model.safetensors")


def evaluate(rules: Rules, name: str, t: float) -> float:
    """Return the value of a parameter for a tensor at depth t of its slice."""
    values = next(values for part, values in rules if part in name)
    position = t * (len(values) - 1)
    low = min(int(position), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] * (1 - position + low) + values[high] * (position - low)


def depth_of(name: str) -> float:
    """Return the depth in the whole model; tensors outside of layers have the first value."""
    return int(name.split(".")[2]) / (LAYERS - 1) if ".layers." in name else 0.0


def check(merged: State, expected: State) -> None:
    """Compare every entry to one unit in the last place of fp32, for values around 1."""
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name].double(), tensor, rtol=2e-7, atol=5e-7, msg=name)


def test_weights_by_model_filter_and_depth(states: dict[str, State], tmp_path: Path) -> None:
    text = """
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters:
      weight:
        - {filter: self_attn, value: [0.1, 0.9, 0.4]}
        - {filter: norm, value: [0.5, 1.5]}
  - {model: b, parameters: {weight: [0, 1]}}
  - {model: c, parameters: {weight: [{filter: lm_head, value: [2, 3]}]}}
parameters: {weight: 0.25, lambda: 0.5, int8_mask: true}
dtype: float32
"""
    rules: dict[str, Rules] = {
        "a": [("self_attn", [0.1, 0.9, 0.4]), ("norm", [0.5, 1.5]), ("", [0.25])],
        "b": [("", [0.0, 1.0])],
        "c": [("lm_head", [2.0, 3.0]), ("", [0.25])],
    }
    expected = {
        name: base
        + 0.5
        * sum(
            evaluate(rules[model], name, depth_of(name)) * (states[model][name] - base)
            for model in rules
        )
        for name, base in states["base"].items()
    }
    check(merge(text, tmp_path), expected)


def slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    cosine = (first * second).sum() / (first.norm() * second.norm())
    angle = cosine.acos()
    return (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / angle.sin()


def test_the_usual_slerp(states: dict[str, State], tmp_path: Path) -> None:
    text = """
slices:
  - sources: [{model: base, layer_range: [0, 5]}, {model: a, layer_range: [0, 5]}]
merge_method: slerp
base_model: base
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.4}
dtype: float32
"""
    rules: Rules = [
        ("self_attn", [0, 0.5, 0.3, 0.7, 1]),
        ("mlp", [1, 0.5, 0.7, 0.3, 0]),
        ("", [0.4]),
    ]
    expected = {
        name: slerp(base, states["a"][name], evaluate(rules, name, depth_of(name)))
        for name, base in states["base"].items()
    }
    check(merge(text, tmp_path), expected)


def test_slices_of_different_layers(states: dict[str, State], tmp_path: Path) -> None:
    text = """
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [3, 5], parameters: {weight: [0.2, 0.9]}}
  - sources:
      - {model: b, layer_range: [2, 5]}
      - {model: base, layer_range: [1, 4]}
    parameters: {weight: [{filter: mlp, value: [1, 0.5]}, {value: 0.7}]}
merge_method: task_arithmetic
base_model: base
dtype: float32
"""
    last: Rules = [("mlp", [1, 0.5]), ("", [0.7])]
    expected: State = {}
    layers = [("a", 0, 3, 0.2), ("a", 1, 4, 0.9), *(("b", n + 1, n + 2, None) for n in range(3))]
    for number, (model, of_base, of_expert, weight) in enumerate(layers):
        for name in IN_A_LAYER:
            base = states["base"][f"model.layers.{of_base}.{name}"]
            expert = states[model][f"model.layers.{of_expert}.{name}"]
            factor = evaluate(last, name, (number - 2) / 2) if weight is None else weight
            expected[f"model.layers.{number}.{name}"] = base + factor * (expert - base)
    for name, model, factor in (
        ("model.embed_tokens.weight", "a", 0.2),
        ("model.norm.weight", "b", 0.7),
        ("lm_head.weight", "b", 0.7),
    ):
        base = states["base"][name]
        expected[name] = base + factor * (states[model][name] - base)
    check(merge(text, tmp_path), expected)


def test_a_stack_with_scales_is_as_deep_as_its_slices(
    states: dict[str, State], tmp_path: Path
) -> None:
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources:
      - model: b
        layer_range: [2, 5]
        parameters: {scale: [{filter: q_proj, value: 0.0}, {value: 1.0}]}
merge_method: passthrough
"""
    merged = merge(text, tmp_path)
    assert json.loads((tmp_path / "merged/config.json").read_text())["num_hidden_layers"] == 7
    for number, (model, layer) in enumerate(
        [*(("a", n) for n in range(4)), *(("b", n) for n in (2, 3, 4))]
    ):
        for name in IN_A_LAYER:
            source = states[model][f"model.layers.{layer}.{name}"]
            scale = 0.0 if model == "b" and "q_proj" in name else 1.0
            assert torch.equal(merged[f"model.layers.{number}.{name}"].double(), scale * source)
    assert torch.equal(
        merged["model.embed_tokens.weight"].double(), states["a"]["model.embed_tokens.weight"]
    )
    assert torch.equal(merged["lm_head.weight"].double(), states["b"]["lm_head.weight"])


def test_documents_are_rounded_between_merges(states: dict[str, State], tmp_path: Path) -> None:
    text = """---
name: mean
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
dtype: bfloat16
---
merge_method: task_arithmetic
base_model: base
models: [{model: mean}]
parameters: {weight: 0.5}
dtype: float32
"""
    expected = {
        name: base + 0.5 * (((states["a"][name] + states["b"][name]) / 2).bfloat16() - base)
        for name, base in states["base"].items()
    }
    check(merge(text, tmp_path), expected)


def test_the_command_line(
    states: dict[str, State], tmp_path: Path, run_fuse: Callable[..., CompletedProcess[str]]
) -> None:
    (tmp_path / "mergekit.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {weight: 1, density: 0.5, int8_mask: true}\ndtype: float32\n"
    )
    done = run_fuse("run", "mergekit.yml", "--set", "algorithm.scale=0", "-o", "base-again")
    assert "warning: mergekit.yml: parameters.int8_mask: has no effect on values" in done.stderr
    check(load_file(tmp_path / "base-again/model.safetensors"), states["base"])
    (tmp_path / "recipes").mkdir()
    call = ("import", "mergekit.yml", "-o", "recipes/ties.yaml")
    run_fuse(*call)
    moved = load_recipe(tmp_path / "recipes/ties.yaml")
    assert moved["model_pool"] == {"base": "../base", "models": {"a": "../a", "b": "../b"}}
    run_fusion(tmp_path / "mergekit.yml", output=tmp_path / "direct")
    run_fusion(tmp_path / "recipes/ties.yaml", output=tmp_path / "imported")
    first, second = (
        (tmp_path / side / "model.safetensors").read_bytes() for side in ("direct", "imported")
    )
    assert first == second
    assert "recipes/ties.yaml exists" in run_fuse(*call, code=7).stderr


def test_a_whole_model_in_slices_has_the_configuration_of_the_base(
    states: dict[str, State], tmp_path: Path
) -> None:
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 7}))
    slices = f"slices: [{{sources: [{{model: a, layer_range: [0, {LAYERS}]}}]}}]"
    merged = merge(f"merge_method: passthrough\nbase_model: b\n{slices}", tmp_path)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["rope_theta"] == 7
    assert all(torch.equal(merged[name].double(), value) for name, value in states["a"].items())


@pytest.mark.usefixtures("states")
def test_paths_of_a_merge_within_a_written_recipe_start_in_its_folder(
    tmp_path: Path, run_fuse: Callable[..., CompletedProcess[str]]
) -> None:
    text = (
        "name: inner\nmerge_method: linear\nparameters: {weight: 1}\ndtype: float32\n"
        "models: [{model: a}, {model: b}]\n---\nmerge_method: ties\nbase_model: base\n"
        "parameters: {weight: 1, density: 0.5}\ndtype: float32\nmodels: [{model: inner}]\n"
    )
    (tmp_path / "mergekit.yml").write_text(text)
    for name in ("recipes", "weighted-average"):
        (tmp_path / name).mkdir()
    run_fuse("import", "mergekit.yml", "-o", "recipes/recipe.yaml")
    inner = load_recipe(tmp_path / "recipes/recipe.yaml")["model_pool"]["models"]["inner"]
    assert inner["algorithm"]["name"] == "weighted-average"
    assert inner["model_pool"]["models"] == {"a": "../a", "b": "../b"}
