"""One adapter merged at scale 1 has the bits of PEFT's `merge_and_unload`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fusion_core import run_fusion
from fusion_core.errors import CheckpointError
from fusion_core.weights import Location, StateDictSource
from fusion_lora import LoraSource

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def tiny(kind: str, **more: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
        **more,
    }
    mixture = {**sizes, "num_experts_per_tok": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    classes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2),
        "bert": (transformers.BertForSequenceClassification, transformers.BertConfig, sizes),
        "resnet": (transformers.ResNetForImageClassification, transformers.ResNetConfig, RESNET),
        "mixtral": (
            transformers.MixtralForCausalLM,
            transformers.MixtralConfig,
            {**mixture, "num_local_experts": 4},
        ),
        "qwen3-moe": (
            transformers.Qwen3MoeForCausalLM,
            transformers.Qwen3MoeConfig,
            {**mixture, "moe_intermediate_size": 16, "num_experts": 4, "head_dim": 8},
        ),
        "gpt-oss": (
            transformers.GptOssForCausalLM,
            transformers.GptOssConfig,
            {**mixture, "num_local_experts": 4, "head_dim": 8},
        ),
        "vit": (
            transformers.ViTForImageClassification,
            transformers.ViTConfig,
            {**sizes, "image_size": 8, "patch_size": 4},
        ),
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, sizes),
    }
    model, config, options = classes[kind]
    return model(config(**options))


def train(path: Path, kind: str, dtype: torch.dtype, **options: Any) -> None:
    """Save a base, and an adapter whose trained tensors are random.

    `new_word` is a row of the embeddings that is set before training, as of a token that is added.
    """
    more, new_word = options.pop("model", {}), options.pop("new_word", None)
    tiny(kind, **more).to(dtype).save_pretrained(path / "base")
    trained = tiny(kind, **more).to(dtype)
    if new_word is not None:
        words = trained.get_input_embeddings().weight.data
        words[new_word] = words.mean(0)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, **options)
    model = peft.get_peft_model(trained, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.randn_like(parameter) / 10)
            elif parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 10)
    model.save_pretrained(path / "adapter")


def merge_with_peft(path: Path, kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    base = type(tiny(kind)).from_pretrained(path / "base", dtype=dtype)
    merged = peft.PeftModel.from_pretrained(base, path / "adapter").merge_and_unload()
    merged.save_pretrained(path / "peft")  # in the layout of the release, as the base is
    return load_file(path / "peft" / "model.safetensors")


def merge(path: Path) -> dict[str, torch.Tensor]:
    return run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(path / "base"), "models": [str(path / "adapter")]},
        output=None,
    ).weights.state_dict()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options", "changed"),
    [
        ("llama", {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3}, 14),
        (
            "llama",
            {
                "target_modules": ["q_proj", "down_proj"],
                "rank_pattern": {"down_proj": 2, r"layers\.0\.self_attn\.q_proj": 8},
                "alpha_pattern": {"q_proj": 5, r"^model\.layers\.1\.mlp\.down_proj": 9},
            },
            4,
        ),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 3),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, 8),
        (
            "llama",
            {
                "target_modules": ["embed_tokens", "q_proj"],
                "model": {"tie_word_embeddings": True},
            },
            3,
        ),
        (  # the head is the matrix of the embeddings
            "llama",
            {"target_modules": ["lm_head", "q_proj"], "model": {"tie_word_embeddings": True}},
            3,
        ),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"]}, 6),
        ("bert", {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"}, 22),
        ("resnet", {"target_modules": r".*\.convolution"}, 8),
        ("vit", {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}, 6),
        ("llama", {"target_modules": "all-linear", "use_dora": True}, 14),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, 3),
        (  # the adapter stores embeddings that differ from the base's
            "llama",
            {"target_modules": ["q_proj", "embed_tokens"], "new_word": 5},
            3,
        ),
        (
            "llama",
            {"target_modules": ["q_proj", "embed_tokens"], "new_word": 5, "use_dora": True},
            3,
        ),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}, 6),
        ("resnet", {"target_modules": r".*\.convolution", "use_dora": True}, 8),
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 13),
        ("mixtral", {"target_modules": ["w1", "w2", "w3"]}, 12),
        (
            "qwen3-moe",
            {
                "target_modules": ["q_proj"],
                "target_parameters": [*EXPERTS, "mlp.gate.weight"],
                "rank_pattern": {"experts.down_proj": 2},
            },
            14,
        ),
        ("gpt-oss", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 3),
        (  # square experts, whose shape does not show that they are stored transposed
            "gpt-oss",
            {"target_parameters": EXPERTS, "model": {"intermediate_size": 24}},
            2,
        ),
        (
            "gpt-oss",
            {"target_parameters": EXPERTS, "model": {"intermediate_size": 12}},
            2,
        ),
    ],
)
def test_the_bits_are_those_of_merge_and_unload(
    tmp_path: Path, kind: str, options: dict[str, Any], changed: int, dtype: torch.dtype
) -> None:
    train(tmp_path, kind, dtype, **options)
    expected = merge_with_peft(tmp_path, kind, dtype)
    merged = merge(tmp_path)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert merged.keys() == base.keys()
    assert sum(not torch.equal(merged[name], base[name]) for name in base) == changed
    assert [name for name in base if not torch.equal(merged[name], expected[name])] == []


def test_an_initialisation_from_the_base_that_leaves_the_base_as_it_is(tmp_path: Path) -> None:
    train(tmp_path, "llama", torch.float32, target_modules=["q_proj"], init_lora_weights="mica")
    expected = merge_with_peft(tmp_path, "llama", torch.float32)
    merged = merge(tmp_path)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_a_square_weight_ignores_the_flag_that_peft_saved_for_another(tmp_path: Path) -> None:
    train(tmp_path, "gpt2", torch.float32, target_modules=["c_proj"])
    expected = merge_with_peft(tmp_path, "gpt2", torch.float32)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": False}))
    merged = merge(tmp_path)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_a_tied_matrix_is_changed_once(tmp_path: Path) -> None:
    """PEFT changes it twice, once for each use: its merge differs from its own adapted model."""
    options = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    train(tmp_path, "llama", torch.float32, model={"tie_word_embeddings": True}, **options)
    merged = merge(tmp_path)["model.embed_tokens.weight"]
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    tokens = torch.arange(8)[None]
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        expected = adapted(tokens).logits
        model.model.embed_tokens.weight.copy_(merged)
        torch.testing.assert_close(model(tokens).logits, expected)


def test_a_weight_far_from_the_base_keeps_its_bits(tmp_path: Path) -> None:
    """In fp32, base + (weight - base) is not the weight."""
    base = {"a.weight": torch.full((2, 3), 1.0), "head.weight": torch.full((2, 3), 1.0)}
    whole = torch.full((2, 3), 1e-6)
    factors = {"a.lora_A.weight": torch.ones(1, 3), "a.lora_B.weight": torch.ones(2, 1)}
    save(tmp_path, {**factors, "head.weight": whole}, r=1)
    save_file(base, tmp_path / "model.safetensors")
    merged = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(tmp_path / "model.safetensors"), "models": [str(tmp_path / "x")]},
        output=None,
    )
    assert torch.equal(merged.weights.tensor("head.weight"), whole)


# --- what is refused ----------------------------------------------------------------------------


def save(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Location:
    path /= "x"
    path.mkdir()
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (path / "adapter_config.json").write_text(json.dumps(described))
    return Location(path, "the adapter")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((16, 5), "which fit no parameter of the base"),
        ((15, 6), "which fit no parameter of the base"),
        ((8, 6), "which do not fit rank 4 for 4 experts"),
    ],
)
def test_factors_that_fit_no_experts_are_named(
    tmp_path: Path, shape: tuple[int, int], says: str
) -> None:
    base = StateDictSource({"mlp.experts.down_proj": torch.zeros(4, 7, 6)})
    ranks, _ = shape
    module = "mlp.experts"
    factors = {
        f"{module}.lora_A.weight": torch.zeros(shape),
        f"{module}.lora_B.weight": torch.zeros(7, ranks),
    }
    location = save(tmp_path, factors, target_parameters=["experts.down_proj"])
    with pytest.raises(CheckpointError) as caught:
        LoraSource(location, base)
    assert caught.value.message.startswith("the adapter: the factors of mlp.experts")
    assert says in caught.value.message


def test_magnitudes_of_another_length_are_named(tmp_path: Path) -> None:
    tensors = {
        "a.lora_A.weight": torch.zeros(4, 5),
        "a.lora_B.weight": torch.zeros(6, 4),
        "a.lora_magnitude_vector": torch.ones(5),
    }
    location = save(tmp_path, tensors, use_dora=True)
    with pytest.raises(CheckpointError, match=r"magnitudes of a have the shape \[5\]"):
        LoraSource(location, StateDictSource({"a.weight": torch.zeros(6, 5)}))
