"""`stack`: the origin of every tensor, files, and invalid options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import RunOptions, merge, run_fusion
from fusion_core.errors import CheckpointError, RecipeError
from fusion_linear.stack import Stack
from fusion_linear.stacked_source import StackedSource

if TYPE_CHECKING:
    from pathlib import Path

State = dict[str, torch.Tensor]

SLICES = [{"model": "a", "layers": [0, 2]}, {"model": "b", "layers": [1, 3]}]
#: Tensors that mergekit's tables of architectures list before the layers, and after them.
BEFORE = [
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "gpt_neox.embed_in.weight",
    "bert.embeddings.LayerNorm.bias",
    "embeddings.patch_embedding.weight",
    "embeddings.position_ids",
    "pos_embed",
    "vision_model.pre_layrnorm.weight",
    "layernorm_pre.bias",
    "ln_pre.weight",
    "class_embedding",
    "cls_token",
    "conv1.weight",
    "model.tok_embeddings.weight",
    "transformer.rotary_pos_emb.inv_freq",
    "positional_embedding_vlm",
    "backbone.embeddings.weight",
]
AFTER = [
    "model.norm.weight",
    "lm_head.weight",
    "transformer.ln_f.bias",
    "score.weight",
    "embed_out.weight",
    "vision_model.post_layernorm.weight",
    "classifier.weight",
    "pre_classifier.bias",
    "output.weight",
    "bert.pooler.dense.weight",
    "cls.predictions.bias",
    "vocab_projector.weight",
    "backbone.norm_f.weight",
    "decoder.final_layer_norm.weight",
    "logit_scale",
    "visual_projection.weight",
]


def make_model(seed: int, layers: int = 3, *, ends: Any = ("embed.weight", "head.weight")) -> State:
    draw = torch.Generator().manual_seed(seed)
    names = [*ends, *(f"layers.{layer}.w" for layer in range(layers))]
    return {name: torch.randn(4, 5, generator=draw) for name in names}


def make_models(**changes: Any) -> dict[str, Any]:
    base, a, b = (make_model(seed, **changes) for seed in range(3))
    return {"base": base, "models": {"a": a, "b": b}}


def stack(pool: dict[str, Any], slices: Any = SLICES) -> State:
    return merge({"name": "stack", "slices": slices}, pool).state_dict()


def test_layers_follow_each_other_in_the_order_of_the_slices() -> None:
    pool = make_models()
    base, a, b = pool["base"], pool["models"]["a"], pool["models"]["b"]
    merged = stack(pool, [*SLICES, {"model": "base", "layers": [2, 3]}])
    layers = [a["layers.0.w"], a["layers.1.w"], b["layers.1.w"], b["layers.2.w"]]
    expected = {f"layers.{n}.w": layer for n, layer in enumerate([*layers, base["layers.2.w"]])}
    expected |= {"embed.weight": a["embed.weight"], "head.weight": base["head.weight"]}
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], values) for name, values in expected.items())


def test_tensors_before_the_layers_are_the_first_models_and_all_others_the_last_ones() -> None:
    pool = make_models(ends=(*BEFORE, *AFTER))
    merged = stack(pool)
    for names, origin in ((BEFORE, "a"), (AFTER, "b")):
        wrong = [n for n in names if not torch.equal(merged[n], pool["models"][origin][n])]
        assert wrong == []


@pytest.mark.parametrize("tied", ["both", "first"])
def test_a_head_that_is_a_copy_of_the_embedding_stays_one(tied: str) -> None:
    pool = make_models()
    for name in ("a", "b") if tied == "both" else ("a",):
        pool["models"][name]["head.weight"] = pool["models"][name]["embed.weight"]
    merged = stack(pool)
    assert torch.equal(merged["head.weight"], merged["embed.weight"]) == (tied == "both")


def save_pool(pool: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name, state in pool["models"].items():
        save_file(state, folder / f"{name}.safetensors")
    return {"models": {name: str(folder / f"{name}.safetensors") for name in pool["models"]}}


def test_a_run_and_a_direct_call_give_the_same(tmp_path: Path) -> None:
    pool = make_models()
    expected, files = stack(pool), save_pool(pool, tmp_path)
    out = {"path": str(tmp_path / "out"), "shard_size": 200}
    run_fusion(algorithm={"name": "stack", "slices": SLICES}, model_pool=files, output=out)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    written = {name: values for shard in shards for name, values in load_file(shard).items()}
    by_hand = Stack(slices=SLICES).run(pool).state_dict()
    for merged in (written, by_hand):
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], values) for name, values in expected.items())
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert provenance["tensors"] == {"merged": 6, "copied": 0, "dropped": 0}


def test_a_resumed_run_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_models()
    files, read = save_pool(pool, tmp_path), StackedSource.read

    def run(name: str, **options: Any) -> bytes:
        run_fusion(
            algorithm={"name": "stack", "slices": SLICES},
            model_pool=files,
            output=tmp_path / name,
            options=RunOptions(executor="serial", **options),
        )
        return (tmp_path / name / "model.safetensors").read_bytes()

    def read_until_interrupted(
        source: StackedSource, name: str, start: int, stop: int
    ) -> torch.Tensor:
        if name == "layers.2.w":
            raise KeyboardInterrupt
        return read(source, name, start, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StackedSource, "read", read_until_interrupted)
        run("out")
    assert not (tmp_path / "out").exists()
    assert run("out", resume=True) == run("at-once")


def test_stack_copies_the_output_of_a_transform() -> None:
    pool = make_models()
    slices = [{"model": "a", "layers": [0, 3]}, {"model": "a", "layers": [1, 3]}]
    merged = merge(["depth-scale", {"name": "stack", "slices": slices}], pool)
    copied = merge(["depth-scale", {"name": "passthrough", "model": "a"}], pool)
    for layer, origin in enumerate((0, 1, 2, 1, 2)):
        scaled = copied.tensor(f"layers.{origin}.w")
        assert torch.equal(merged.tensor(f"layers.{layer}.w"), scaled)


INVALID: dict[str, tuple[Any, str]] = {
    "no slices": ([], r"algorithm\.slices = \[\]: expected at least one slice"),
    "unknown model": ([{"model": "c", "layers": [0, 1]}], r"slices\.0\.model: unknown model 'c'"),
    "too deep": (
        [SLICES[0], {"model": "b", "layers": [1, 4]}],
        r"slices\.1\.layers: \[1, 4\] is out of range: b has 3 layers",
    ),
    "empty": ([{"model": "a", "layers": [1, 1]}], r"slices\.0\.layers = .* selects no layers"),
    "reversed": ([{"model": "a", "layers": [2, 1]}], r"slices\.0\.layers = .* selects no layers"),
    "negative": ([{"model": "a", "layers": [-1, 1]}], r"slices\.0\.layers\.0 = -1"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_slices_are_errors(case: str) -> None:
    slices, message = INVALID[case]
    with pytest.raises(RecipeError, match=message):
        stack(make_models(), slices)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "have none"),
        (("text.layers.0.w", "vision.layers.0.w"), r"have 'text\.layers', 'vision\.layers'"),
        (("layers.1.w", "layers.3.w"), r"the layers of 'layers' are 1, 3"),
    ],
)
def test_models_without_one_list_of_layers_are_errors(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stack(make_models(layers=0, ends=("embed.weight", *names)))


def test_a_configuration_without_a_number_of_layers_is_an_error(tmp_path: Path) -> None:
    for name, state in make_models()["models"].items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"depth_of_it": 3}')
    pool = {"models": {name: str(tmp_path / name) for name in ("a", "b")}}
    with pytest.raises(CheckpointError, match=r"config\.json .* has 3 layers"):
        run_fusion(
            algorithm={"name": "stack", "slices": SLICES},
            model_pool=pool,
            output=tmp_path / "out",
            options=RunOptions(evaluate=False),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


SCALED = [
    {"model": "a", "layers": [0, 2], "scale": 0.3},
    {"model": "b", "layers": [1, 3], "scale": {"layers.2.*": 0.7, "*.w": -1, "head*": 0}},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_slices_are_scaled_with_the_tensors_before_and_after_them(dtype: torch.dtype) -> None:
    pool = make_models()
    for state in (pool["base"], *pool["models"].values()):
        state |= {name: values.to(dtype) for name, values in state.items()}
    a, b = pool["models"]["a"], pool["models"]["b"]
    for state in (pool["base"], a, b):
        state["layers.0.steps"] = torch.tensor([3])
    merged = stack(pool, SCALED)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    expected = {
        "embed.weight": a["embed.weight"].to(wide) * 0.3,
        "layers.0.w": a["layers.0.w"].to(wide) * 0.3,
        "layers.0.steps": torch.tensor([3]),
        "layers.1.w": a["layers.1.w"].to(wide) * 0.3,
        "layers.2.w": b["layers.1.w"].to(wide) * -1,
        "layers.3.w": b["layers.2.w"].to(wide) * 0.7,
        "head.weight": b["head.weight"].to(wide) * 0,
    }
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        stored = values.to(dtype) if values.is_floating_point() else values
        assert torch.equal(merged[name], stored), name


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_head_that_is_a_copy_is_scaled_like_the_embedding(model: str) -> None:
    pool = make_models()
    for state in pool["models"].values():
        state["head.weight"] = state["embed.weight"]
    merged = stack(pool, [SCALED[0], {"model": model, "layers": [0, 1]}])
    assert torch.equal(merged["head.weight"], merged["embed.weight"])
    assert torch.equal(merged["head.weight"], pool["models"]["a"]["embed.weight"] * 0.3)


def test_a_pattern_that_matches_nothing_may_be_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = make_models()
    part = {"model": "a", "layers": [0, 1], "unmatched": "warn", "scale": {"none*": 2.0, "*": 0.5}}
    merged = stack(pool, [part])
    assert torch.equal(merged["embed.weight"], pool["models"]["a"]["embed.weight"] * 0.5)
    assert "algorithm.slices.0.scale: no tensor matches 'none*'" in caplog.text


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("x", r"slices\.0\.scale = 'x': expected a number, or numbers by pattern"),
        ([1, 2], r"slices\.0\.scale = \[1, 2\]: expected a number, or numbers by pattern"),
        ({"*.w": "x"}, r"slices\.0\.scale\.\*\.w = 'x': expected a number, got text"),
        ({"layers.2.w": 1}, r"slices\.0\.scale: no tensor matches 'layers\.2\.w'"),
        ({"head*": 1}, r"slices\.0\.scale: no tensor matches 'head\*'"),
        (float("nan"), r"slices\.0\.scale = nan: expected a finite number"),
    ],
)
def test_invalid_scales_are_errors(scale: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stack(make_models(), [{**SLICES[0], "scale": scale}, SLICES[1]])


def test_doubts_about_the_configuration_are_warnings(tmp_path: Path) -> None:
    for name, state in make_models()["models"].items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        config = {"num_hidden_layers": 3, "decoder_sparse_step": 2}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    pool = {"models": {name: str(tmp_path / name) for name in ("a", "b")}}
    options = RunOptions(evaluate=False)
    algorithm = {"name": "stack", "slices": SLICES[1:]}
    run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "out", options=options)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert any("decoder_sparse_step" in line for line in provenance["warnings"])
