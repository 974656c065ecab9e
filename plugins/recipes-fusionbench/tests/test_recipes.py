"""Configurations and their recipes: forms, methods, pools, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import merge
from fusion_core.commands import ImportedRecipe, load_yaml
from fusion_core.errors import RecipeError
from recipes_fusionbench.importing import import_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import CompletedProcess

LOOSE = {"config": "warn", "tokenizer": "warn"}
CLIP = """
modelpool:
  _target_: fusion_bench.modelpool.CLIPVisionModelPool
  _recursive_: false
  models:
    _pretrained_: org/base
    one: org/one
    two:
      _target_: transformers.CLIPVisionModel.from_pretrained
      pretrained_model_name_or_path: org/two
  platform: hf
"""
MODELS = {"one": "org/one", "two": "org/two"}
POOL = {"name": "clip", "base": "org/base", "models": MODELS}
LM = """
modelpool:
  _target_: fusion_bench.modelpool.CausalLMPool
  models: {_pretrained_: org/base, math: org/math, code: org/code}
  model_kwargs: {torch_dtype: bfloat16, low_cpu_mem_usage: true}
  tokenizer:
    _target_: transformers.AutoTokenizer.from_pretrained
    pretrained_model_name_or_path: org/math
"""


def imported_from(text: str, folder: Path = Path("nowhere")) -> ImportedRecipe:
    imported = import_text(text, "config.yaml", folder)
    assert imported is not None
    return imported


def recipe_of(text: str) -> dict[str, Any]:
    return dict(imported_from(text).recipe)


def problems_of(text: str, folder: Path = Path("nowhere")) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        import_text(text, "config.yaml", folder)
    lines = [line.strip() for line in caught.value.message.splitlines()[1:]]
    return [line for line in lines if not line.startswith("warning: ")]


def method(target: str, options: str = "") -> str:
    return f"method: {{_target_: fusion_bench.method.{target}{options and ', ' + options}}}"


TIES = "scaling_factor: 0.3, threshold: 20, remove_keys: []"
STORED = {"matrices": "stored"}
TIES_OPTIONS = {"density": 0.2, "scope": "model", "zero_sign": "majority", "scale": 0.3}
METHODS: list[tuple[str, str, Any]] = [
    ("SimpleAverageAlgorithm", "show_pbar: true", {"name": "simple-average"}),
    (
        "WeightedAverageAlgorithm",
        "normalize: yes, weights: [1, 0.5]",
        {"name": "weighted-average", "weights": {"one": 1, "two": 0.5}, "normalize": True},
    ),
    ("TaskArithmeticAlgorithm", "scaling_factor: 0.3", {"name": "task-arithmetic", "scale": 0.3}),
    ("ExPOAlgorithm", "extrapolation_factor: 0.5", {"name": "task-arithmetic", "scale": 0.75}),
    (
        "TiesMergingAlgorithm",
        f"{TIES}, merge_func: dis-mean",
        {"name": "ties", **TIES_OPTIONS, "normalize": True},
    ),
    (
        "DareTaskArithmetic",
        "scaling_factor: 0.4, sparsity_ratio: 0.75, rescale: false, only_on_linear_weights: false",
        {
            "name": "dare",
            "density": 0.25,
            "rescale": "none",
            "elect": "none",
            "normalize": False,
            "scale": 0.4,
        },
    ),
    (
        "dare.DareTiesMerging",
        f"sparsity_ratio: 0.5, rescale: true, {TIES}, merge_func: sum",
        [
            {"name": "drop", "density": 0.5, "rescale": "paper"},
            {"name": "ties", **TIES_OPTIONS, "normalize": False},
        ],
    ),
    (
        "TiesMergingAlgorithm",
        f"{TIES}, merge_func: max",
        [
            {"name": "trim", "density": 0.2, "scope": "model"},
            {"name": "elect", "scope": "model", "zero_sign": "majority"},
            {"name": "magmax", "scale": 0.3},
        ],
    ),
    ("MagMaxAlgorithm", "", {"name": "magmax", "scale": 0.5}),
    ("TaskSingularVectorMerging", "alpha: null", {"name": "tsv-m", "scale": 1.0, **STORED}),
    ("ISO_C_Merge", "scaling_factor: 1.5", {"name": "iso-c", "scale": 1.5, **STORED}),
    (
        "WUDIMerging",
        "iter_num: 300, exclude_keys: [encoder.w.weight]",
        {
            "name": "wudi",
            "steps": 300,
            "lr": 1e-5,
            **STORED,
            "overrides": [
                {
                    "match": ["vision_model.encoder.w.weight"],
                    "unmatched": "warn",
                    "matrices": "none",
                }
            ],
        },
    ),
    (
        "opcm.opcm.OPCMForCLIP",
        "shuffle_order: false, alpha: 0.4, save_on_every_step: true",
        {
            "name": "opcm",
            "project": {
                "alpha": 0.4,
                **STORED,
                "overrides": [{"match": "*embed*", "unmatched": "warn", "matrices": "none"}],
            },
        },
    ),
    ("emr_merging.EMRMerging", "", {"name": "emr", "rescale": "authors"}),
    (
        "singular_value_calibration.task_arithmetic.SingularValueCalibrationArithmeticTask",
        "scaling_factor: 0.3, alpha: 0.1, accelerator: null",
        [{"name": "task-arithmetic", "scale": 0.3}, {"name": "svc", "alpha": 0.1, **STORED}],
    ),
    ("DummyAlgorithm", "", {"name": "passthrough", "model": "base"}),
]


@pytest.mark.parametrize(("target", "options", "algorithm"), METHODS)
def test_methods(target: str, options: str, algorithm: Any) -> None:
    recipe = recipe_of(f"{CLIP}{method(target, options)}")
    assert recipe == {"algorithm": algorithm, "model_pool": POOL, "alignment": LOOSE}
    states = {
        name: {"encoder.w.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(n))}
        for n, name in enumerate(("base", *MODELS))
    }
    merged = merge(recipe["algorithm"], {"base": states.pop("base"), "models": states})
    assert merged.tensor("encoder.w.weight").isfinite().all()


def test_models_may_be_interpolated_and_the_program_says_where_they_go() -> None:
    text = """
