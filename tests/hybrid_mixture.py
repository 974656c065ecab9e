"""A vision-language model whose text part is a mixture with linear attention, as Qwen3.5."""

from __future__ import annotations

from typing import Any

import transformers

HIDDEN, INNER, EXPERTS = 32, 8, 4
TEXT: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "moe_intermediate_size": INNER,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
}
HYBRID = transformers.Qwen3_5MoeConfig(
    text_config={
        **TEXT,
        "shared_expert_intermediate_size": INNER,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    vision_config={
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
    },
    image_token_id=20,
    video_token_id=21,
    vision_start_token_id=22,
    vision_end_token_id=23,
)
