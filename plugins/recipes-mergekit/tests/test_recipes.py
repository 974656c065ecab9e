"""Configurations and their recipes, refusals, and hostile files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from safetensors.torch import save_file

from fusion_core.errors import RecipeError
from recipes_mergekit.importing import import_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

BASE = "base_model: org/base\n"
TWO = """
models:
  - {model: org/math, parameters: {weight: 0.7}}
  - {model: org/code@v2, parameters: {weight: 0.4}}
"""
POOL = {"base": "org/base", "models": {"math": "org/math", "code": "org/code@v2"}}
WEIGHTS = {"weights": {"math": 0.7, "code": 0.4}}
LOOSE = {"config": "warn", "tokenizer": "warn", "matrices": "stored"}
WARN = {"unmatched": "warn"}
STRICT = {**LOOSE, "dtype": "error"}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def recipe_of(text: str) -> dict[str, Any]:
    imported = import_text(text, "mergekit.yml")
    assert imported is not None
    return dict(imported.recipe)


def problems_of(text: str) -> list[str]:
    """Return the lines of the refusal."""
    with pytest.raises(RecipeError) as caught:
        import_text(text, "mergekit.yml")
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"name": "weighted-average", **WEIGHTS}),
    ("task_arithmetic", {"name": "task-arithmetic", "scale": 1.0, **WEIGHTS}),
    (
        "ties\nparameters: {density: '5e-1', lambda: 0.8, normalize: no}",
        {
            "name": "ties",
            "scope": "tensor",
            "zero_sign": "positive",
            "density": 0.5,
            "normalize": False,
            "scale": 0.8,
            **WEIGHTS,
        },
    ),
    (
        "dare_ties\nparameters: {density: 0.5, rescale: false}",
        {
            "name": "dare",
            "density": 0.5,
            "rescale": "none",
            "elect": "ties",
            "normalize": False,
            "scale": 1.0,
            **WEIGHTS,
        },
    ),
    (
        "della\nparameters: {density: 0.5, epsilon: 0.1}",
        {
            "name": "della",
            "density": 0.5,
            "epsilon": 0.1,
            "rescale": "l1",
            "elect": "ties",
            "normalize": True,
            "scale": 1.0,
            **WEIGHTS,
        },
    ),
    (
        "breadcrumbs_ties\nparameters: {density: 1.5, gamma: 0.02}",
        {
            "name": "breadcrumbs",
            "density": 1.0,
            "gamma": 0.02,
            "elect": "ties",
            "normalize": False,
            "scale": 1.0,
            **WEIGHTS,
        },
    ),
    (
        "nuslerp\nparameters: {nuslerp_flatten: false}",
        {"name": "nuslerp", "mode": "row", **WEIGHTS},
    ),
    ("multislerp", {"name": "multi-slerp", **WEIGHTS}),
    ("karcher", {"name": "karcher", "iterations": 10, "tolerance": 1e-5}),
    ("sce\nparameters: {select_topk: 0.1}", {"name": "sce", "density": 0.1}),
    ("model_stock", {"name": "model-stock"}),
    (
        "model_stock\nparameters: {filter_wise: true}",
        {"name": "model-stock", "scope": "row"},
    ),
    (
        "multislerp\nparameters: {normalize_weights: false}",
        {"name": "multi-slerp", "normalize": False, **WEIGHTS},
    ),
    ("ram\nparameters: {epsilon: 1e-4}", {"name": "ram", "epsilon": 1e-4}),
    (
        "ramplus_tl",
        {"name": "ram", "epsilon": 1e-5, "r": 0.1, "alpha": 0.2, "scope": "tensor"},
    ),
]


@pytest.mark.parametrize(("method", "algorithm"), METHODS, ids=[name for name, _ in METHODS])
def test_methods(method: str, algorithm: dict[str, Any]) -> None:
    has_base = method.partition("\n")[0] not in {"linear", "karcher"}
    recipe = recipe_of(f"{TWO}{BASE if has_base else ''}dtype: bfloat16\nmerge_method: {method}")
    pool = POOL if has_base else {"models": POOL["models"]}
    assert recipe == {
        "algorithm": algorithm,
        "model_pool": pool,
        "output": {"dtype": "bfloat16"},
        "alignment": LOOSE,
    }


def test_a_base_is_one_more_input_of_an_average_and_needs_a_weight() -> None:
    recipe = recipe_of(f"{TWO}{BASE}merge_method: linear\nparameters: {{weight: 0.2}}")
    assert recipe["model_pool"]["base"] == "org/base"
    assert recipe["algorithm"]["weights"] == {"math": 0.7, "code": 0.4, "base-2": 0.2}
    assert recipe["model_pool"]["models"]["base-2"] == "org/base"
    assert "output" not in recipe
    assert recipe["alignment"] == STRICT
    assert problems_of(f"{TWO}{BASE}merge_method: linear") == [
        "models, org/base: weight is missing"
    ]


def test_filters_and_gradients_become_curves() -> None:
    text = """