_target_: fusion_bench.programs.FabricModelFusionProgram
root: models
seed: 7
merged_model_save_path: out/merged
merged_model_save_kwargs: {save_tokenizer: true, model_dtype: float16}
report_save_path: "{log_dir}/report.json"
method: {_target_: fusion_bench.method.SimpleAverageAlgorithm}
modelpool:
  _target_: fusion_bench.modelpool.Seq2SeqLMPool
  base_model: ${root}/t5
  models:
    _pretrained_:
      _target_: transformers.AutoModelForSeq2SeqLM.from_pretrained
      pretrained_model_name_or_path: ${...base_model}
    glue:
      _target_: fusion_bench.modelpool.seq2seq_lm.modelpool.load_lora_model
      base_model_path: ${...base_model}
      peft_model_path: lora
path: {log_dir: "${hydra:runtime.output_dir}"}
"""
    assert recipe_of(text) == {
        "algorithm": {"name": "simple-average"},
        "model_pool": {"name": "seq2seq-lm", "base": "models/t5", "models": {"glue": "lora"}},
        "seed": 7,
        "output": {"path": "out/merged", "dtype": "float16"},
        "alignment": LOOSE,
    }


def test_a_language_models_dtype_tokenizer_and_backbone() -> None:
    options = (
        "scaling_factor: 1, merge_backbone: true, model_save_path: '${path.log_dir}/checkpoint'"
    )
    imported = imported_from(f"{LM}{method('TaskArithmeticForCausalLM', options)}")
    assert imported.recipe == {
        "algorithm": {"name": "task-arithmetic", "scale": 1.0, "only": "model.layers.*"},
        "model_pool": {
            "name": "causal-lm",
            "tokenizer": "math",
            "base": "org/base",
            "models": {"math": "org/math", "code": "org/code"},
        },
        "output": {"dtype": "bfloat16"},
        "alignment": LOOSE,
    }
    assert any("torch_dtype" in warning for warning in imported.warnings)


def test_a_list_of_defaults_and_known_names() -> None:
    text = """
