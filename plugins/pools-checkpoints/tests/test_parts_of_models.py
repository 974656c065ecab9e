"""Parts of models: renamed tensors, and models that lack a part of another model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from vision_models import write_models

from fusion_core import AlignmentPolicy, RunOptions, check, plan, run_fusion
from fusion_core.errors import AlignmentError, FusionError, RecipeError
from pools_checkpoints import CheckpointsConfig, CheckpointsPool, find_routers

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    State = dict[str, Tensor]


@pytest.fixture(scope="module", params=["llava", "llava-live", "qwen2_vl", "qwen2_vl-live"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, _, layout = request.param.partition("-")
    folder = tmp_path_factory.mktemp(request.param)
    write_models(kind, folder, original_names=not layout)
    return folder


def live_name(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


def options(folder: Path, **pool: Any) -> dict[str, Any]:
    names = {"math": str(folder / "language-math"), "vision": str(folder / "vision-language")}
    pool = {"name": "checkpoints", "base": str(folder / "language"), "models": names, **pool}
    return {
        "algorithm": {"name": "task-arithmetic", "scale": 0.5},
        "model_pool": pool,
        "alignment": {"vocab": "pad"},
    }


@pytest.mark.plugins
def test_a_language_model_merges_with_the_language_part_of_a_vision_model(
    models: Path, tmp_path: Path
) -> None:
    recipe = {**options(models, rest="vision"), "output": {"path": str(tmp_path / "out")}}
    run_fusion(recipe, options=RunOptions(evaluate=False))
    load = transformers.AutoModelForImageTextToText.from_pretrained
    merged, problems = load(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values())
    assert (tmp_path / "out" / "config.json").read_text() == (
        models / "vision-language" / "config.json"
    ).read_text()
    vision, result = load(models / "vision-language").state_dict(), merged.state_dict()
    base, math = (
        load_file(models / name / "model.safetensors") for name in ("language", "language-math")
    )
    for name, value in base.items():
        whole, rows = vision.pop(live_name(name)), len(value)
        expected = value + 0.5 * ((math[name] - value) + (whole[:rows] - value))
        torch.testing.assert_close(result[live_name(name)][:rows], expected)
        torch.testing.assert_close(result[live_name(name)][rows:], whole[rows:])
    assert vision
    assert all(torch.equal(result[name], value) for name, value in vision.items())
    made = merged.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
    assert made.shape[1] > 2


@pytest.mark.plugins
def test_the_check_lists_every_tensor_and_what_is_not_merged(models: Path) -> None:
    checked = check(plan(options(models, rest="vision"), RunOptions(evaluate=False)))
    stored = load_file(models / "vision-language" / "model.safetensors")
    language = load_file(models / "language" / "model.safetensors")
    assert sum(group.count for group in checked.groups) == len(stored)
    assert sum(group.share for group in checked.groups) == pytest.approx(1)
    copied = [group for group in checked.groups if group.treatment == "copied from vision (rest)"]
    assert sum(group.count for group in copied) == len(stored) - len(language)
    assert checked.tensors == {
        "merged": len(language),
        "copied": len(stored) - len(language),
        "dropped": 0,
    }


def test_without_the_option_nothing_is_dropped_silently(models: Path) -> None:
    with pytest.raises(AlignmentError, match=r"extra: not in the base|model_type"):
        check(plan(options(models), RunOptions(evaluate=False)))


def state(*names: str, width: int = 4) -> State:
    draw = torch.Generator().manual_seed(len(names))
    return {name: torch.randn(3, width, generator=draw) for name in names}


def pool(base: State, models: dict[str, State], **others: Any) -> CheckpointsPool:
    return CheckpointsPool(CheckpointsConfig(base=base, models=models, **others))


TEXT = (*(f"model.layers.{n}.{kind}.weight" for n in range(2) for kind in "qk"), "lm_head.weight")
WHOLE = *(name.replace("model.", "model.text.") for name in TEXT), "model.vision.0.weight"


@pytest.mark.parametrize(
    ("whole", "problem"),
    [
        (WHOLE[1:], "lacks tensors of base"),
        (("model.vision.0.weight",), "lacks tensors of base"),
        (
            (*WHOLE, *(name.replace("model.", "model.talker.") for name in TEXT[:-1])),
            "several parts like base",
        ),
    ],
)
def test_a_part_that_is_missing_or_ambiguous_is_refused(
    whole: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(AlignmentError, match=problem) as caught:
        pool(state(*TEXT), {"vision": state(*whole)}, rest="vision")
    assert "model_pool.map" in str(caught.value.hint)


def test_a_part_in_other_shapes_is_refused() -> None:
    with pytest.raises(AlignmentError, match="other shapes"):
        pool(state(*TEXT), {"vision": state(*WHOLE, width=5)}, rest="vision")


def test_a_tensor_that_only_some_models_lack_is_no_rest() -> None:
    models = {"vision": state(*WHOLE), "short": state(*TEXT[1:])}
    broken = pool(state(*TEXT), models, rest="vision")
    assert broken.treatments.keys() == {WHOLE[-1]}
    with pytest.raises(AlignmentError, match="missing"):
        broken.aligned(AlignmentPolicy())


def test_a_map_resolves_an_ambiguous_part() -> None:
    whole = (*WHOLE, *(name.replace("model.", "model.talker.") for name in TEXT[:-1]))
    names = {"model.*": "model.talker.*"}
    mapped = pool(state(*TEXT), {"vision": state(*whole)}, rest="vision", map={"base": names})
    assert set(whole) - mapped.treatments.keys() == {
        "lm_head.weight",
        *(name.replace("model.", "model.talker.") for name in TEXT[:-1]),
    }


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ({"other.*": "x.*"}, "no tensor matches"),
        ({"model.*": "x"}, "at most one"),
        ({"model.*.*": "x.*.*"}, "at most one"),
        ({"model.layers.0.q.weight": "lm_head.weight"}, "both become"),
    ],
)
def test_invalid_maps_are_refused(patterns: dict[str, str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        pool(state(*TEXT), {"a": state(*TEXT)}, map={"a": patterns})


@pytest.mark.parametrize("given", [{"rest": "visoin"}, {"map": {"visoin": {"*": "x.*"}}}])
def test_unknown_models_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="unknown model 'visoin'"):
        pool(state(*TEXT), {"vision": state(*TEXT)}, **given)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.sampled_from("abc"))
def test_a_prefix_is_found_wherever_it_is_inserted(path: list[str], inserted: str) -> None:
    prefix = ".".join(path)
    names = [f"{prefix}.layers.{layer}.{kind}.weight" for layer in range(3) for kind in "qkv"]
    renamed = {name.replace(prefix, f"{prefix}.{inserted}{inserted}", 1): name for name in names}
    whole = state(*renamed, "tower.weight")
    base = {name: whole[new] + 1 for new, name in renamed.items()}
    completed = pool(base, {"vision": whole}, rest="vision")
    assert completed.base is not None
    for new, name in renamed.items():
        assert torch.equal(completed.base.tensor(new), base[name])
    assert torch.equal(completed.base.tensor("tower.weight"), whole["tower.weight"])


def test_routers_are_found_by_their_place() -> None:
    routers = [
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.mlp.router.weight",
        "model.layers.1.mlp.router.bias",
        "layers.2.ffn.router.layer.weight",
        "model.layers.3.mlp.gate.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
    ]
    others = [
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.3.mlp.experts.down_proj",
        "model.layers.3.mlp.shared_expert_gate.weight",
        "model.layers.4.mlp.gate.weight",
        "model.layers.4.mlp.gate_proj.weight",
    ]
    assert find_routers([*others, *routers]) == routers


@pytest.mark.parametrize("router", ["base", "average"])
def test_a_policy_for_routers_needs_routers(router: str) -> None:
    with pytest.raises(RecipeError, match="found no router"):
        _ = pool(state(*TEXT), {"a": state(*TEXT)}, router=router).treatments


def test_routers_of_the_base_need_a_base() -> None:
    models = {"a": state("l.experts.0.w", "l.gate.weight")}
    with pytest.raises(FusionError, match="needs a base"):
        _ = CheckpointsPool(CheckpointsConfig(models=models, router="base")).treatments


@pytest.mark.plugins
@pytest.mark.parametrize("given", [{"rest": "vision"}, {"map": {"inner": {"model.*": "x.*"}}}])
def test_a_nested_recipe_has_no_parts_yet(tmp_path: Path, given: dict[str, Any]) -> None:
    base, vision = (write(tmp_path / name, state(*TEXT)) for name in ("base", "vision"))
    inner = {
        "algorithm": "simple-average",
        "model_pool": {"name": "checkpoints", "base": base, "models": {"a": vision}},
    }
    models = {"inner": inner, "vision": vision}
    recipe = {
        "algorithm": "simple-average",
        "model_pool": {"name": "checkpoints", "base": base, "models": models, **given},
    }
    with pytest.raises(RecipeError, match="inner is a nested recipe"):
        plan(recipe, RunOptions())


def test_the_configuration_has_the_vocabulary_of_the_padded_whole_model(tmp_path: Path) -> None:
    names = "model.embed_tokens.weight", "model.q.weight"
    larger, smaller = (
        {names[0]: torch.randn(rows, 4), names[1]: torch.randn(3, 4)} for rows in (6, 5)
    )
    parts = CheckpointsConfig(
        base=write(tmp_path / "base", larger, 6),
        models={
            "vision": write(tmp_path / "vision", {**smaller, "tower.weight": torch.ones(1)}, 5)
        },
        rest="vision",
    )
    aligned = CheckpointsPool(parts).aligned(AlignmentPolicy(vocab="pad"))
    assert aligned.reference.infos[names[0]].shape == (6, 4)
    files = aligned.assets()
    config = files["config.json"]
    assert isinstance(config, bytes)
    assert json.loads(config) == {"vocab_size": 6}
    assert files["tokenizer.json"] == (tmp_path / "base" / "tokenizer.json").resolve()


def write(folder: Path, tensors: State, rows: int = 3) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    (folder / "tokenizer.json").write_text(json.dumps({"rows": rows}))
    return str(folder)