merge_method: slerp
base_model: org/base
models: [{model: org/base}, {model: org/math, parameters: {t: 0.9}}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 1]}
    - {filter: "a[0]*", value: 0.1}
    - {value: 0.5}
"""
    assert recipe_of(text)["algorithm"] == {
        "name": "slerp",
        "by_depth": [
            {"match": "*self_attn*", **WARN, "outside": "all", "t": [0.0, 0.5, 1.0]},
            {"match": "*a[[]0][*]*", **WARN, "outside": "all", "t": [0.1]},
            {"outside": "all", "t": [0.5]},
        ],
    }
    imported = import_text(text, "mergekit.yml")
    assert imported is not None
    assert tuple(imported.warnings) == (
        "parameters of org/math.t: ignored; mergekit reads it for the whole merge or a slice",
    )


def test_a_models_own_rules_come_before_those_of_the_merge() -> None:
    text = f"""
merge_method: task_arithmetic
{BASE}
models:
  - model: org/math
    parameters:
      weight: [{{filter: mlp, value: [0, 1]}}, {{filter: norm, value: 0.3}}]
  - {{model: org/code, parameters: {{weight: [{{filter: mlp, value: 0.2}}]}}}}
parameters: {{weight: [{{filter: mlp, value: 9}}, {{filter: "*", value: 0.6}}, {{value: 8}}]}}
"""
    assert recipe_of(text)["algorithm"]["by_depth"] == [
        {
            "match": "*mlp*",
            **WARN,
            "outside": "all",
            "weights": {"math": [0.0, 1.0], "code": [0.2]},
        },
        {"match": "*norm*", **WARN, "outside": "all", "weights": {"math": [0.3]}},
        {"outside": "all", "weights": {"math": [0.6], "code": [0.6]}},
    ]


def test_fractions_may_differ_between_models() -> None:
    text = f"""
merge_method: breadcrumbs
{BASE}
models:
  - {{model: org/math, parameters: {{density: 0.5}}}}
  - {{model: org/code, parameters: {{density: 0.3, gamma: [0, 0.1]}}}}
parameters: {{weight: 1}}
"""
    assert recipe_of(text)["algorithm"] == {
        "name": "breadcrumbs",
        "density": {"math": 0.5, "code": 0.3},
        "elect": "none",
        "normalize": False,
        "scale": 1.0,
        "by_depth": [{"outside": "all", "gamma": {"math": [0.01], "code": [0.0, 0.1]}}],
    }


SLICES = """
merge_method: slerp
base_model: org/base
slices:
  - sources: [{model: org/base, layer_range: [0, 2]}, {model: org/math, layer_range: [0, 2]}]
    parameters: {t: [0, 1]}
  - sources: [{model: org/code, layer_range: [4, 6]}, {model: org/base, layer_range: [1, 3]}]
  - sources: [{model: org/base, layer_range: [0, 1]}, {model: org/math, layer_range: [3, 4]}]
