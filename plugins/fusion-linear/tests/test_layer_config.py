"""Configurations of models with other layers."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_core.errors import CheckpointError
from fusion_linear.layer_config import doubts, replace_layers

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"n_layer": 3, "n_head": 3}, {"n_layer": 2, "n_head": 3}),
    "lists": (
        {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "sizes": [1, 2, 3]},
        {"num_hidden_layers": 2, "layer_types": ["c", "a"], "sizes": [3, 1]},
    ),
    "nested": (
        {"layer_types": [1, 2, 3], "text_config": {"num_layers": 3, "no_rope_layers": [0, 1, 1]}},
        {"layer_types": [1, 2, 3], "text_config": {"num_layers": 2, "no_rope_layers": [1, 0]}},
    ),
    "another part": (
        {"text_config": {"num_layers": 3}, "vision_config": {"num_layers": 9}},
        {"text_config": {"num_layers": 2}, "vision_config": {"num_layers": 9}},
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_layer_counts_and_lists_are_replaced(kind: str) -> None:
    before, after = CONFIGS[kind]
    assert replace_layers(before, count=3, layers=(2, 0)) == after


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 4}, {"num_layers": "3"}])
def test_a_configuration_with_another_layer_count_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="3 layers"):
        replace_layers(config, count=3, layers=(0,))


#: Configurations of four layers, what they become with the layers 0, 3, 3, 1, and the doubts.
MOVED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "layer numbers": (
        {"mlp_only_layers": [0, 3], "full_attn_idxs": [1]},
        {"mlp_only_layers": [0, 1, 2], "full_attn_idxs": [3]},
        [],
    ),
    "letters": ({"hybrid_override_pattern": "M*-E"}, {"hybrid_override_pattern": "MEE*"}, []),
    "other text": ({"model_type": "abcd"}, {"model_type": "abcd"}, []),
    "tokens": ({"eos_token_id": [1, 2, 3, 4]}, {"eos_token_id": [1, 2, 3, 4]}, []),
    "by length": ({"sizes": [1, 2, 3, 4]}, {"sizes": [1, 4, 4, 2]}, ["sizes: has as many"]),
    "another length": ({"layer_map": [1, 2]}, {"layer_map": [1, 2]}, ["layer_map: has 2 entries"]),
    "sources": ({"kv_source_layers": [0, 0, 2, 0]}, {"kv_source_layers": [0, 0, 0, 0]}, []),
    "lost source": (
        {"kv_source_layers": [0, 1, 2, 2]},
        {"kv_source_layers": [0, 1, 2, 3]},
        ["kv_source_layers: layer 3 uses layer 2"] * 2,
    ),
    "start": ({"first_k_dense_replace": 1}, {"first_k_dense_replace": 1}, []),
    "no start": (
        {"first_k_dense_replace": 2},
        {"first_k_dense_replace": 1},
        ["first_k_dense_replace: counts layers at the start"],
    ),
    "all at the start": ({"max_window_layers": 28}, {"max_window_layers": 4}, []),
    "unused": (
        {"max_window_layers": 2, "use_sliding_window": False},
        {"max_window_layers": 1, "use_sliding_window": False},
        [],
    ),
    "windows": (
        {"max_window_layers": 2, "use_sliding_window": True},
        {
            "max_window_layers": 1,
            "use_sliding_window": True,
            "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
        },
        [],
    ),
    "mapping": (
        {"per_layer_config": {"1": {"head_dim": 8}, "3": {"head_dim": 4}}},
        {"per_layer_config": {"1": {"head_dim": 4}, "2": {"head_dim": 4}, "3": {"head_dim": 8}}},
        [],
    ),
    "labels": ({"id2label": {"0": "a", "1": "b"}}, {"id2label": {"0": "a", "1": "b"}}, []),
    "cycle": ({"block_types": ["a", "b", "c"]}, {"block_types": ["a", "a", "a", "b"]}, []),
    "mixtures": (
        {"moe_layer_start_index": 0, "moe_layer_end_index": 0, "moe_layer_interval": 1},
        {"moe_layer_start_index": 0, "moe_layer_end_index": 0, "moe_layer_interval": 1},
        [],
    ),
    "moved mixtures": (
        {"moe_layer_start_index": 3, "moe_layer_end_index": -1, "moe_layer_interval": 4},
        {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
        [],
    ),
    "scattered mixtures": (
        {"moe_layer_start_index": 0, "moe_layer_end_index": 1, "moe_layer_interval": 1},
        {"moe_layer_start_index": 0, "moe_layer_end_index": 1, "moe_layer_interval": 1},
        ["moe_layer_interval: no interval gives"],
    ),
    "scaled by number": (
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True},
        ["scale_attn_by_inverse_layer_idx: scales attention"],
    ),
    "computed by number": (
        {"model_type": "minimax"},
        {"model_type": "minimax"},
        ["model_type: minimax computes the decay"],
    ),
    "last layer": (
        {"model_type": "gemma4_text", "layer_types": ["f", "sliding_attention", "f", "f"]},
        {"model_type": "gemma4_text", "layer_types": ["f", "f", "f", "sliding_attention"]},
        ["layer_types: the last layer"],
    ),
    "inputs per layer": (
        {"hidden_size_per_layer_input": 8},
        {"hidden_size_per_layer_input": 8},
        ["hidden_size_per_layer_input: tensors outside"],
    ),
    "end": (
        {"num_kv_shared_layers": 3},
        {"num_kv_shared_layers": 3},
        [],
    ),
    "period": (
        {"full_attention_interval": 2},
        {"full_attention_interval": 2},
        ["full_attention_interval: one layer in 2"],
    ),
    "period that is spelled out": (
        {"full_attention_interval": 2, "layer_types": ["a", "b", "a", "b"]},
        {"full_attention_interval": 2, "layer_types": ["a", "b", "b", "b"]},
        [],
    ),
    "period of the family": (
        {"model_type": "gemma2"},
        {
            "model_type": "gemma2",
            "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "full", "full")],
        },
        [],
    ),
}


@pytest.mark.parametrize("kind", MOVED)
def test_every_field_that_lists_layers_follows_them(kind: str) -> None:
    before, after, expected = MOVED[kind]
    layers = (0, 3, 3, 1)
    config = {"text_config": {"num_hidden_layers": 4, **before}}
    changed = {"text_config": {"num_hidden_layers": 4, **after}}
    assert replace_layers(config, count=4, layers=layers) == changed
    lines = doubts(config, count=4, layers=layers)
    assert len(lines) == len(expected)
    assert all(f"config.json: {words}" in line for line, words in zip(lines, expected, strict=True))


def test_all_layers_in_order_change_nothing() -> None:
    for before, _, _ in MOVED.values():
        config = {"num_hidden_layers": 4, **before}
        changed = replace_layers(config, count=4, layers=range(4))
        assert {**changed, "max_window_layers": 0} == {**config, "max_window_layers": 0}
        assert all("entries" in line for line in doubts(config, 4, range(4)))
