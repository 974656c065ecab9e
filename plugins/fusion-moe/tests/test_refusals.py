"""Recipes and models that cannot become a mixture are refused by name, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dense_models import mix, word_pool
from safetensors.torch import load_file, save_file

from fusion_core.errors import (
    AlignmentError,
    CheckpointError,
    FusionError,
    RecipeError,
    WeightsError,
)
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPTS = {"a": ["one two"], "b": ["red green"]}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "prompts missing": (
        {"gate": "hidden"},
        r"algorithm\.prompts: missing prompts for 'a'",
    ),
    "prompts of one expert": (
        {"prompts": {"a": ["one"]}},
        r"algorithm\.prompts: missing prompts for 'b'",
    ),
    "prompts of an unknown expert": (
        {"prompts": {**PROMPTS, "c": ["cat"]}},
        r"algorithm\.prompts: unknown expert 'c'",
    ),
    "negative prompts of an unknown expert": (
        {"prompts": PROMPTS, "negative_prompts": {"base": ["cat"]}},
        r"algorithm\.negative_prompts: unknown expert 'base'",
    ),
    "equal prompts": (
        {"prompts": {"a": ["one", "two"], "b": ["two", "one"]}},
        r"'a' and 'b' have the same prompts",
    ),
    "an empty prompt": ({"prompts": {"a": [""], "b": ["one"]}}, r"algorithm\.prompts\.a\.0"),
    "no prompt": ({"prompts": {"a": [], "b": ["one"]}}, r"algorithm\.prompts\.a"),
    "prompts for random gates": (
        {"prompts": PROMPTS, "gate": "random"},
        r"random gates do not depend on prompts",
    ),
    "a factor of an unknown expert": (
        {"output_scale": {"z": 2}},
        r"algorithm\.output_scale: unknown expert 'z'",
    ),
    "more per token than experts": (
        {"experts_per_token": 3},
        r"algorithm\.experts_per_token: 3 is more than the 2 experts",
    ),
    "an unknown shared expert": (
        {"shared_expert": "z"},
        r"algorithm\.shared_expert: unknown expert 'z'",
    ),
    "one expert besides the shared one": (
        {"shared_expert": "a"},
        r"at least two experts besides the shared one, got b",
    ),
    "another target": (
        {"target": "qwen3_moe"},
        r"algorithm\.target: qwen3_moe cannot hold models of type 'llama'",
    ),
    "a target that needs a shared expert": (
        {"target": "glm4_moe"},
        r"algorithm\.shared_expert: missing, and glm4_moe has a shared expert",
    ),
    "DeepSeek by its own name": ({"target": "deepseek_v3"}, r"algorithm\.target"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_are_refused_by_name(case: str) -> None:
    options, message = OPTIONS[case]
    with pytest.raises(RecipeError, match=message):
        mix(word_pool(), **options)


def test_a_target_without_a_shared_expert_refuses_one() -> None:
    with pytest.raises(RecipeError, match="mixtral has no shared expert"):
        mix(word_pool(experts=(1, 2, 3)), shared_expert="a", target="mixtral")


def test_gates_from_prompts_need_a_tokenizer(save: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"hidden reads prompts, and the model pool has no"):
        mix(save("llama"), tmp_path / "out", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()


def change_config(model: str, **fields: Any) -> None:
    path = Path(model, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(pool: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """Change the base and all experts alike."""
    for model in {pool["base"], *pool["models"].values()}:
        path = Path(model, "model.safetensors")
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)


def add_bias(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.bias"] = tensors["model.norm.weight"].clone()


def drop_block(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def drop_attention(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.0.self_attn.o_proj.weight"]


def drop_layers(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_bias, r"'model\.layers\.1\.mlp\.up_proj\.bias' does not fit .* mixtral"),
        (drop_block, r"lacks the tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        (drop_attention, r"lacks the tensor 'model\.layers\.0\.self_attn\.o_proj\.weight'"),
        (drop_layers, r"lacks the tensor 'model\.layers\.0\.mlp\.gate_proj\.weight'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[..., None], message: str, save: Callable[..., Any], tmp_path: Path
) -> None:
    pool = save("llama")
    change_tensors(pool, change)
    with pytest.raises(AlignmentError, match=message):
        mix(pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("layout", ["separate", "packed"])
@pytest.mark.parametrize(("model", "name"), [("b", UP), ("base", "model.norm.weight")])
def test_nan_is_refused_by_name(
    model: str, name: str, layout: str, save: Callable[..., Any], tmp_path: Path
) -> None:
    pool = save("llama")
    path = Path({"base": pool["base"], **pool["models"]}[model], "model.safetensors")
    tensors = load_file(path)
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, path)
    with pytest.raises(
        WeightsError, match=r"norm\.weight|experts\.1\.w3\.weight|experts\.gate_up_proj"
    ):
        mix(pool, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("problem", ["missing", "extra", "shape"])
def test_an_expert_with_other_tensors_is_refused_by_name(
    problem: str, save: Callable[..., Any]
) -> None:
    pool = save("llama")
    path = Path(pool["models"]["b"], "model.safetensors")
    tensors = load_file(path)
    values = tensors.pop(UP)
    if problem == "shape":
        tensors[UP] = values[:-1].clone()
    elif problem == "extra":
        tensors |= {UP: values, UP.replace("weight", "bias"): values[:, 0].clone()}
    save_file(tensors, path)
    with pytest.raises(AlignmentError, match=r"model\.layers\.1\.mlp\.up_proj"):
        mix(pool)


def test_frequencies_in_old_files_are_left_out(save: Callable[..., Any], tmp_path: Path) -> None:
    pool = save("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(
        pool, lambda tensors: tensors.update({name: tensors["model.norm.weight"][:2].clone()})
    )
    assert name not in mix(pool, tmp_path / "out").weights.infos


def test_other_architectures_and_windows_are_refused(save: Callable[..., Any]) -> None:
    pool = save("llama", [1, 2, 3])
    change_config(pool["base"], model_type="phi3")
    with pytest.raises(FusionError, match="phi3"):
        mix(pool)
    change_config(pool["base"], model_type="llama")
    change_config(pool["models"]["b"], model_type="mistral", sliding_window=None)
    with pytest.raises(FusionError, match="mistral"):
        mix({**pool}, target="mixtral")
    window = save("mistral", [1, 2, 3])
    with pytest.raises(CheckpointError, match=r"qwen2_moe cannot limit attention .* of 4 tokens"):
        mix(window, shared_expert="c")
    change_config(save("qwen3")["base"], use_sliding_window=True, sliding_window=8)
    with pytest.raises(CheckpointError, match=r"qwen3_moe cannot limit attention .* of 8 tokens"):
        mix(save_again("qwen3", window["base"]))


def save_again(kind: str, sibling: str) -> dict[str, Any]:
    """Return the options of a pool that the fixture saved next to another."""
    folder = Path(sibling).parent
    models = {"a": str(folder / f"{kind}-1"), "b": str(folder / f"{kind}-2")}
    return {"name": "checkpoints", "base": str(folder / f"{kind}-0"), "models": models}


def test_state_dicts_without_a_configuration_are_refused() -> None:
    state = {"model.embed_tokens.weight": word_pool().base.tensor("model.embed_tokens.weight")}
    pool = CheckpointsPool(CheckpointsConfig(base=state, models={"a": state, "b": state}))
    with pytest.raises(
        CheckpointError, match=r"reads the architecture of the base from its config"
    ):
        mix(pool)
