"""Tiny configurations of any architecture of transformers."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Sizes by the names of fields; the first pattern that matches a name counts.
_SIZES = {
    r"first_k_dense_replace|n_shared_experts|(topk|n)_group|(mamba_)?n_groups": 1,
    r"num_mtp_layers|num_(zero|null)_experts|zero_expert_num|num_kv_shared_layers|pad_token_id": 0,
    r"bos_token_id|(mamba_)?expand": 1,
    r"eos_token_id|(num_|moe_)?(experts_per_tok(en)?|topk|k)|num_key_value_heads|num_kv_heads": 2,
    r"num_(hidden_)?layers|n_layers?|(num_)?(en|de)coder_layers|depth|num_global_layers": 2,
    r"linear_num_key_heads|index_n_heads|num_codebooks|num_mem(ory)?_blocks|num_blocks": 2,
    r"(num_|n_)?heads?|(\w+_)?attention_heads|linear_num_value_heads|rotary_dim": 4,
    r"(num_|n_routed_|num_local_|moe_num_)experts|qk_(rope|nope)_head_dim|time_step_rank": 4,
    r"mamba_(n|num)_heads|(\w+_)?head_dim|d_kv|kv_lora_rank|(ssm_)?state_size|mamba_d_\w+": 8,
    r"index_topk|hidden_size_per_layer_input|laurel_rank|patch_size|kv_channels|n_embd_head": 8,
    r"(moe_|shared_expert_)?intermediate_size_moe|moe_intermediate_size|q_lora_rank": 24,
    r"image_size|sliding_window|attention_window_size|block_size|expert_ffn_hidden_size": 16,
    r"hidden_size|n_embd|n_embed|d_model|(\w+_)?embed(ding)?_(dim|size)": 32,
    r"(\w+_)?proj(ection)?_dim": 32,
    r"dim|lru_width|(out|projector|shared)_hidden_size|emb_dim|input_dim|output_dim": 32,
    r"(\w+_)?intermediate_size|(\w+_)?ffn_(dim|hidden_size)|n_inner|d_ff|d_inner": 64,
    r"n_positions|n_ctx|max_(position_embeddings|source_positions|target_positions)": 64,
    r"vocab_size(_per_layer_input)?": 99,
}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_MIXED = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
#: Configurations whose fields depend on each other.
_GIVEN: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        **_SMALL,
        **_HEADS,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 99,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
    },
    "lfm2_moe": {
        **_SMALL,
        **_MIXED,
        "intermediate_size": 64,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "mamba2": {**_SMALL, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "ministral": {**_SMALL, **_HEADS, "intermediate_size": 64},
    "nemotron": {**_SMALL, **_HEADS, "intermediate_size": 64},
}
_LAYER_KINDS = "layer_types", "mlp_layer_types", "layers_block_type"


def make_tiny(model_type: str) -> PreTrainedConfig:
    """Return a small configuration. Raises what the configuration's class raises."""
    if model_type in _GIVEN:
        return CONFIG_MAPPING[model_type](**_GIVEN[model_type])
    config: PreTrainedConfig = CONFIG_MAPPING[model_type]()
    for part in [*_parts_of(config)]:
        _shrink(part)
    return config


def _parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts_of(value)


def _shrink(config: PreTrainedConfig) -> None:
    names = {*vars(config), *config.attribute_map}
    for name in names:
        if type(getattr(config, name, None)) in {int, float}:
            size = next((n for pattern, n in _SIZES.items() if re.fullmatch(pattern, name)), None)
            if size is not None:
                setattr(config, name, size)
    for name in _LAYER_KINDS:
        kinds: Any = getattr(config, name, None)
        if isinstance(kinds, list) and kinds:  # one layer of each kind
            kinds = list(dict.fromkeys(kinds))
            with suppress(AttributeError):  # some classes derive it
                setattr(config, name, kinds * 2 if len(kinds) == 1 else kinds)
                config.num_hidden_layers = max(2, len(kinds))
