"""Configurations of models with other layers."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_core.errors import CheckpointError
from fusion_linear.layer_config import replace_layers

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"n_layer": 3, "n_head": 3}, {"n_layer": 2, "n_head": 3}),
    "lists": (
        {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "sizes": [1, 2, 3]},
        {"num_hidden_layers": 2, "layer_types": ["c", "a"], "sizes": [1, 2, 3]},
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
