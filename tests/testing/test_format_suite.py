"""The core's own formats pass the suite of formats, as everybody's must."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import FormatSpec
from fusion_core.commands import load_plugins
from fusion_core.weights import StateDictSource
from fusion_testing import FormatSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion_core.weights import WeightSource

    Write = Callable[[Path, Mapping[str, Tensor]], None]


def write_claim(**about: Any) -> Callable[[Path], object]:
    """Return what writes a header that claims a tensor of 8 bytes to be what it is not."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **about}
    text = json.dumps({"a": entry}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)
    return lambda model: (model / "model.safetensors").write_bytes(content)


class TestSafetensors(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return load_plugins().find(FormatSpec, "safetensors").spec

    @pytest.fixture(params=["one file", "shards"])
    def write(self, request: pytest.FixtureRequest) -> Write:
        return write_shards if request.param == "shards" else write_single

    @pytest.fixture
    def hostile(self, request: pytest.FixtureRequest) -> Mapping[str, Callable[[Path], object]]:
        if "shards" in request.node.name:
            return {}
        return {
            "a shape of 2^62": write_claim(shape=[2**31, 2**31]),
            "offsets out of the file": write_claim(shape=[2**40], data_offsets=[0, 2**42]),
            "a shape without elements": write_claim(shape=[0, 2**62, 2**62], data_offsets=[0, 0]),
        }


class TestLora(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return load_plugins().find(FormatSpec, "lora").spec

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
    def write(self) -> Write:
        return write_adapter


def write_single(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), directory / "model.safetensors")


def write_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    weight_map = {name: f"{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, directory / file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


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