parameters: {t: 0.25}
"""


def stack(models: dict[str, str], *slices: tuple[str, int, int]) -> dict[str, Any]:
    listed = [{"model": model, "layers": [start, stop]} for model, start, stop in slices]
    return {
        "algorithm": {"name": "stack", "slices": listed},
        "model_pool": {"models": models},
        "alignment": {**LOOSE, "outliers": "allow"},
    }


def test_slices_merge_stacks_of_layers() -> None:
    recipe = recipe_of(SLICES)
    assert recipe["algorithm"]["by_depth"] == [
        {"layers": [0, 2], "outside": "before", "t": [0.0, 1.0]},
        {"layers": [2, 4], "t": [0.25]},
        {"layers": [4, 5], "outside": "after", "t": [0.25]},
    ]
    names = {"base-2": "org/base"}
    assert recipe["model_pool"]["base"] == stack(
        names, ("base-2", 0, 2), ("base-2", 1, 3), ("base-2", 0, 1)
    )
    assert recipe["model_pool"]["models"] == {
        "stack-1": stack(
            {"math": "org/math", "code": "org/code"}, ("math", 0, 2), ("code", 4, 6), ("math", 3, 4)
        )
    }


def test_the_only_layer_of_a_slice_has_the_last_value_of_a_gradient() -> None:
    text = SLICES.replace("parameters: {t: 0.25}", "parameters: {t: [0.2, 0.4, 0.9]}")
    assert recipe_of(text)["algorithm"]["by_depth"] == [
        {"layers": [0, 2], "outside": "before", "t": [0.0, 1.0]},
        {"layers": [2, 4], "t": [0.2, 0.4, 0.9]},
        {"layers": [4, 5], "t": [0.9]},
        {"layers": [4, 5], "outside": "after", "t": [0.2]},
    ]


def test_slices_of_one_source_are_a_stack() -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{model: org/math, layer_range: [0, 24]}]
  - sources: [{model: org/code, layer_range: [8, 32]}]
dtype: float16
"""
    expected = stack({"math": "org/math", "code": "org/code"}, ("math", 0, 24), ("code", 8, 32))
    assert recipe_of(text) == {**expected, "output": {"dtype": "float16"}}


def test_layers_have_the_configuration_of_the_base_model() -> None:
    slices = """
slices:
  - sources:
      - {model: org/math, layer_range: [0, 4], parameters: {weight: 0.5}}
      - {model: org/code, layer_range: [2, 6], parameters: {weight: 0.5}}
merge_method: linear
base_model: org/chat
tokenizer_source: base
"""
    pool = recipe_of(slices)["model_pool"]
    assert pool["base"] == stack({"chat": "org/chat"}, ("chat", 0, 4))
    assert (pool["tokenizer"], [*pool["models"]]) == ("base", ["math", "code"])
    of_slices = SLICES.replace("base_model: org/base", "base_model: org/chat")
    of_slices = of_slices.replace("}]\n", "}]\n    base_model: org/base\n")
    assert recipe_of(of_slices)["model_pool"]["base"]["model_pool"]["base"] == "org/chat"


def test_no_model_has_the_name_of_a_choice_of_tokenizer() -> None:
    text = "models: [{model: org/math}, {model: org/union}]\nmerge_method: karcher\n"
    recipe = recipe_of(f"{text}tokenizer_source: org/union")
    assert recipe["model_pool"]["tokenizer"] == "union-2"


