"""Comparison of side files: configurations, classes of tokenizers."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from differences import rows, warnings
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.errors import AlignmentError, CheckpointError
from fusion_testing import Mean
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"q.weight": torch.zeros(8, 8), "q.bias": torch.zeros(8)}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 100,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_embd": 64,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 32,
    "scale_attn_weights": True,
}
CLIP: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {"model_type": "clip_text_model", "hidden_size": 16, "hidden_act": "quick_gelu"},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 32, "patch_size": 4},
}
GONE = object()


def change(config: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {k: v for k, v in {**config, **values}.items() if v is not GONE}


def drop_keys(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def model(path: Path, config: dict[str, Any] | None = None, **files: Any) -> str:
    path.mkdir(parents=True, exist_ok=True)
    save_file(WEIGHTS, path / "model.safetensors")
    for name, content in {"config": config, **files}.items():
        if content is not None:
            (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def pair(tmp_path: Path, ours: Any, theirs: Any) -> tuple[str, str]:
    return model(tmp_path / "base", ours), model(tmp_path / "one", theirs)


# --- configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "expert", "row"),
    [
        (LLAMA, change(LLAMA, rope_theta=10000.0), "rope_theta  m0: 10000.0, the base's is 500"),
        (LLAMA, change(LLAMA, rope_theta=GONE), "rope_theta  m0: 10000.0, the base's is 500000.0"),
        (LLAMA, change(LLAMA, num_attention_heads=4), "num_attention_heads  m0: 4"),
        (LLAMA, change(LLAMA, num_key_value_heads=2), "num_key_value_heads  m0: 2"),
        (change(LLAMA, num_key_value_heads=GONE), change(LLAMA, num_key_value_heads=2), "key_"),
        (LLAMA, change(LLAMA, head_dim=16), "head_dim  m0: 16, the base's is 8"),
        (LLAMA, change(LLAMA, hidden_act="gelu"), "hidden_act  m0: 'gelu', the base's is 'silu'"),
        (LLAMA, change(LLAMA, tie_word_embeddings=True), "tie_word_embeddings  m0: True"),
        (change(LLAMA, tie_word_embeddings=GONE), change(LLAMA, tie_word_embeddings=True), "tie"),
        (LLAMA, change(LLAMA, attention_bias=True), "attention_bias  m0: True"),
        (LLAMA, change(LLAMA, model_type="qwen2"), "model_type  m0: 'qwen2'"),
        (LLAMA, change(LLAMA, architectures=["Qwen2ForCausalLM"]), "architectures  m0: ['Qwen2Fo"),
        (
            drop_keys(LLAMA, "model_type"),
            change(LLAMA, architectures=["Qwen2ForCausalLM"], model_type=GONE),
            "architectures  m0: ['Qwen2ForCausalLM']",
        ),
        (
            change(LLAMA, num_experts_per_tok=2),
            change(LLAMA, num_experts_per_tok=4),
            "num_experts_per_tok",
        ),
        (change(LLAMA, layer_types=["a"]), change(LLAMA, layer_types=["b"]), "layer_types"),
        (
            LLAMA,
            change(LLAMA, rope_theta=GONE, rope_parameters={"rope_theta": 1e4, "rope_type": "x"}),
            "rope_theta  m0: 10000.0",
        ),
        (GPT2, change(GPT2, n_head=2), "num_attention_heads  m0: 2"),
        (GPT2, change(GPT2, activation_function="relu"), "hidden_act  m0: 'relu'"),
        (GPT2, change(GPT2, scale_attn_weights=False), "scale_attn_weights  m0: False"),
        (
            CLIP,
            {**CLIP, "text_config": {**CLIP["text_config"], "hidden_act": "gelu"}},
            "text_config.hidden_act  m0: 'gelu'",
        ),
        (CLIP, {"model_type": "clip_vision_model", "patch_size": 8}, "patch_size  m0: 8"),
    ],
)
def test_a_difference_that_makes_a_merge_meaningless_is_an_error(
    tmp_path: Path, base: Any, expert: Any, row: str
) -> None:
    paths = pair(tmp_path, base, expert)
    assert any(line.startswith("config.json ") and row in line for line in rows(*paths))
    assert any(row.split(maxsplit=1)[0] in line for line in warnings(*paths, config="warn"))
    assert warnings(*paths, config="ignore") == ()


@pytest.mark.parametrize(
    ("base", "expert", "says"),
    [
        (LLAMA, change(LLAMA, rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling.rop"),
        (LLAMA, change(LLAMA, max_position_embeddings=8192), "max_position_embeddings: 8192"),
        (LLAMA, change(LLAMA, rms_norm_eps=1e-5), "rms_norm_eps: 1e-05, the base's is 1e-06"),
        (change(LLAMA, hitherto="a"), change(LLAMA, hitherto="b"), "hitherto: 'b'"),
        (change(LLAMA, sliding_window=8), change(LLAMA, sliding_window=None), "sliding_window"),
        (GPT2, change(GPT2, activation_function="gelu"), "hidden_act: 'gelu'"),
        (
            LLAMA,
            change(LLAMA, architectures=["LlamaForSequenceClassification"], id2label={"0": 1}),
            "architectures: 'LlamaForSequenceClassification', the base's is 'LlamaForCausalLM'",
        ),
    ],
)
def test_a_doubtful_difference_is_a_warning(
    tmp_path: Path, base: Any, expert: Any, says: str
) -> None:
    paths = pair(tmp_path, base, expert)
    (warning,) = warnings(*paths)
    assert warning.startswith("m0: config.json ")
    assert says in warning
    assert warnings(*paths, config="ignore") == ()


@pytest.mark.parametrize(
    ("base", "expert"),
    [
        (LLAMA, {}),
        (None, LLAMA),
        (LLAMA, change(LLAMA, architectures=["LlamaModel"])),
        (LLAMA, change(LLAMA, vocab_size=101, eos_token_id=5, torch_dtype="float16", _x=1)),
        (LLAMA, change(LLAMA, attention_dropout=0.1, use_cache=False, transformers_version="5")),
        (LLAMA, change(LLAMA, hidden_act="swish", head_dim=8, rms_norm_eps=1.0000000000000001e-6)),
        (
            LLAMA,
            change(
                LLAMA,
                rope_theta=GONE,
                rope_scaling=GONE,
                rope_parameters={"rope_theta": 500000, "rope_type": "default"},
            ),
        ),
        (GPT2, change(GPT2, activation_function="gelu_pytorch_tanh", summary_type="mean")),
        (CLIP, {"model_type": "clip_vision_model", "hidden_size": 32, "patch_size": 4}),
        ({"model_type": "clip_text_model", "hidden_size": 16}, CLIP),
        (change(LLAMA, model_type="v"), {"model_type": "v", "text_config": LLAMA}),
    ],
)
def test_different_spellings_are_not_a_difference(tmp_path: Path, base: Any, expert: Any) -> None:
    assert warnings(*pair(tmp_path, base, expert)) == ()


def test_only_the_first_of_many_differing_keys_are_shown(tmp_path: Path) -> None:
    configs = ({f"k{n}": value for n in range(99)} for value in "ab")
    lines = warnings(*pair(tmp_path, *configs))
    assert lines[-1] == "m0: config.json: 79 more keys differ"
    assert len(lines) == 21


@pytest.mark.parametrize("kind", ["LlamaConfig", "Gemma3TextConfig", "GPTNeoXConfig", "T5Config"])
def test_configurations_that_transformers_saves_are_equal_to_their_origin(
    tmp_path: Path, kind: str
) -> None:
    config = getattr(transformers, kind)()
    config.save_pretrained(tmp_path / "one")
    base = model(tmp_path / "base", config.to_dict())
    assert warnings(base, model(tmp_path / "one")) == ()


def test_both_spellings_of_gemma_3_are_equal(tmp_path: Path) -> None:
    shared = {"model_type": "gemma3_text", "hidden_size": 64}
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
    layers = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    base = model(tmp_path / "base", {**shared, **old})
    assert warnings(base, model(tmp_path / "one", {**shared, "rope_parameters": layers})) == ()
    layers["sliding_attention"]["rope_theta"] = 1e5
    differences = rows(base, model(tmp_path / "one", {**shared, "rope_parameters": layers}))
    assert differences == ["config.json rope_local_base_freq  m0: 100000.0, the base's is 10000.0"]


def test_without_a_base_models_are_compared_with_the_first_configuration(tmp_path: Path) -> None:
    models = [model(tmp_path / "a"), *pair(tmp_path, LLAMA, change(LLAMA, rope_theta=1.0))]
    assert rows(None, *models) == ["config.json rope_theta  m2: 1.0, m1's is 500000.0"]


def test_live_models_and_files_named_model_have_configurations_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 4}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2)
    live = transformers.LlamaForCausalLM(config)
    live.save_pretrained(tmp_path)
    config.num_attention_heads = 4
    assert "num_attention_heads" in "".join(rows(f"{tmp_path}/model.safetensors", live))


@pytest.mark.plugins
def test_nested_recipes_have_the_configuration_of_their_result(tmp_path: Path) -> None:
    base, one = pair(tmp_path, LLAMA, change(LLAMA, rms_norm_eps=1e-5))
    strange = model(tmp_path / "strange", change(LLAMA, rope_theta=1e4))
    inner = {"algorithm": "simple-average", "model_pool": {"models": [base, one]}}
    pool = {"base": strange, "models": {"inner": inner}}
    with pytest.raises(AlignmentError, match=r"config\.json rope_theta  inner: 500000\.0"):
        run_fusion(algorithm=Mean(), model_pool=pool)


def test_python_logs_each_warning_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, one = pair(tmp_path, LLAMA, change(LLAMA, rms_norm_eps=1e-5))
    with caplog.at_level(logging.WARNING):
        run_fusion(
            algorithm=Mean(), model_pool={"base": base, "models": [one]}, output=tmp_path / "out"
        )
    assert [record.getMessage() for record in caplog.records] == [
        "one: config.json rms_norm_eps: 1e-05, the base's is 1e-06"
    ]


def test_tokenizers_of_different_classes_are_an_error(tmp_path: Path) -> None:
    classes = {"base": "LlamaTokenizer", "same": "LlamaTokenizerFast", "any": "TokenizersBackend"}
    classes |= {"other": "GPT2Tokenizer"}
    base, *same, other = (
        model(tmp_path / name, tokenizer_config={"tokenizer_class": kind})
        for name, kind in classes.items()
    )
    assert warnings(base, *same) == ()
    assert rows(base, other) == [
        "tokenizer_config.json tokenizer_class  m0: 'GPT2Tokenizer', the base's is 'LlamaTokenizer'"
    ]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_an_error_names_an_invalid_configuration(tmp_path: Path, name: str) -> None:
    base = model(tmp_path / "base", LLAMA)
    (tmp_path / "base" / name).write_text("[1]")
    with pytest.raises(CheckpointError, match=name):
        warnings(base, base)


@pytest.mark.parametrize("change", ["nothing", "untied", "changed head"])
def test_a_copy_of_tied_embeddings_is_left_out(tmp_path: Path, change: str) -> None:
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    for seed, name in enumerate(("base", "one", "two")):
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: torch.randn(8, 4, generator=generator) for name in (embeddings, "q.weight")
        }
        weights[head] = weights[embeddings].clone()
        if change == "changed head" and name == "two":
            weights[head][7, 3] += 1
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        config = {**LLAMA, "tie_word_embeddings": change != "untied"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    models = {name: str(tmp_path / name) for name in ("one", "two")}
    pool = CheckpointsPool(CheckpointsConfig(base=str(tmp_path / "base"), models=models))
    expected = {embeddings, "q.weight"} if change == "nothing" else {embeddings, "q.weight", head}
    assert {frozenset(source.infos) for source in pool.by_name.values()} == {frozenset(expected)}
