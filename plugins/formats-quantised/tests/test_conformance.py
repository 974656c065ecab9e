"""The conformance suite: on the format with a parser of its own, and thoroughly on others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from formats_quantised import plugin
from formats_quantised.fp4 import FP4_VALUES
from fusion_testing import FormatSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core import FormatSpec

    Damage = Callable[[Path], object]


def _spec(name: str) -> FormatSpec:
    return next(spec for spec in plugin.fusion_register_formats() if spec.name == name)


def _write(directory: Path, tensors: Mapping[str, torch.Tensor], **settings: object) -> None:
    config = {"dtype": "float32", "quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(config))
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors")


def _change(**changes: torch.Tensor | None) -> Damage:
    """Return a damage that replaces stored tensors, or removes them."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        for suffix, tensor in changes.items():
            name = next(name for name in tensors if name.endswith(suffix))
            del tensors[name]
            if tensor is not None:
                tensors[name] = tensor
        save_file(tensors, directory / "model.safetensors")

    return damage


def _set(name: str, value: object) -> Damage:
    """Return a damage that changes a setting of the configuration."""

    def damage(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"][name] = value
        (directory / "config.json").write_text(json.dumps(config))

    return damage


@pytest.mark.thorough
class TestFp8(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return _spec("fp8")

    @pytest.fixture
    def tensors(self) -> Mapping[str, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        return {
            "layer.weight": torch.randint(-8, 9, (7, 5), generator=random).float(),
            "layer.bias": torch.randn(5, generator=random),
            "half": torch.randn(33, generator=random).half(),
            "steps": torch.arange(3),
        }

    @pytest.fixture
    def write(self) -> Callable[[Path, Mapping[str, torch.Tensor]], None]:
        def write(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
            stored = {}
            for name, tensor in tensors.items():
                stored[name] = tensor
                if name == "layer.weight":
                    rows, width = tensor.shape
                    stored[name] = tensor.mul(2).to(torch.float8_e4m3fn)
                    stored[f"{name}_scale_inv"] = torch.full((-(-rows // 4), -(-width // 2)), 0.5)
            _write(directory, stored, quant_method="fp8", weight_block_size=[4, 2])

        return write

    @pytest.fixture
    def hostile(self) -> Mapping[str, Damage]:
        return {
            "too few scales": _change(weight_scale_inv=torch.ones(1, 3)),
            "no weight": _change(weight=None),
            "scales of integers": _change(weight_scale_inv=torch.ones(2, 3, dtype=torch.int64)),
            "blocks of no rows": _set("weight_block_size", [0, 2]),
            "blocks of text": _set("weight_block_size", "4x2"),
            "blocks of true": _set("weight_block_size", [True, True]),
            "huge blocks": _set("weight_block_size", [2**62, 2**62]),
        }


class TestGguf(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return _spec("gguf")

    @pytest.fixture
    def tensors(self) -> Mapping[str, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        return {
            "model.embed_tokens.weight": torch.randint(-8, 9, (7, 64), generator=random).float(),
            "model.norm.weight": torch.randn(64, generator=random),
            "lm_head.weight": torch.randn(7, 64, generator=random),
        }

    @pytest.fixture
    def write(self) -> Callable[[Path, Mapping[str, torch.Tensor]], None]:
        names = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }

        def write(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
            writer = gguf.GGUFWriter(directory / "model.gguf", "llama")
            writer.add_head_count(2)
            for name, tensor in tensors.items():
                writer.add_tensor(names[name], tensor.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

        return write

    @pytest.fixture
    def hostile(self) -> Mapping[str, Damage]:
        def patch(offset: int, content: bytes) -> Damage:
            def damage(directory: Path) -> None:
                path = directory / "model.gguf"
                octets = bytearray(path.read_bytes())
                octets[offset : offset + len(content)] = content
                path.write_bytes(octets)

            return damage

        def crowd(directory: Path) -> None:
            header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
            array = (3).to_bytes(8, "little") + b"key" + (9).to_bytes(4, "little")
            array += (8).to_bytes(4, "little") + (3 * 10**6).to_bytes(8, "little")
            (directory / "model.gguf").write_bytes(header + array + bytes(8 * 3 * 10**6))

        def nest(directory: Path) -> None:
            header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
            nested = ((9).to_bytes(4, "little") + (1).to_bytes(8, "little")) * 10**5
            path = directory / "model.gguf"
            path.write_bytes(header + (1).to_bytes(8, "little") + b"k" + nested)

        return {
            "2^63 tensors": patch(8, (2**63).to_bytes(8, "little")),
            "2^63 fields": patch(16, (2**63).to_bytes(8, "little")),
            "another version": patch(4, (9).to_bytes(4, "little")),
            "another architecture": patch(24 + 8 + 20 + 4 + 8, b"what?"),
            "three million texts": crowd,
            "nested arrays": nest,
            "a second file": lambda path: (path / "b.gguf").write_bytes(
                (path / "model.gguf").read_bytes()
            ),
        }


@pytest.mark.thorough
class TestMxfp4(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return _spec("mxfp4")

    @pytest.fixture
    def tensors(self) -> Mapping[str, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        values = torch.tensor([0.5, 1, -1.5, 6, -4])
        index = torch.randint(0, 5, (1, 64, 3), generator=random)
        return {
            "experts.down_proj": values[index],
            "bias": torch.randn(2, 64, generator=random),
        }

    @pytest.fixture
    def write(self) -> Callable[[Path, Mapping[str, torch.Tensor]], None]:
        def write(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
            stored = dict(tensors)
            packed = stored.pop("experts.down_proj", None)
            if packed is not None:
                moved = packed.transpose(1, 2).contiguous()
                codes = torch.bucketize(moved.abs(), FP4_VALUES[:8], out_int32=True) + 8 * (
                    moved < 0
                )
                codes = codes.to(torch.uint8).reshape(len(packed), packed.shape[2], -1, 16, 2)
                stored["experts.down_proj_blocks"] = codes[..., 0] | codes[..., 1] << 4
                shape = stored["experts.down_proj_blocks"].shape[:-1]
                stored["experts.down_proj_scales"] = torch.full(shape, 127, dtype=torch.uint8)
            _write(directory, stored, quant_method="mxfp4")

        return write

    @pytest.fixture
    def hostile(self) -> Mapping[str, Damage]:
        return {
            "too few scales": _change(_scales=torch.ones(1, 3, 1, dtype=torch.uint8)),
            "no scales": _change(_scales=None),
            "blocks of 8 bytes": _change(_blocks=torch.ones(1, 3, 2, 8, dtype=torch.uint8)),
        }
