"""The suites of fusion-testing, run on the command and the format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.weights import StateDictSource
from fusion_lora import plugin
from fusion_testing import CommandSuite, FormatSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion_core import CommandSpec, FormatSpec, WeightSource


class TestExtractLora(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec


class TestLora(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        (spec,) = plugin.fusion_register_formats()
        return spec

    @pytest.fixture
    def tensors(self) -> Mapping[str, Tensor]:
        random = torch.Generator().manual_seed(0)
        return {
            "a.weight": torch.randn(7, 5, generator=random),
            "b.weight": torch.randn(3, 4, generator=random),
            "b.bias": torch.randn(3, generator=random).double(),  # so are differences of weights
        }

    @pytest.fixture
    def base(self, tensors: Mapping[str, Tensor]) -> WeightSource:
        return StateDictSource({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})

    @pytest.fixture
    def write(self) -> Callable[[Path, Mapping[str, Tensor]], None]:
        return write_adapter


def write_adapter(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write matrices as products with the identity, and the rest whole."""
    stored: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if tensor.dim() == 2:
            stored[f"base_model.model.{module}.lora_A.weight"] = torch.eye(tensor.shape[1])
            stored[f"base_model.model.{module}.lora_B.weight"] = tensor
            ranks[module] = tensor.shape[1]
        else:
            stored[f"base_model.model.{name}"] = tensor
    save_file(stored, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "all"}
    config |= {"rank_pattern": ranks, "alpha_pattern": ranks}
    (directory / "adapter_config.json").write_text(json.dumps(config))
