"""Tiny mixtures in the two layouts of their files: expert by expert, and packed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    State = dict[str, Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=8, decoder_sparse_step=1, head_dim=4
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **SIZES,
        n_routed_experts=4,
        moe_intermediate_size=8,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        q_lora_rank=4,
        kv_lora_rank=4,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
    ),
}
#: An expert's gate, up and down projections as published files name them, in that order.
PUBLISHED = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "deepseek_v3": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
LAYOUTS = "separate", "packed"


def make_states(kind: str) -> dict[str, State]:
    """Return the states of live models: `base`, and experts `a` and `b`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32)
        states = {"base": base.state_dict()}
        for name in "ab":
            states[name] = {
                key: value + 0.1 * torch.randn_like(value) for key, value in states["base"].items()
            }
    return copy.deepcopy(states)


def separate(kind: str, state: State) -> State:
    """Return a live state under published names, with one tensor per expert and projection."""
    module, (gate, up, down) = PUBLISHED[kind]
    tensors: State = {}
    for name, value in state.items():
        prefix, _, projection = name.rpartition(".experts.")
        target = f"{prefix.removesuffix('.mlp')}.{module}.experts"
        if projection == "gate_up_proj":
            for number, expert in enumerate(value):
                first, second = expert.chunk(2)
                tensors[f"{target}.{number}.{gate}.weight"] = first.contiguous()
                tensors[f"{target}.{number}.{up}.weight"] = second.contiguous()
        elif projection == "down_proj":
            for number, expert in enumerate(value):
                tensors[f"{target}.{number}.{down}.weight"] = expert.contiguous()
        elif ".mlp.gate." in name:
            tensors[name.replace(".mlp.", f".{module}.")] = value
        else:
            tensors[name] = value
    return tensors


def write(kind: str, state: State, layout: str, folder: Path) -> str:
    """Write a model directory in a layout, and return its path."""
    folder.mkdir(parents=True)
    CONFIGS[kind].save_pretrained(folder)
    tensors = separate(kind, state) if layout == "separate" else state
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