defaults:
  - fabric_model_fusion
  - override method: adamerging/clip
  - override modelpool: CLIPVisionModelPool/clip-vit-base-patch32_TALL14
  - override taskpool: CLIPVisionModelTaskPool/clip-vit-classification_TALL20
  - _self_
method: {name: clip_task_wise_adamerging, max_steps: 500}
"""
    recipe = recipe_of(text)
    assert recipe["model_pool"] == {"name": "clip-vit-b32", "tasks": ["tall14"]}
    assert recipe["task_pool"] == {"name": "clip-vit-b32", "tasks": ["tall20"]}
    chosen = {"granularity": "model", "init": 0.3, "lr": 0.001, "steps": 500, "clamp": False}
    assert chosen.items() <= recipe["algorithm"].items()
    fewer = problems_of(text.replace("_TALL20", "_TA8"))
    assert fewer == [
        (
            "taskpool: lacks cifar100, fer2013, oxford-iiit-pet, oxford_flowers102, pcam, stl10, "
            "whose examples the method needs"
        )
    ]


ADAPTERS = """
modelpool:
  _target_: fusion_bench.modelpool.CLIPVisionModelPool
  models:
    _pretrained_:
      _target_: fusion_bench.models.linearized.vision_model.load_fft_vision_model_hf
      model_name: openai/clip-vit-base-patch16
    dtd:
      _target_: fusion_bench.models.linearized.vision_model.load_lora_vision_model_hf
      base_model_name: openai/clip-vit-base-patch16
      peft_name: org/dtd-lora
      merge_and_unload: true
"""


MEASURED = """
taskpool:
  _target_: fusion_bench.taskpool.CLIPVisionModelTaskPool
  test_datasets: {dtd: tanganke/dtd}
  clip_model: openai/clip-vit-base-patch16
"""


def test_adapters_of_clip_and_linear_layers_alone() -> None:
    options = "scaling_factor: 1, sparsity_ratio: 0.9, only_on_linear_weights: true"
    recipe = recipe_of(f"{ADAPTERS}{method('DareTaskArithmetic', options)}")
    chosen = {"match": ["*_proj.weight", "*.mlp.fc?.weight"], "density": pytest.approx(0.1)}
    assert recipe["algorithm"]["density"] == 1
    assert recipe["algorithm"]["overrides"] == [chosen]
    assert recipe["model_pool"] == {
        "name": "checkpoints",
        "base": "openai/clip-vit-base-patch16",
        "models": {"dtd": "org/dtd-lora"},
    }
    (measured,) = problems_of(f"{ADAPTERS}{method('SimpleAverageAlgorithm')}{MEASURED}")
    assert measured.startswith("taskpool: images pass through models of the pool clip")
    adapting = problems_of(f"defaults:\n  - method: adamerging/clip\n{ADAPTERS}")
    assert adapting[0].endswith("which takes no adapters; add them to their base first")
    whole = ADAPTERS.replace("merge_and_unload: true", "merge_and_unload: false")
    (problem,) = problems_of(f"{whole}{method('SimpleAverageAlgorithm')}")
    assert problem.startswith("modelpool.models.dtd.merge_and_unload: false merges the factors")


def test_backbones_of_gpt2_merge_without_heads() -> None:
    pool = CLIP.replace("CLIPVisionModelPool", "GPT2ForSequenceClassificationPool")
    pool = pool.replace("transformers.CLIPVisionModel", "transformers.GPT2Model")
    pool = pool.replace("  platform: hf\n", "")
    imported = imported_from(f"{pool}{method('SimpleAverageAlgorithm')}")
    assert imported.recipe["model_pool"] == {**POOL, "name": "checkpoints"}
    assert imported.recipe["alignment"] == {**LOOSE, "extra": "drop"}
    assert [*imported.warnings] == [
        "modelpool.models: heads that only experts have are left out, as GPT2Model does"
    ]


CORRUPTED = """
defaults:
  - modelpool: CLIPVisionModelPool/clip-vit-base-patch32_TA8
  - _self_