def test_all_layers_of_a_local_model_are_the_model(tmp_path: Path) -> None:
    for name, config in {
        "a": {"n_layer": 4},
        "b": {"text_config": {"num_hidden_layers": 5}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({"layers.0.w": torch.zeros(1)}, tmp_path / name / "model.safetensors")
    sources = "[{{model: {0}/a, layer_range: {1}}}, {{model: {0}/b, layer_range: {1}}}]"
    slices = "".join(
        f"  - sources: {sources.format(tmp_path, span)}\n" for span in ([0, 2], [2, 4])
    )
    method = f"merge_method: slerp\nbase_model: {tmp_path}/a\nparameters: {{t: 0.5}}"
    text = f"slices:\n{slices}{method}"
    pool = recipe_of(text)["model_pool"]
    assert pool["base"] == f"{tmp_path}/a"
    assert pool["models"]["b"]["algorithm"]["name"] == "stack"  # b has a fifth layer


def test_adapters_stay_adapters_of_the_base_and_are_added_to_other_models() -> None:
    text = f"""
merge_method: task_arithmetic
{BASE}
models:
  - model: org/base+me/poet
  - model: {{model: {{path: org/x, revision: r}}, lora: me/poet}}
parameters: {{weight: 1}}
"""
    assert problems_of(text) == [
        "dtype: missing, and the merge of org/x@r+me/poet has none that is stored"
    ]
    assert recipe_of(f"{text}dtype: float16")["model_pool"]["models"] == {
        "poet": "me/poet",
        "poet-2": {
            "algorithm": {"name": "task-arithmetic", "scale": 1.0},
            "model_pool": {"base": "org/x@r", "models": {"poet-2": "me/poet"}},
            "alignment": LOOSE,
        },
    }


def test_a_tokenizer_needs_a_pool_that_knows_tokens() -> None:
    source = "tokenizer: {source: org/math, pad_to_multiple_of: 64}"
    recipe = recipe_of(f"{TWO}{BASE}merge_method: ties\n{source}")
    assert recipe["model_pool"] == {
        "name": "causal-lm",
        "tokenizer": "math",
        "pad_to_multiple_of": 64,
        **POOL,
    }
    union = recipe_of(f"{TWO}{BASE}merge_method: ties\ntokenizer_source: union")
    assert union["model_pool"]["tokenizer"] == "union"


def test_rows_of_tokens_and_a_chat_template_are_options_of_the_pool() -> None:
    text = """
tokenizer:
  source: base
  tokens:
    <|user|>: {source: org/math}
    <|bot|>: {source: {kind: model_token, model: org/code@v2, token: </s>}, force: true}
    <pad>: {source: {kind: model_token, model: org/base, token_id: 3}}
    <none>: {source: {kind: zero}}
chat_template: chatml
"""
    recipe = recipe_of(f"{TWO}{BASE}merge_method: ties\n{text}")
    assert recipe["model_pool"] == {
        "name": "causal-lm",
        "tokenizer": "base",
        "tokens": {
            "<|user|>": {"model": "math"},
            "<|bot|>": {"model": "code", "token": "</s>", "force": True},
            "<pad>": {"model": "base", "id": 3},
            "<none>": {},
        },
        "chat_template": "chatml",
        **POOL,
    }


def test_a_stack_has_the_rows_of_its_first_and_last_models() -> None:
    text = """
merge_method: passthrough
base_model: org/math
slices:
  - sources: [{model: org/math, layer_range: [0, 24]}]
  - sources: [{model: org/code, layer_range: [8, 32]}]
"""
    recipe = recipe_of(f"{text}tokenizer_source: union\nchat_template: auto")
    assert recipe["model_pool"] == {
        "name": "causal-lm",
        "tokenizer": "union",
        "new_rows": "zero",
        "chat_template": "auto",
        "base": "org/math",
        "models": {"code": "org/code"},
    }
    scale = "parameters: {scale: [{filter: o_proj, value: 0}, {value: 0.5}]}"
    scaled = recipe_of(text.replace("[8, 32]}", f"[8, 32], {scale}}}") + "tokenizer_source: base")
    assert scaled["model_pool"]["tokenizer"] == "base"
    assert scaled["algorithm"]["slices"] == [
        {"model": "base", "layers": [0, 24]},
        {"model": "code", "layers": [8, 32], "scale": {"*o_proj*": 0.0, "*": 0.5}, **WARN},
    ]


def test_switches_by_filter_become_overrides() -> None:
    rules = "[{filter: mlp, value: false}, {filter: 'n[0]', value: yes}, {value: false}]"
    recipe = recipe_of(f"{TWO}{BASE}merge_method: ties\nparameters: {{rescale: {rules}}}")
    assert recipe["algorithm"]["rescale"] == "none"
    assert recipe["algorithm"]["overrides"] == [
        {"match": "*mlp*", **WARN, "rescale": "none"},
        {"match": "*n[[]0]*", **WARN, "rescale": "l1"},
    ]
    both = f"{{rescale: [{{filter: ab, value: 1.0}}], normalize: {rules.replace('n[0]', 'bc')}}}"
    recipe = recipe_of(f"{TWO}{BASE}merge_method: ties\nparameters: {both}")
    patterns = [
        (entry["match"], entry["rescale"], entry["normalize"])
        for entry in recipe["algorithm"]["overrides"]
    ]
    assert patterns == [
        (["*ab*mlp*", "*mlp*ab*"], "l1", False),
        (["*ab*bc*", "*abc*", "*bc*ab*"], "l1", True),
        ("*ab*", "l1", False),
        ("*mlp*", "none", False),
        ("*bc*", "none", True),
    ]


MODULES = """
merge_method: linear
base_model: org/base
modules:
  text_decoder:
    models: [{model: org/math}, {model: org/code, parameters: {weight: 0.2}}]
    parameters: {weight: 0.8}
  vision_tower: {models: [{model: org/base, parameters: {weight: 1}}]}
  multi_modal_projector: {models: [{model: org/math, parameters: {weight: 1}}]}
parameters: {weight: 0}
dtype: bfloat16
"""


def test_each_module_is_a_nested_merge() -> None:
    recipe = recipe_of(MODULES)
    algorithm, pool = recipe["algorithm"], recipe["model_pool"]
    assert algorithm["model"] == "text_decoder"
    assert [entry["model"] for entry in algorithm["overrides"]] == [
        *("multi_modal_projector", "vision_tower")
    ]
    text = pool["models"]["text_decoder"]
    assert text["algorithm"]["weights"] == {"math": 0.8, "code": 0.2, "base-2": 0.8}
    assert pool["base"] == "org/base"
    assert "output" not in text
    assert recipe["output"] == {"dtype": "bfloat16"}
    assert problems_of(MODULES.replace("vision_tower", "tower") + "chat_template: auto") == [
        (
            "modules: expected all modules of an architecture (multi_modal_projector, "
            "vision_tower, text_decoder; multi_modal_projector, vision_model, text_decoder; "
            "encoder, decoder, shared), got text_decoder, tower, multi_modal_projector"
        )
    ]
    assert problems_of(MODULES + "chat_template: auto") == [
        "chat_template: is not combined with modules; the result has the base's files"
    ]
    user = "---\nname: y\nmerge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]"
    assert problems_of(f"name: x{MODULES}chat_template: auto\n{user}") == [
        "document 1: chat_template: is not combined with modules; the result has the base's files"
    ]


def test_documents_that_name_each_other_are_nested() -> None:
    text = f"""---
name: first
merge_method: linear
{TWO}
dtype: float32
---
merge_method: passthrough
models: [{{model: first}}]
"""
    without = text.replace("dtype: float32", "")
    assert problems_of(without) == [
        "document 2: dtype: missing, and the merge of first has none that is stored"
    ]
    recipe = recipe_of(text)
    first = recipe["model_pool"]["models"]["first"]
    assert recipe["algorithm"] == {"name": "passthrough", "model": "first"}
    assert first["algorithm"]["name"] == "weighted-average"
    assert first["output"] == {"dtype": "float32"}
    unused = text.replace("{model: first}", "{model: org/x}")
    assert problems_of(unused) == [
        "documents: expected one merge that no other document uses, got first, without a name"
    ]
    cycle = text.replace("org/math", "first")
    assert problems_of(cycle) == ["documents: merges need each other: first -> first"]


REFUSALS = {
    "merge_method: dare-ties": [
        "merge_method: unknown method 'dare-ties'; did you mean dare_ties?"
    ],
    "merge_method: ties\ndtpye: float16": ["dtpye: unknown key; did you mean dtype?"],
    "merge_method: ties\nnormalise: false": [
        "normalise: unknown key; did you mean one under parameters?"
    ],
    "merge_method: ties\nparameters: {desnity: 0.2}": [
        "parameters.desnity: unknown parameter; did you mean density?"
    ],
    "merge_method: ties\nparameters: {density: 0, lambda: x}": [
        "parameters.density: expected values above 0; skip a model by weight: 0",
        "parameters.lambda: expected a number, got 'x'",
    ],
    "merge_method: multislerp\nparameters: {eps: 0.1}": [
        "parameters.eps: no counterpart; multi-slerp adds nothing to norms"
    ],
    "merge_method: ties\ndtype: float64": [
        "dtype: float64: merges are computed and stored in fp32 at most"
    ],
    "merge_method: ties\nchat_template: [x]\ntokenizer: {tokens: {a: {}, b: {source: org/x}, "
    "c: {source: {kind: model_token, model: org/math}}, d: {source: {kind: zero}, force: 1}}}": [
        "tokenizer.tokens.a.source: missing: a model, or a mapping of kind zero or model_token",
        (
            "tokenizer.tokens.c.source: expected kind: zero, or kind: model_token with a model and "
            "a token or token_id, got {'kind': 'model_token', 'model': 'org/math'}"
        ),
        "tokenizer.tokens.d.force: expected true or false, got 1",
        (
            "chat_template: expected one of auto, alpaca, chatml, exaone, llama3, mistral or a "
            "Jinja template, got ['x']"
        ),
        "tokenizer.tokens.b.source: org/x is none of the merged models",
    ],
    "merge_method: slerp\nparameters: {t: 0.5}": [
        "models: slerp takes exactly 1 model(s) besides the base, got 2",
        "warning: parameters of org/math.weight: ignored: slerp has no such parameter",
        "warning: parameters of org/code@v2.weight: ignored: slerp has no such parameter",
    ],
    "merge_method: ties\nparameters: {normalize: [true, false]}": [
        "parameters.normalize: expected true or false, got a list of both"
    ],
    "merge_method: ties\nparameters: {lambda: .nan}": [
        "parameters.lambda: expected a number, got nan"
    ],
    "merge_method: ties\nmodules: {x: {slices: [1]}}": [
        "models: expected one of models, slices and modules, got models and modules",
        "modules.x.slices: no counterpart; list the models under models",
        "modules.x.models: expected a list, got None",
    ],
}


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_lists_everything(text: str) -> None:
    assert problems_of(f"{BASE}{TWO}{text}") == REFUSALS[text]


def test_slices_refuse_rules_that_they_would_change() -> None:
    by_number = "parameters: {t: [{filter: layers.3, value: 1}, {value: 0}]}"
    assert problems_of(SLICES.replace("parameters: {t: 0.25}", by_number)) == [
        "parameters.t: the filter 'layers.3' has a layer number, which slices change"
    ]
    by_name = "parameters: {t: [{filter: ln_1, value: 1}, {filter: w2, value: 0.5}, {value: 0}]}"
    assert "w2" in str(recipe_of(SLICES.replace("parameters: {t: 0.25}", by_name)))
    without_base = SLICES.replace("org/code", "org/base").replace(
        "{model: org/base, layer_range: [1, 3]}", "{model: org/x, layer_range: [1, 4]}"
    )
    assert problems_of(without_base) == [
        "slices.1: the sources have different numbers of layers: [2, 3]"
    ]


def test_a_mean_with_negative_weights_is_a_warning() -> None:
    negative = TWO.replace("0.7", "-0.7")
    for method, count in {
        "ties": 1,
        "ties\nparameters: {normalize: false}": 0,
        "sce": 0,
    }.items():
        imported = import_text(f"{BASE}{negative}merge_method: {method}", "x.yml")
        assert imported is not None
        assert len([text for text in imported.warnings if "negates" in text]) == count


def test_a_file_of_mergekit_moe_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="a file of mergekit-moe"):
        import_text(f"{BASE}gate_mode: hidden\nexperts: [{{source_model: org/a}}]", "x.yml")


def test_other_files_are_not_claimed() -> None:
    assert import_text("algorithm: ties\nmodel_pool: {models: [a]}", "x.yml") is None
    assert import_text("- merge_method\n", "x.yml") is None


HOSTILE = {
    "aliases": "merge_method: x\na: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 10)}]\n" for p, c in zip("abcdef", "bcdefg")),  # noqa: B905
    "duplicate keys": "merge_method: ties\nmerge_method: linear\n",
    "depth": "merge_method: x\nmodels: " + "[" * 5000,
    "depth of blocks": "merge_method: x\nmodels:\n"
    + "".join(" " * n + "-\n" for n in range(1, 3000)),
    "digits": f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {'9' * 5000}}}}}]",
    "tag": "merge_method: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        import_text(HOSTILE[name], "mergekit.yml")


