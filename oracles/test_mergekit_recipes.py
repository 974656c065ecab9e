"""Configurations through mergekit 0.1.5 and through `recipes-mergekit`, entry by entry.

Both compute in fp32 or, for methods of norms and angles, mergekit in fp64. A result may differ by
one unit in the last place of its dtype, and by one of fp32's for the largest input: where inputs
cancel, the result's own unit is smaller than the rounding of its terms. Methods that draw random
numbers keep all entries here; `test_mergekit.py` compares them with equal numbers.
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
from safetensors.torch import load_file, save_file

from fusion_core import run_fusion
from fusion_core.commands import load_recipe

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
LAYERS = 4
SIZES = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": LAYERS}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}

TWO = """
base_model: base
models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: 0.4}}
dtype: float32
"""
HALF = TWO + "out_dtype: bfloat16\n"
GRADIENTS = """
base_model: base
models:
  - model: base
  - model: a
    parameters:
      weight:
        - {filter: self_attn, value: [0.1, 0.9, 0.4]}
        - {filter: mlp, value: 0.3}
        - {filter: lm_head, value: 0.8}
        - {value: [0.6, 0.2]}
  - model: b
    parameters:
      weight: [0, 0.3, 0.7, 1]
parameters:
  int8_mask: true
dtype: float32
"""
CLASSIC = """
slices:
  - sources:
      - {model: base, layer_range: [0, 4]}
      - {model: a, layer_range: [0, 4]}
merge_method: slerp
base_model: base
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {filter: "*", value: 0.5}
dtype: float64
out_dtype: float32
"""
FAR = """
base_model: base
models: [{model: a}, {model: b}, {model: c}]
dtype: float64
out_dtype: float32
"""
PAIR = """
base_model: base
models: [{model: base}, {model: a}]
dtype: float64
out_dtype: float32
"""
SLICES = """
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2], parameters: {weight: [0.2, 0.9]}}
      - {model: b, layer_range: [2, 4], parameters: {weight: 0.5}}
  - sources:
      - {model: base, layer_range: [1, 4]}
      - {model: b, layer_range: [1, 4]}
      - {model: a, layer_range: [0, 3]}
    parameters:
      weight:
        - {filter: down_proj, value: 0.1}
        - {filter: norm, value: [1, 0.4]}
        - {value: 0.8}