corruption: pixelate
method: {_target_: fusion_bench.method.SimpleAverageAlgorithm}
taskpool:
  type: clip_vit_classification
  tasks:
    - {name: stanford_cars, dataset: {name: tanganke/stanford_cars, split: "${corruption}"}}
    - {name: eurosat, dataset: {name: tanganke/eurosat, split: "${corruption}"}}
  clip_model: openai/clip-vit-base-patch32
"""


def test_corrupted_images_are_measured() -> None:
    assert recipe_of(CORRUPTED)["task_pool"] == {
        "name": "clip-vit-b32",
        "tasks": ["stanford-cars", "eurosat"],
        "corruption": "pixelate",
    }
    mixed = CORRUPTED.replace('eurosat, split: "${corruption}"', "eurosat, split: spatter")
    assert problems_of(mixed) == [
        "taskpool.tasks: expected one corruption for all data sets, got pixelate, spatter"
    ]
    extra = CORRUPTED.replace("{name: eurosat, dataset", "{name: eurosat, limit: 5, dataset")
    assert problems_of(extra) == [
        "taskpool.tasks.eurosat.limit: unknown key; expected name, dataset"
    ]
    misspelt = CORRUPTED.replace("  clip_model", "  clip_modle: x\n  clip_model")
    assert problems_of(misspelt) == ["taskpool.clip_modle: unknown key; did you mean clip_model?"]
    adapting = CORRUPTED.replace("defaults:\n", "defaults:\n  - method: adamerging/clip\n")
    adapting = adapting.replace(
        "method: {_target_: fusion_bench.method.SimpleAverageAlgorithm}", ""
    )
    reason = "taskpool: measures images of corruption pixelate, and the method adapts to none"
    assert reason in problems_of(adapting)


@pytest.mark.parametrize(
    ("pool", "key", "pattern"),
    [
        (
            "CLIPVisionModelPool/clip-vit-base-patch32_TA8",
            "encoder.w[0]",
            "vision_model.encoder.w[[]0]",
        ),
        ("CLIPVisionModelPool/clip-vit-base-patch32_TA8", "vision_model.w", "vision_model.w"),
        ("gpt-2_glue", "h.0.w", "*h.0.w"),
        ("Seq2SeqLMPool/flan-t5-base_glue", "shared.weight", "shared.weight"),
    ],
)
def test_an_excluded_key_is_the_whole_name_of_a_tensor(pool: str, key: str, pattern: str) -> None:
    text = f"defaults:\n  - modelpool: {pool}\n" + method(
        "WUDIMerging", f"iter_num: 4, exclude_keys: ['{key}']"
    )
    (override,) = recipe_of(text)["algorithm"]["overrides"]
    assert override["match"] == [pattern]


def test_names_that_the_live_model_lacks_exclude_nothing() -> None:
    text = "defaults:\n  - modelpool: gpt-2_glue\n" + method(
        "WUDIMerging", "iter_num: 4, exclude_keys: [transformer.wte.weight]"
    )
    assert "overrides" not in recipe_of(text)["algorithm"]
    (warning,) = (line for line in imported_from(text).warnings if "exclude_keys" in line)
    assert "GPT2Model names them without transformer." in warning


def test_what_would_load_other_weights_is_refused() -> None:
    text = CLIP.replace(
        "pretrained_model_name_or_path: org/two",
        "pretrained_model_name_or_path: org/two\n      subfolder: best\n      variant: fp16",
    )
    reason = "may load other weights, and has no counterpart"
    assert problems_of(f"{text}{method('SimpleAverageAlgorithm')}") == [
        f"modelpool.models.two.{name}: {reason}" for name in ("subfolder", "variant")
    ]


def test_models_of_several_dtypes_are_refused() -> None:
    stated = "org/two\n      torch_dtype: bfloat16"
    text = CLIP.replace("org/two", stated) + method("SimpleAverageAlgorithm")
    assert problems_of(text) == [
        "modelpool.models: expected one dtype for all models, got bfloat16, none stated"
    ]
    alike = CLIP.replace("org/two", stated.replace("bfloat16", "float32"))
    assert recipe_of(alike + method("SimpleAverageAlgorithm"))["output"] == {"dtype": "float32"}


def test_tied_tensors_that_count_twice_are_named() -> None:
    def warn(text: str) -> bool:
        return any("embeddings are tied" in warning for warning in imported_from(text).warnings)

    ties = method("TiesMergingAlgorithm", "threshold: 20, scaling_factor: 0.3")
    assert warn(f"{LM}{ties}")
    assert warn(f"{LM}{method('EMRMerging')}")
    assert not warn(f"{LM}{method('MagMaxAlgorithm')}")
    assert not warn(f"{CLIP}{ties}")


def test_adamerging_with_surgery_and_of_language_models() -> None:
    names = "  - method: {}\n  - modelpool: {}\n"
    clip = names.format(
        "surgery/adamerging_surgery", "CLIPVisionModelPool/clip-vit-base-patch32_TA8"
    )
    adamerging, surgery = recipe_of(f"defaults:\n{clip}")["algorithm"]
    assert adamerging["name"] == "adamerging"
    assert surgery == {"name": "surgery", "batch_size": 16, "examples": 16_000, "steps": 1000}
    t5 = names.format("adamerging/layer_wise_flan_t5", "Seq2SeqLMPool/flan-t5-base_glue_lora16")
    imported = imported_from(f"defaults:\n{t5}")
    assert imported.recipe["task_pool"]["variant"] == "base-lora"
    assert any("other values: FusionBench lowers" in text for text in imported.warnings)


@pytest.mark.parametrize(
    ("pools", "sections"),
    [
        (("gpt-2_glue", "gpt-2_glue"), ("gpt2-glue", "gpt2-glue")),
        (
            ("Seq2SeqLMPool/flan-t5-large_glue_lora16", "flan-t5_glue_text_generation"),
            ("flan-t5-glue", "flan-t5-glue"),
        ),
        (("Seq2SeqLMPool/flan-t5-base_glue", "dummy"), ("seq2seq-lm", None)),
        (("CLIPVisionModelPool/clip-vit-large-patch14_TA8_model_only", "dummy"), ("clip", None)),
    ],
)
def test_published_pools(pools: tuple[str, str], sections: tuple[str, str | None]) -> None:
    names = f"  - modelpool: {pools[0]}\n  - taskpool: {pools[1]}\n"
    recipe = recipe_of(f"defaults:\n{names}  - method: task_arithmetic\n")
    assert recipe["model_pool"]["name"] == sections[0]
    assert recipe.get("task_pool", {}).get("name") == sections[1]
    assert recipe["model_pool"].get("variant", "large-lora") == "large-lora"


def test_files_beside_come_before_known_names(tmp_path: Path) -> None:
    files = {
        "method/ties_merging.yaml": "_target_: fusion_bench.method.MagMaxAlgorithm\n",
        "modelpool/mine/two.yaml": "defaults:\n  - mine@: _template\n  - /models@models: [a, b]\n"
        "models: {_pretrained_: org/base}\n",
        "modelpool/mine/_template.yaml": "_target_: fusion_bench.modelpool.AutoModelPool\n"
        "models: ???\n",
        "models/a.yaml": "a: org/a\n",
        "models/b.yaml": "defaults: [c]\nb: org/b\n",
        "models/c.yaml": "c: org/c\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    text = "defaults:\n  - method: ties_merging\n  - modelpool: mine/two\n  - optional x: y\n"
    assert imported_from(text, tmp_path).recipe == {
        "algorithm": {"name": "magmax", "scale": 0.5},
        "model_pool": {
            "name": "checkpoints",
            "base": "org/base",
            "models": {"a": "org/a", "c": "org/c", "b": "org/b"},
        },
        "alignment": LOOSE,
    }
    (tmp_path / "models/c.yaml").write_text("defaults: [b]\n")
    with pytest.raises(RecipeError, match=r"defaults need each other: .*b -> models/c -> models/b"):
        import_text(text, "config.yaml", tmp_path)


REFUSED: list[tuple[str, list[str]]] = [
    (
        method("WUDIMerging", "iter_num: 4, exclude_keys: w"),
        ["method.exclude_keys: expected a list of texts, got 'w'"],
    ),
    (
        method("ModelStock", "ignore_keys: [w]"),
        [
            (
                "method.ignore_keys: FusionBench averages these tensors, and model-stock has one "
                "ratio for all"
            )
        ],
    ),
    (
        method("TaskArithmeticAlgorithm", "scaling_facto: 0.3"),
        [
            "method.scaling_factor: missing",
            "method.scaling_facto: unknown key; did you mean scaling_factor?",
        ],
    ),
    (
        method("TaskArithmeticAlgorithm", "scaling_factor: '0.3'"),
        ["method.scaling_factor: expected a number, got '0.3'"],
    ),
    (
        method("WUDIMerging", "iter_num: '4'"),
        ["method.iter_num: expected a number, got '4'"],
    ),
    (
        method("TiesMergingAlgorithm", "scaling_factor: 1, threshold: 100, merge_func: min"),
        [
            (
                "method.threshold: expected a percentage from above 1 to below 100, or a fraction, "
                "got 100"
            ),
            "method.merge_func: expected sum, mean or max, got min",
        ],
    ),
    (
        method("WeightedAverageAlgorithm", "normalize: true, weights: [1, 2, 3]"),
        ["method.weights: expected one per model (one, two), got 3"],
    ),
    (
        method("TallMaskTaskArithmeticAlgorithm", "tall_mask_lambda: 0.6"),
        [
            (
                "method: TallMaskTaskArithmeticAlgorithm has no counterpart: its masks compare a "
                "task vector with the pretrained weights, not with zero as the paper does; "
                "consensus with task_masks is the paper's method"
            )
        ],
    ),
    (
        method("SlerpMergeAlgorithm", "t: 0.5, DOT_THRESHOLD: 0.9"),
        [
            "method.DOT_THRESHOLD: slerp has the threshold 0.9995",
            "method: takes exactly two models, got 3: _pretrained_, one, two",
        ],
    ),
    (
        "method: {_target_: my.SimpleAverageAlgorithm}",
        ["method: my.SimpleAverageAlgorithm has no counterpart"],
    ),
    (
        "method: {_target_: my.Method, name: clip_layer_wise_adamerging}",
        ["method: my.Method has no counterpart"],
    ),
    (
        "taskpool: {_target_: my.Pool, type: DummyTaskPool}\n" + method("DummyAlgorithm"),
        ["taskpool: my.Pool has no counterpart"],
    ),
    (
        "taskpool: {_target_: fusion_bench.taskpool.NYUv2TaskPool}\n"
        + method("TaskArithmeticAlgorithm", "scaling_factor: '${oc.env:SCALE}'"),
        [
            "method.scaling_factor: ${oc.env:SCALE}: the file does not determine it",
            "method.scaling_factor: missing",
            "taskpool: NYUv2TaskPool has no counterpart",
        ],
    ),
    (
        method("SimpleAverageAlgorithm") + "\nfast_dev_run: true\nmetod: 1",
        [
            "fast_dev_run: true runs on single batches; set task_pool.limit in a recipe",
            "metod: unknown key; did you mean method?",
        ],
    ),
]


@pytest.mark.parametrize(("text", "problems"), REFUSED)
def test_what_has_no_counterpart_is_one_list(text: str, problems: list[str]) -> None:
    assert problems_of(f"{CLIP}{text}") == problems


def test_a_missing_base_other_data_and_unknown_names_are_refused() -> None:
    pool = CLIP.replace("    _pretrained_: org/base\n", "")
    assert problems_of(f"{pool}{method('EMRMerging')}") == [
        "modelpool.models._pretrained_: missing, and the pool clip needs it",
        "modelpool.models._pretrained_: missing, and method needs it",
    ]
    data = "  train_datasets: {one: {path: org/other, split: train}}\n"
    options = "num_regmean_examples: 8, reduce_non_diagonal_ratio: 0.9"
    assert problems_of(f"{CLIP}{data}{method('RegMeanAlgorithmForCLIP', options)}") == [
        "modelpool.train_datasets.one: unknown task",
        "modelpool.train_datasets.one: missing, and the method takes examples from it",
        "modelpool.train_datasets.two: missing, and the method takes examples from it",
    ]
    twice = "defaults:\n  - fabric_model_fusion\n  - method: ties_merging\n"
    assert problems_of(twice) == ["defaults.method: chosen twice; write override method"]
    (unknown,) = problems_of("defaults:\n  - modelpool: of/mine\n  - method: ties_merging\n")
    assert unknown.startswith("defaults.modelpool/of/mine: unknown name; found neither in nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "algorithm: ties\nmodelpool: {}\n",
        "merge_method: ties\nmodels: [{model: a}]\n",
        "method: {name: x}\nmodels: [a]\n",
        "defaults: [{db: mysql}, _self_]\n",
        "_target_: torch.nn.Linear\n",
        "model_pool: {base: a}\n",
        "--- {modelpool: {}}\n--- {modelpool: {}}\n",
        "- modelpool\n",
        "",
    ],
)
def test_files_of_others_are_left_alone(text: str) -> None:
    assert import_text(text, "config.yaml", Path("nowhere")) is None


def test_a_file_of_two_tools_names_both(tmp_path: Path) -> None:
    from fusion_core.commands import load_recipe
    from fusion_core.errors import PluginError

    pytest.importorskip("recipes_mergekit")
    (tmp_path / "both.yaml").write_text(f"merge_method: ties\n{CLIP}")
    with pytest.raises(PluginError, match=r"several plugins import .*both.yaml: ") as caught:
        load_recipe(tmp_path / "both.yaml")
    assert "recipes-fusionbench" in caught.value.message
    assert "recipes-mergekit" in caught.value.message


def test_paths_in_a_written_recipe_start_in_its_folder(
    tmp_path: Path, run_fuse: Callable[..., CompletedProcess[str]]
) -> None:
    tasks = "{_target_: fusion_bench.taskpool.LMEvalHarnessTaskPool, tasks: a, include_path: tasks}"
    text = f"{LM}merged_model_save_path: out/merged\ntaskpool: {tasks}\n"
    (tmp_path / "config.yaml").write_text(text + method("SimpleAverageAlgorithm"))
    for name in ("tasks", "org/base", "recipes", "simple-average"):
        (tmp_path / name).mkdir(parents=True)
    run_fuse("import", "config.yaml", "-o", "recipes/recipe.yaml")
    recipe = load_yaml((tmp_path / "recipes/recipe.yaml").read_text(), origin="recipe")
    assert recipe["algorithm"] == {"name": "simple-average"}
    assert recipe["model_pool"]["base"] == "../org/base"
    assert recipe["model_pool"]["models"] == {"math": "org/math", "code": "org/code"}
    assert recipe["task_pool"]["include_path"] == "../tasks"
    assert recipe["output"]["path"] == "../out/merged"


def test_the_printed_recipe_is_the_recipe(
    tmp_path: Path, run_fuse: Callable[..., CompletedProcess[str]]
) -> None:
    text = f"{CLIP}{method('TiesMergingAlgorithm', TIES)}"
    (tmp_path / "config.yaml").write_text(text)
    printed = run_fuse("import", "config.yaml", "--config-dir", ".").stdout
    assert load_yaml(printed, origin="recipe") == imported_from(text).recipe
    assert "# warning: method.threshold: FusionBench keeps one more entry" in printed
    assert "name: ties # TiesMergingAlgorithm" in " ".join(printed.split())
