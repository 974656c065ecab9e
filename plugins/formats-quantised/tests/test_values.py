"""Values of every format against those that its reference library read, bit by bit.

The files in `values` name the library's version. transformers and gguf are asked again.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from gguf_models import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from references import CASES, VALUES, read_reference
from transformers import AutoModelForCausalLM

from formats_quantised.encodings import BandCache, RowEncoding, unpack_bits
from formats_quantised.gguf_header import parse_gguf
from formats_quantised.gguf_source import GgufTensor, describe_unreadable
from fusion_core import TensorInfo, find_model
from fusion_core.weights import Header, StateDictSource

if TYPE_CHECKING:
    from pathlib import Path

    from formats_quantised.encodings import Rectangle
    from fusion_core.weights import WeightSource


def assert_same_values(source: WeightSource, expected: dict[str, torch.Tensor]) -> None:
    """Compare whole tensors and ranges at odd offsets."""
    assert source.infos.keys() == expected.keys()
    choice = random.Random(0)
    for name, tensor in expected.items():
        info, flat = source.infos[name], tensor.reshape(-1)
        assert (info.shape, info.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.tensor(name).view(torch.uint8), tensor.view(torch.uint8))
        for _ in range(20):
            start, stop = sorted(choice.choices(range(info.numel + 1), k=2))
            assert torch.equal(source.read(name, start, stop), flat[start:stop])


def test_every_case_is_stored() -> None:
    assert {path.stem for path in VALUES.glob("*.safetensors")} == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_reference_library(case: str, tmp_path: Path) -> None:
    reference = read_reference(VALUES / f"{case}.safetensors")
    reference.write(tmp_path / "model")
    source = find_model(str(tmp_path / "model"), "model").open()
    assert_same_values(source, reference.expected)
    assert source.origin is not None
    assert "1 of 1 tensors" in source.origin.decoded_from


@pytest.mark.parametrize("case", ["nf4", "nf4-nested", "fp4"])
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_of_four_bits_may_be_stored_as_a_wider_dtype(
    case: str, storage: torch.dtype, tmp_path: Path
) -> None:
    """QLoRA with FSDP sets `bnb_4bit_quant_storage`."""
    reference = read_reference(VALUES / f"{case}.safetensors")
    name = min(reference.tensors, key=len)
    codes = reference.tensors[name].view(-1).view(storage)[:, None]
    replace(reference, tensors={**reference.tensors, name: codes}).write(tmp_path / "model")
    assert_same_values(find_model(str(tmp_path / "model"), "model").open(), reference.expected)


#: Older versions of torch round small powers of two to zero here, and transformers with them.
_HAS_SMALL_POWERS = torch.ldexp(torch.tensor(4.0).half(), torch.tensor(-26)) > 0
_half = pytest.mark.skipif(not _HAS_SMALL_POWERS, reason="this torch.ldexp is not exact in fp16")


@pytest.mark.parametrize(
    "case", ["fp8-blocks", "fp8-tensor", "mxfp4", pytest.param("mxfp4-half", marks=_half)]
)
def test_values_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    reference = CASES[case]((1, 96, 128))
    reference.write(tmp_path / "model")
    source = find_model(str(tmp_path / "model"), "model").open()
    assert_same_values(source, {n: t.contiguous() for n, t in reference.expected.items()})


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("llama", ["F32"]),
        ("llama", ["Q4_K", "Q8_0", "Q6_K"]),
        ("qwen2", ["Q8_0", "Q4_0", "F16"]),
        ("qwen3", ["Q5_K", "BF16", "Q8_0"]),
    ],
)
def test_gguf_has_the_names_and_values_of_transformers(
    architecture: str, kinds: list[str], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", architecture, kinds)
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).state_dict()
    source = find_model(str(tmp_path / "model.gguf"), "model").open()
    dtype = torch.float32 if kinds == ["F32"] else torch.bfloat16
    assert_same_values(source, {name: tensor.to(dtype) for name, tensor in expected.items()})


@pytest.mark.parametrize("kind", [k for k in gguf.GGMLQuantizationType if k not in (0, 1)])
def test_gguf_types_are_dequantised_by_gguf_or_refused(kind: gguf.GGMLQuantizationType) -> None:
    random = np.random.default_rng(kind)
    shape = gguf.quants.quant_shape_to_byte_shape((6, 512), kind)
    octets = random.integers(0, 256, shape).astype(np.uint8)
    tensor = GgufTensor(TensorInfo("w", (6, 512), torch.float32), "w", kind, None)
    stored = StateDictSource({"w": torch.from_numpy(octets).reshape(-1)}, label="blocks")
    try:
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(gguf.quants.dequantize(octets, kind))
    except NotImplementedError:
        message, _ = describe_unreadable(kind) or ("", "")
        assert f"type {kind.name}, which" in message
        return
    assert describe_unreadable(kind) is None
    for start, stop in ((0, 6 * 512), (100, 1600), (511, 513), (700, 701)):
        values = tensor.read(stored, start, stop, BandCache())
        assert torch.equal(values.nan_to_num(7), expected.reshape(-1)[start:stop].nan_to_num(7))


def test_a_bias_that_llama_cpp_permutes_is_put_back() -> None:
    stored = StateDictSource({"w": torch.arange(8.0).view(torch.uint8)}, label="bytes")
    bias = GgufTensor(TensorInfo("w", (8,), torch.float32), "w", 0, 2)
    values = [0, 2, 1, 3, 4, 6, 5, 7]
    assert bias.read(stored, 0, 8, BandCache()).tolist() == values
    assert bias.read(stored, 3, 7, BandCache()).tolist() == values[3:7]
    assert bias.read(stored, 3, 3, BandCache()).dtype is torch.float32


def test_gguf_may_state_the_heads_of_each_layer(tmp_path: Path) -> None:
    for name, keys in (("one", None), ("array", [4, 4]), ("other", [4, 2])):
        write_gguf(tmp_path / f"{name}.gguf", "llama", ["F16"], keys_by_layer=keys)
    one, array, other = (
        find_model(str(tmp_path / f"{name}.gguf"), "model").open()
        for name in ("one", "array", "other")
    )
    name = "model.layers.{}.self_attn.k_proj.weight"
    for layer in (0, 1):
        assert torch.equal(array.tensor(name.format(layer)), one.tensor(name.format(layer)))
    assert torch.equal(other.tensor(name.format(0)), one.tensor(name.format(0)))
    wide = one.tensor(name.format(1)).view(4, 2, 16, -1)  # (heads, halves, pairs, inputs)
    stored = wide.transpose(1, 2).reshape(2, 32, 2, -1)  # pairs of neighbours, for 2 heads
    assert torch.equal(other.tensor(name.format(1)), stored.transpose(1, 2).reshape(128, -1))


def test_the_format_of_gptq_has_two_names(tmp_path: Path) -> None:
    reference = read_reference(VALUES / "gptq-4-second.safetensors")
    reference.config["format"] = reference.config.pop("checkpoint_format")
    reference.write(tmp_path / "model")
    source = find_model(str(tmp_path / "model"), "model").open()
    for name, expected in reference.expected.items():
        assert torch.equal(source.tensor(name), expected)


def test_a_gguf_header_is_read_without_much_of_what_follows(tmp_path: Path) -> None:
    count, text = 300, bytes(60_000)
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, count)
    path = tmp_path / "model.gguf"
    with path.open("w+b") as file:
        file.write(header + count * (struct.pack("<Q", len(text)) + text))
        end = file.tell()
        file.truncate(2 * end)
        assert 0 <= parse_gguf(Header(file.fileno(), path)).start - end < 32


@dataclass(frozen=True)
class _Counting(RowEncoding):
    """The numbers from 0 on; it records the rectangles that it is asked for."""

    parts: list[Rectangle]

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        self.parts.append(part)
        whole = torch.arange(self.info.numel).view(self.info.shape)
        return whole[part.top : part.bottom, part.left : part.right]


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_a_range_is_cut_into_whole_rows_and_parts_of_one_row(
    rows: int, width: int, data: st.DataObject
) -> None:
    start, stop = sorted(data.draw(st.integers(0, rows * width)) for _ in range(2))
    encoding = _Counting(TensorInfo("w", (rows, width), torch.int64), [])
    values = encoding.read(None, start, stop, BandCache())
    assert values.tolist() == list(range(start, stop))
    assert len(encoding.parts) <= 3
    for part in encoding.parts:
        assert part.bottom - part.top == 1 or (part.left, part.right) == (0, width)


@given(st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None)
def test_bits_are_unpacked_from_the_lowest_on(bits: int, words: int, seed: int) -> None:
    choice = random.Random(seed)
    codes = [[choice.randrange(2**bits) for _ in range(words * 32 // bits)] for _ in range(3)]
    packed = []
    for row in codes:
        whole = sum(code << bits * position for position, code in enumerate(row))
        packed.append(list(whole.to_bytes(4 * words, "little")))
    tensor = torch.tensor(packed, dtype=torch.uint8).view(torch.int32)
    assert unpack_bits(tensor, bits).tolist() == codes
    assert unpack_bits(tensor.T.contiguous().T, bits).tolist() == codes