base_model: base
dtype: float32
"""
STACK = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - model: b
        layer_range: [1, 4]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: [0.5, 1.5]}
            - {value: 1.0}
merge_method: passthrough
dtype: float32
"""
DOCUMENTS = """---
name: first
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.25}}
  - {model: b, parameters: {weight: 0.75}}
dtype: float32
---
name: second
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.5}}]
dtype: float32
---
merge_method: ties
base_model: base
models:
  - {model: first, parameters: {weight: 1.0, density: 0.6}}
  - {model: second, parameters: {weight: 0.5, density: 0.6}}
dtype: float32
"""
#: kinds of configurations by name
KINDS = {
    "linear": HALF + "merge_method: linear\nparameters: {weight: 0.2}",
    "linear-sum": "models:\n  - {model: a, parameters: {weight: 0.7}}\n"
    "  - {model: b, parameters: {weight: -0.4}}\n"
    "merge_method: linear\nparameters: {normalize: false}\nout_dtype: float16\n",
    "linear-gradients": GRADIENTS.replace(
        "- model: base", "- {model: base, parameters: {weight: [0.5, 1.0]}}"
    )
    + "merge_method: linear",
    "slerp": PAIR + "merge_method: slerp\nparameters: {t: 0.3}",
    "slerp-classic": CLASSIC,
    "slerp-slices": CLASSIC.replace(
        "merge_method",
        "  - sources:\n      - {model: a, layer_range: [2, 4]}\n"
        "      - {model: base, layer_range: [1, 3]}\n    parameters: {t: [0.1, 0.8]}\nmerge_method",
    ),
    **{
        f"nuslerp-{mode}": PAIR.replace("[{model: base}, {model: a}]", "[{model: a}, {model: b}]")
        + f"merge_method: nuslerp\nparameters: {{weight: [0.4, 1.0], {options}}}"
        for mode, options in {
            "flat": "nuslerp_flatten: true",
            "row": "nuslerp_flatten: false",
            "column": "nuslerp_flatten: false, nuslerp_row_wise: yes",
        }.items()
    },
    "nuslerp-alone": "merge_method: nuslerp\nmodels:\n  - {model: a, parameters: {weight: 0.3}}\n"
    "  - {model: b, parameters: {weight: 0.5}}\ndtype: float64\nout_dtype: float32\n",
    "multislerp": FAR + "merge_method: multislerp\nparameters: {weight: [0.2, 1]}",
    "karcher": FAR + "merge_method: karcher\nparameters: {max_iter: 5, tol: '1e-6'}",
    "task_arithmetic": HALF + "merge_method: task_arithmetic\nparameters: {lambda: 0.6}",
    "task_arithmetic-mean": TWO + "merge_method: task_arithmetic\nparameters: {normalize: true}",
    "task_arithmetic-gradients": GRADIENTS + "merge_method: task_arithmetic",
    "ties": HALF + "merge_method: ties\nparameters: {density: 0.5}",
    "ties-gradients": GRADIENTS.replace("int8_mask: true", "density: [0.9, 0.3, 0.5]")
    + "merge_method: ties",
    "ties-sum": TWO
    + "merge_method: ties\nparameters: {density: 0.3, normalize: false, lambda: 1.3}",
    "ties-slices": SLICES + "merge_method: ties\nparameters: {density: 0.7}",
    "dare_linear": TWO + "merge_method: dare_linear",
    "dare_ties": TWO + "merge_method: dare_ties\nparameters: {lambda: 0.8, normalize: true}",
    "della": TWO + "merge_method: della",
    "della_linear": TWO + "merge_method: della_linear\nparameters: {density: 1}",
    "breadcrumbs": HALF + "merge_method: breadcrumbs\nparameters: {density: 0.6, gamma: 0.1}",
    "breadcrumbs_ties": GRADIENTS.replace(
        "int8_mask: true", "density: 0.8, gamma: 0.15".join("{}")
    ).replace("parameters:\n  {", "parameters: {")
    + "merge_method: breadcrumbs_ties",
    "sce": FAR + "merge_method: sce\nparameters: {select_topk: 0.6}",
    "model_stock": FAR + "merge_method: model_stock",
    "nearswap": PAIR + "merge_method: nearswap\nparameters: {t: [0.01, 0.05]}",
    "arcee_fusion": PAIR.replace("float64", "float32") + "merge_method: arcee_fusion",
    "passthrough": "merge_method: passthrough\nmodels: [{model: a}]",
    "passthrough-scale": "merge_method: passthrough\nmodels:\n  - model: a\n"
    "    parameters: {scale: [{filter: embed, value: 2.0}, {value: [1.0, 0.5]}]}\ndtype: float32\n",
    "passthrough-slices": STACK.split("        parameters:", maxsplit=1)[0]
    + STACK[STACK.index("merge_method") :],
    "passthrough-slices-scale": STACK,
    "ties-each": """
models:
  - {model: a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
  - {model: b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
  - model: c
    parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
dtype: float32
""",
    "breadcrumbs-each": """
models:
  - {model: a, parameters: {density: 0.8, gamma: 0.1, weight: 1.0}}
  - {model: b, parameters: {density: 0.4, gamma: [0.05, 0.2], weight: 0.5}}
merge_method: breadcrumbs
base_model: base
dtype: float32
""",
    "adapter": TWO.replace("model: b,", "model: base+adapter,") + "merge_method: task_arithmetic",
    "adapter-elsewhere": TWO.replace("model: b,", "model: a+adapter,") + "merge_method: linear\n"
    "parameters: {weight: 0.2}",
    "tokenizer": HALF.replace("model: a", "model: told") + "merge_method: task_arithmetic\n"
    "tokenizer_source: base",
    "documents": DOCUMENTS,
}