def test_many_nested_documents_are_refused() -> None:
    first = f"name: d0\nmerge_method: linear\n{TWO}\n"
    others = "".join(
        f"---\nname: d{n}\nmerge_method: task_arithmetic\nbase_model: d{n - 1}\n"
        f"models: [{{model: d{n - 1}+me/poet}}, {{model: d{max(n - 2, 0)}+me/poet}}]\n"
        "parameters: {weight: 1}\n"
        for n in range(1, 40)
    )
    assert any("nested merges" in problem for problem in problems_of(f"{first}{others}"))


leaves = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "parameters", "weight", "value", "filter", "sources", "t"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("models", "slices", "base_model", "parameters", "dtype", "tokenizer"),
                *("tokenizer_source", "modules", "name", "chat_template"),
            ]
        ),
        values,
    ),
    st.sampled_from(["linear", "ties", "slerp", "passthrough", "nuslerp"]),
)
def test_any_content_gives_a_recipe_or_a_refusal(content: dict[str, Any], method: str) -> None:
    from recipes_import import ImportFindings
    from recipes_mergekit.importing import _File

    findings = ImportFindings()
    recipe = _File([{**content, "merge_method": method}], findings).make_recipe()
    assert findings.problems or recipe["algorithm"]["name"]


def test_the_printed_recipe_is_the_recipe(
    tmp_path: Path, run_fuse: Callable[..., CompletedProcess[str]]
) -> None:
    (tmp_path / "mergekit.yml").write_text(SLICES + "int8_mask: true\n")
    text = run_fuse("import", "mergekit.yml").stdout
    assert YAML(typ="safe").load(text) == recipe_of(SLICES)
    assert "# warning: int8_mask: unknown key, ignored" in text
    assert "name: slerp # merge_method" in " ".join(text.split())
