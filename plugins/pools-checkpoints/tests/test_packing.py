"""Configurations without sizes, and tensors of other sizes. pools-lm tests the rules on modules."""

from __future__ import annotations

from typing import Any

import pytest

from pools_checkpoints.packing import Packing


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": "16", "num_attention_heads": 4},
        {"hidden_size": 16, "num_attention_heads": 0},
        {"hidden_size": True, "num_attention_heads": 4},
        {"text_config": [], "hidden_size": 16},
    ],
)
def test_a_configuration_without_sizes_has_no_packing(config: dict[str, Any]) -> None:
    assert Packing.of(config) is None


def test_tensors_of_other_sizes_are_left_to_the_core() -> None:
    config = {"model_type": "phi3", "hidden_size": 16, "num_attention_heads": 4}
    packing = Packing.of(config)
    assert packing is not None
    assert packing.matrices("layers.0.self_attn.qkv_proj.weight", (32, 16)) is None
    assert packing.matrices("layers.0.mlp.experts.gate_up_proj", (3, 24, 8)) is None
    assert packing.matrices("layers.0.self_attn.o_proj.weight", (16, 16)) is None
