"""The core's own format passes the suite of formats, as everybody's must."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

from fusion_core import FormatSpec
from fusion_core.commands import load_plugins
from fusion_testing import FormatSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

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


def write_single(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), directory / "model.safetensors")


def write_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    weight_map = {name: f"{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, directory / file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