#: Architectures besides Llama, with configurations that depend on the names of tensors. mergekit
#: does not change the list `layer_types` of Qwen2 and Gemma 2, so their slices fail there.
ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": LAYERS, "n_head": 2}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", {}),
}
BY_NAME = {
    "gradients": """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: [{filter: att, value: [0.2, 1]}, {value: 0.5}]}}
  - {model: b, parameters: {weight: [1, 0.1]}}
parameters: {density: [{filter: emb, value: 0.7}, {value: 0.9}]}
dtype: float32
""",
    "slices": SLICES.replace("{filter: down_proj, value: 0.1}", "{filter: att, value: 0.1}")
    + "merge_method: task_arithmetic\n",
    "stack": STACK.replace("o_proj", "att").replace(
        "            - {filter: down_proj, value: [0.5, 1.5]}\n", ""
    ),
}
CASES = [
    *KINDS,
    *(f"{kind}/{name}" for kind in ("gpt2", "mistral") for name in BY_NAME),
    *("qwen2/gradients", "gemma2/gradients"),
]


def _write_models(root: Path) -> None:
    torch.manual_seed(0)
    base = _model(len(TOKENIZERS["base"]))
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = base.state_dict()
    for seed, name in enumerate(("base", "a", "b", "c", "told")):
        torch.manual_seed(seed)
        tokenizer = TOKENIZERS["a" if name == "told" else "base"]
        model = _model(len(tokenizer))
        for key, parameter in model.state_dict().items():
            rows = min(len(parameter), len(state[key]))
            parameter[:rows].copy_(state[key][:rows])
            parameter.add_(bool(seed) * 0.2 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    _write_adapter(root / "adapter")
    for kind, (class_name, options) in ARCHITECTURES.items():
        architecture = getattr(transformers, class_name)
        config = architecture.config_class(**{"vocab_size": 24, **SIZES, **options})
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            model = architecture(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            model.save_pretrained(root / kind / name)


def _model(rows: int) -> Any:
    config = transformers.LlamaConfig(**SIZES, vocab_size=rows)
    return transformers.LlamaForCausalLM(config)


def _write_adapter(folder: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    config |= {"target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(9)
    factors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.randn(
            shape, generator=draw
        )
        * 0.3
        for layer in range(LAYERS)
        for side, shape in {"A": (2, 16), "B": (16, 2)}.items()
    }
    save_file(factors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models and configurations, and run mergekit on them."""
    root = tmp_path_factory.mktemp("recipes")
    _write_models(root)
    write_configurations(root)
    script = Path(__file__).with_name("mergekit_recipes.py")
    for folder in (root, *(root / kind for kind in ARCHITECTURES)):
        # a process per folder: mergekit keeps models by their relative paths
        subprocess.run([PYTHON, script, folder], check=True)
    return root


def write_configurations(root: Path) -> None:
    """Write the configurations of Llama's models, and those of other architectures."""
    for name, text in KINDS.items():
        (root / f"{name}.yml").write_text(text)
    for case in CASES[len(KINDS) :]:
        kind, _, name = case.rpartition("/")
        text = BY_NAME[name]
        if kind == "gpt2":  # our filters have to match
            text = text.replace("filter: emb", "filter: wte").replace("filter: norm", "filter: ln_")
        (root / f"{case}.yml").write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_gives_mergekits_values(
    directory: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _, name = case.rpartition("/")
    monkeypatch.chdir(directory / kind)
    run_fusion(load_recipe(f"{name}.yml"), output=Path("ours") / name)
    ours, theirs = (
        load_file(Path(side) / name / "model.safetensors") for side in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    inputs = [load_file(Path(model) / "model.safetensors") for model in ("base", "a", "b")]
    largest = max(float(tensor.abs().max()) for state in inputs for tensor in state.values())
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        units = count_units(ours[key], tensor, largest)
        assert float(units.max()) <= 1, (key, float(units.max()))
    for option in ("num_hidden_layers", "vocab_size", "dtype", "architectures"):
        one, other = (
            json.loads((Path(side) / name / "config.json").read_text()).get(option)
            for side in ("ours", "theirs")
        )
        assert one == other, option


def count_units(ours: torch.Tensor, theirs: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the differences in units in the last place, beyond fp32's for the largest input."""
    rounding = torch.finfo(torch.float32).eps * largest
    unit = torch.finfo(theirs.dtype).eps * theirs.double().abs()
    excess = ((ours.double() - theirs.double()).abs() - rounding).clamp_min(0)
    return excess / unit.clamp_min(torch.finfo(torch.float64).tiny)
