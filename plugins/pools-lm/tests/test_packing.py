"""The packing rules match the computations of transformers' modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch.nn.functional import linear, silu

from pools_checkpoints import CheckpointsConfig, CheckpointsPool
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

_SIZES = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
_HEADS = {"num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_SIZES, **_HEADS, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}
#: configuration, the fused layer, and the layer that reads the output of attention
ATTENTION: dict[str, tuple[Any, str, str]] = {
    "phi3": (transformers.Phi3Config(**_GROUPED), "self_attn.qkv_proj", "o_proj"),
    "gpt2": (transformers.GPT2Config(**_GPT2), "attn.c_attn", "attn.c_proj"),
    "gpt_neox": (transformers.GPTNeoXConfig(**_SIZES, **_HEADS), "query_key_value", ".dense"),
    "bloom": (
        transformers.BloomConfig(vocab_size=16, hidden_size=16, n_layer=1, n_head=4),
        "query_key_value",
        "self_attention.dense",
    ),
}
EXPERTS: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**_GROUPED, num_local_experts=3),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **_GROUPED, num_experts=3, moe_intermediate_size=12, decoder_sparse_step=1
    ),
    "gpt_oss": transformers.GptOssConfig(**_GROUPED, num_local_experts=3, head_dim=4),
    "aria_text": transformers.AriaTextConfig(
        **_GROUPED, moe_num_experts=3, moe_num_shared_experts=1
    ),
    "llama4_text": transformers.Llama4TextConfig(
        **_GROUPED, num_local_experts=3, head_dim=4, interleave_moe_layer_step=1
    ),
    "granitemoe": transformers.GraniteMoeConfig(**_GROUPED, num_local_experts=3),
}
#: Models whose published files have other names than live models: the packing rules know both.
_AS_RELEASED = {"granitemoe"}


def pool_and_model(config: Any, path: Path) -> tuple[CausalPool, nn.Module]:
    """Return a pool with a tiny packed model, and the live model."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path, save_original_format=config.model_type in _AS_RELEASED)
    return CausalPool(LanguageConfig(base=str(path), models={"one": str(path)})), model


def scale(pool: CausalPool, model: nn.Module, layer: str, factors: dict[str, float]) -> None:
    """Multiply the parts of a fused layer, including its bias."""
    scaled = 0
    parameters = pool.parameters(model)
    for tensor, slots in pool.layout.slots.items():
        if f"{layer}." not in tensor:
            continue
        for slot in slots:
            part = slot.name.split(".")[-2]
            values = parameters[tensor].detach().view(-1)[slot.start : slot.stop]
            slot.view(values).mul_(factors.get(part, 1.0))
            scaled += part in factors
    assert scaled


def inputs_of(model: nn.Module, layer: str) -> Tensor:
    """Return the inputs of a layer."""
    (module,) = [child for name, child in model.named_modules() if name.endswith(layer)]
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())):
        model(input_ids=torch.arange(2, 12).view(2, 5))
    return seen[0]


@pytest.mark.parametrize("kind", ATTENTION)
def test_the_parts_of_fused_attention_are_query_key_and_value(kind: str, tmp_path: Path) -> None:
    config, layer, out = ATTENTION[kind]
    pool, model = pool_and_model(config, tmp_path)
    before = inputs_of(model, out)
    scale(pool, model, layer, {"q": 2.0, "k": 0.5})
    torch.testing.assert_close(inputs_of(model, out), before)  # the scores are the same
    scale(pool, model, layer, {"v": 3.0})
    torch.testing.assert_close(inputs_of(model, out), 3 * before)
    scale(pool, model, layer, {"q": 3.0})
    assert not torch.allclose(inputs_of(model, out), 3 * before)


def test_the_halves_of_gate_up_are_gate_and_projection(tmp_path: Path) -> None:
    pool, model = pool_and_model(ATTENTION["phi3"][0], tmp_path)
    before = inputs_of(model, "down_proj")
    scale(pool, model, "mlp", {"up_proj": 3.0})
    torch.testing.assert_close(inputs_of(model, "down_proj"), 3 * before)
    scale(pool, model, "mlp", {"gate_proj": 3.0})
    assert not torch.allclose(inputs_of(model, "down_proj"), 3 * before)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(**_GPT2, n_inner=24, add_cross_attention=True),
        transformers.OpenAIGPTConfig(**_GPT2),
    ],
    ids=lambda config: config.model_type,
)
def test_matrices_of_transposed_layers_have_one_row_per_output(config: Any, tmp_path: Path) -> None:
    pool, model = pool_and_model(config, tmp_path)
    matrices = pool.layout.unpack(pool.reference)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, transformers.pytorch_utils.Conv1D)
    }
    assert len(layers) == (7 if config.model_type == "gpt2" else 4)
    for name, layer in layers.items():
        prefixes = [name] if f"{name}.weight" in matrices.infos else [f"{name}.{p}" for p in "qkv"]
        weight, bias = (
            torch.cat([matrices.tensor(f"{prefix}.{kind}") for prefix in prefixes])
            for kind in ("weight", "bias")
        )
        inputs = torch.randn(3, layer.weight.shape[0])
        torch.testing.assert_close(linear(inputs, weight, bias), layer(inputs))


@pytest.mark.parametrize(
    "config",
    [*(config for config, *_ in ATTENTION.values()), *EXPERTS.values()],
    ids=lambda config: config.model_type,
)
def test_a_pool_that_knows_no_class_finds_the_same_matrices(config: Any, tmp_path: Path) -> None:
    pool, _ = pool_and_model(config, tmp_path)
    models = {"base": str(tmp_path), "models": {"one": str(tmp_path)}}
    plain = CheckpointsPool(CheckpointsConfig(**models))
    assert plain.layout.slots
    assert plain.layout.slots == pool.layout.slots


def activate_gpt_oss(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@pytest.mark.parametrize("kind", EXPERTS)
def test_each_expert_of_a_mixture_has_matrices_of_outputs_and_inputs(
    kind: str, tmp_path: Path
) -> None:
    pool, model = pool_and_model(EXPERTS[kind], tmp_path)
    (name, module), *_ = [
        (name, child) for name, child in model.named_modules() if name.endswith(".experts")
    ]
    matrices = pool.layout.unpack(pool.reference)
    activate: Callable[[Tensor, Tensor], Tensor] = (
        activate_gpt_oss if kind == "gpt_oss" else lambda gate, up: silu(gate) * up
    )
    inputs = torch.randn(5, 16)
    outputs = []
    for expert in range(3):

        def apply(values: Tensor, layer: str, expert: int = expert) -> Tensor:
            prefix = f"{name}.{expert}.{layer}"
            bias = f"{prefix}.bias" if f"{prefix}.bias" in matrices.infos else None
            return linear(
                values,
                matrices.tensor(f"{prefix}.weight"),
                None if bias is None else matrices.tensor(bias),
            )

        inner = activate(apply(inputs, "gate_proj"), apply(inputs, "up_proj"))
        outputs.append(apply(inner, "down_proj"))
    if kind == "llama4_text":
        actual = module(inputs.repeat(3, 1)).view(3, 5, 16)
    else:
        routes = (torch.full((5, 1), expert) for expert in range(3))
        actual = torch.stack([module(inputs, route, torch.ones(5, 1)) for route in routes])
    torch.testing.assert_close(actual, torch.stack(outputs))
