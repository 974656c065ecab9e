from __future__ import annotations

import io
import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusion_core.errors import CheckpointError, RecipeError, WeightsError
from fusion_core.weights import CheckpointSource, TensorInfo
from fusion_core.weights.reading.format import (
    DTYPES,
    HEADER_VARIABLE,
    build_header,
    parse_header,
    parse_index,
)
from fusion_core.weights.reading.untrusted_json import LARGEST_HEADER, parse_json
from fusion_core.weights.source import view_bytes

if TYPE_CHECKING:
    from pathlib import Path


def pack(header: object, data: bytes = b"", *, pad: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text + pad)) + text + pad + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parse_both(path: Path, content: bytes) -> dict[str, TensorInfo]:
    path.write_bytes(content)
    stored, _ = parse_header(io.BytesIO(content), len(content), path.name, path=str(path))
    return {name: tensor.info for name, tensor in stored.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


# --- what is refused ----------------------------------------------------------------------------

EIGHT = b"\0" * 8
REFUSED: dict[str, bytes] = {
    "empty file": b"",
    "shorter than its prefix": b"\0" * 7,
    "prefix only": struct.pack("<Q", 0),
    "prefix beyond the file": struct.pack("<Q", 100) + b"{}",
    "prefix beyond 64 bits": b"\xff" * 8 + b"{}",
    "no JSON": pack(b"nonsense"),
    "a list": pack(b"[]"),
    "a string": pack(b'"x"'),
    "NaN": pack(b'{"__metadata__": {"a": NaN}}'),
    "infinite number": pack(json.dumps({"a": entry()}).replace("8]", "Infinity]").encode()),
    "space before": pack(b" " + json.dumps({"a": entry()}).encode(), EIGHT),
    "tab after": pack({"a": entry()}, EIGHT, pad=b"\t"),
    "newline after": pack({"a": entry()}, EIGHT, pad=b"\n"),
    "two values": pack(b"{} {}"),
    "trailing zero bytes in the header": pack(b"{}\0\0"),
    "repeated tensor": pack(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
    ),
    "repeated key inside": pack(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT
    ),
    "metadata that is not a mapping": pack({"__metadata__": [], "a": entry()}, EIGHT),
    "metadata of numbers": pack({"__metadata__": {"a": 1}, "a": entry()}, EIGHT),
    "metadata null": pack({"__metadata__": None, "a": entry()}, EIGHT),
    "metadata no unicode": pack(b'{"__metadata__":{"a":"\\ud800"}}'),
    "metadata key no unicode": pack(b'{"__metadata__":{"\\ud800":"a"}}'),
    "entry that is not a mapping": pack({"a": [1]}),
    "entry without a shape": pack({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
    "entry with more": pack({"a": {**entry(), "x": 1}}, EIGHT),
    "unknown dtype": pack({"a": entry("F33")}, EIGHT),
    "dtype in small letters": pack({"a": entry("f32")}, EIGHT),
    "dtype that is a list": pack({"a": {**entry(), "dtype": ["F32"]}}, EIGHT),
    "shape that is a number": pack({"a": entry(shape=2)}, EIGHT),
    "negative size": pack({"a": entry(shape=[-2])}, EIGHT),
    "negative zero": pack(json.dumps({"a": entry()}).replace("[0, 8]", "[-0, 8]").encode(), EIGHT),
    "size that is a float": pack({"a": entry(shape=[2.0])}, EIGHT),
    "size that is a boolean": pack({"a": entry(shape=[True, 2])}, EIGHT),
    "size that is null": pack({"a": entry(shape=[None])}, EIGHT),
    "nine dimensions": pack({"a": entry(shape=[1] * 8 + [2])}, EIGHT),
    "size beyond 63 bits": pack({"a": entry(shape=[2**63, 0], offsets=[0, 0])}),
    "product beyond 62 bits": pack({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}),
    "offsets that are a number": pack({"a": entry(offsets=8)}, EIGHT),
    "three offsets": pack({"a": entry(offsets=[0, 8, 8])}, EIGHT),
    "one offset": pack({"a": entry(offsets=[0])}, EIGHT),
    "offsets backwards": pack({"a": entry(offsets=[8, 0])}, EIGHT),
    "offsets negative": pack({"a": entry(offsets=[-8, 0])}, EIGHT),
    "offsets too far": pack({"a": entry(offsets=[0, 16])}, EIGHT),
    "offsets that do not fit the shape": pack({"a": entry(shape=[3])}, EIGHT),
    "a hole before": pack({"a": entry(offsets=[8, 16])}, EIGHT * 2),
    "a hole between": pack({"a": entry(), "b": entry(offsets=[16, 24])}, EIGHT * 3),
    "overlap": pack({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT * 2),
    "the same bytes twice": pack({"a": entry(), "b": entry()}, EIGHT),
    "trailing byte": pack({"a": entry()}, EIGHT + b"\0"),
    "missing byte": pack({"a": entry()}, EIGHT[:7]),
    "no tensor, but data": pack({}, EIGHT),
    "empty name": pack({"": entry()}, EIGHT),
    "name no unicode": pack(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "name too long": pack({"a" * 513: entry()}, EIGHT),
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_files_are_refused_by_name(file: Path, case: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_both(file, REFUSED[case])
    assert caught.value.message.startswith(str(file))
    assert caught.value.exit_code == 4
    assert len(caught.value.message) < 2000
    assert caught.value.message.isprintable()


def sparse(path: Path, *, header: int, size: int) -> Path:
    """A file that claims a header of so many bytes, all of them zero."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", header))
        stream.truncate(size)
    return path


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(file, header=LARGEST_HEADER + 1, size=2 * LARGEST_HEADER)
    real = os.pread
    lengths: list[int] = []
    monkeypatch.setattr(os, "pread", lambda fd, n, at: (lengths.append(n), real(fd, n, at))[1])
    with pytest.raises(
        CheckpointError, match=r"claims 25000001 bytes, more than 25000000"
    ) as caught:
        CheckpointSource(file)
    assert HEADER_VARIABLE in str(caught.value.hint)
    assert lengths == [8]


def test_the_environment_sets_the_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack({"a": entry()}, EIGHT)
    monkeypatch.setenv(HEADER_VARIABLE, str(len(content) - 17))
    with pytest.raises(CheckpointError, match="more than"):
        parse_both(file, content)
    monkeypatch.setenv(HEADER_VARIABLE, "1000")
    assert parse_both(file, content).keys() == {"a"}
    monkeypatch.setenv(HEADER_VARIABLE, "lots")
    with pytest.raises(RecipeError, match="not a number of bytes"):
        parse_both(file, content)


@pytest.mark.parametrize("value", ["[],", "{},", '"",', "1,", '{"a":0},'])
def test_a_crowded_header_is_refused_before_it_is_parsed(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(json, "loads", pytest.fail)
    text = '{"a":[' + value * 700_000 + "0]}"
    with pytest.raises(CheckpointError, match=r"values in .* bytes of JSON are refused"):
        parse_both(file, pack(text.encode()))


ACCEPTED: dict[str, tuple[bytes, dict[str, tuple[int, ...]]]] = {
    "one": (pack({"a": entry()}, EIGHT), {"a": (2,)}),
    "padded": (pack({"a": entry()}, EIGHT, pad=b"   "), {"a": (2,)}),
    "metadata": (pack({"__metadata__": {"format": "pt"}, "a": entry()}, EIGHT), {"a": (2,)}),
    "no dimensions": (pack({"a": entry(shape=[], offsets=[0, 4])}, b"\0" * 4), {"a": ()}),
    "no elements": (pack({"a": entry(shape=[0, 3], offsets=[0, 0])}), {"a": (0, 3)}),
    "no elements between": (
        pack(
            {"b": entry(offsets=[8, 16]), "e": entry(shape=[0], offsets=[8, 8]), "a": entry()},
            EIGHT * 2,
        ),
        {"a": (2,), "e": (0,), "b": (2,)},
    ),
    "eight dimensions": (pack({"a": entry(shape=[1] * 7 + [2])}, EIGHT), {"a": (1,) * 7 + (2,)}),
    "name of 512 bytes": (pack({"ä" * 256: entry()}, EIGHT), {"ä" * 256: (2,)}),
    "odd but printable": (pack({"a b/[c]": entry()}, EIGHT), {"a b/[c]": (2,)}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_well_formed_files_are_accepted_in_the_order_of_their_data(file: Path, case: str) -> None:
    content, shapes = ACCEPTED[case]
    infos = parse_both(file, content)
    assert {name: info.shape for name, info in infos.items()} == shapes
    assert list(infos) == list(shapes)
    assert load_file(file).keys() == shapes.keys()


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(view_bytes(tensor.contiguous()))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    with pytest.raises(CheckpointError):
        parse_both(file, content + b"\xff")


# --- what we write ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_header_that_we_build_is_read_by_safetensors(file: Path, dtype: torch.dtype) -> None:
    infos = [
        TensorInfo("matrix", (3, 2), dtype),
        TensorInfo("scalar", (), dtype),
        TensorInfo("empty", (0, 5), dtype),
        TensorInfo("last ü", (7,), dtype),
    ]
    header, size = build_header(infos, {"format": "pt", "note": "ü"})
    assert len(header) % 8 == 0
    assert size == sum(info.nbytes for info in infos)
    data = bytes(n % 2 for n in range(size))
    file.write_bytes(header + data)
    with safe_open(file, "pt") as theirs:
        assert theirs.metadata() == {"format": "pt", "note": "ü"}
        for info in infos:
            tensor = theirs.get_tensor(info.name)
            assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype)
    assert list(parse_both(file, header + data).values()) == infos
    assert b"".join(_bytes(CheckpointSource(file).tensor(info.name)) for info in infos) == data


@pytest.mark.parametrize("dtype", [torch.complex64, torch.quint8])
def test_a_dtype_that_the_format_lacks_is_named(dtype: torch.dtype) -> None:
    with pytest.raises(WeightsError, match=r"'odd'.*torch\.\w+"):
        build_header([TensorInfo("odd", (1,), dtype)], {})


def test_files_of_safetensors_are_read_with_the_same_bytes(file: Path) -> None:
    tensors = {
        f"t{n}": torch.arange(24).reshape(2, 3, 4).to(dtype)
        for n, dtype in enumerate(DTYPES.values())
    }
    save_file(tensors, file, metadata={"format": "pt"})
    source = CheckpointSource(file)
    assert source.infos.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert _bytes(source.tensor(name)) == _bytes(tensor)


def test_an_info_counts_its_elements_and_bytes() -> None:
    info = TensorInfo("a", (3, 4), torch.bfloat16)
    assert (info.numel, info.nbytes) == (12, 24)
    assert TensorInfo("a", (), torch.float64).nbytes == 8
    assert TensorInfo("a", (5, 0), torch.float64).nbytes == 0
    assert math.prod(()) == 1


# --- the index ----------------------------------------------------------------------------------


def test_nothing_is_opened_when_an_index_is_hostile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "good.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path.parent / "secret.safetensors")
    index = {"weight_map": {"a": "good.safetensors", "b": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda *arguments, **keys: (opened.append(arguments), real(*arguments, **keys))[1],
    )
    with pytest.raises(CheckpointError):
        CheckpointSource(tmp_path)
    assert [arguments for arguments in opened if "safetensors'" in repr(arguments)] == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        b'{"weight_map": {"a": "x.safetensors"}, "weight_map": {"a": "x.safetensors"}}',
        b'{"weight_map": ' + b"[" * 50_000,
        b"\xff",
    ],
)
def test_malformed_indexes_are_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError, match="the index"):
        parse_index(text, path="the index")


def test_a_good_index_is_a_mapping() -> None:
    text = b'{"metadata": {"total_size": 3}, "weight_map": {"a": "x.safetensors"}}'
    assert parse_index(text, path="") == {"a": "x.safetensors"}


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='{}[]":,-0123456789.eE \\utrfnalsNI', max_size=30))
def test_any_json_is_an_object_or_a_checkpoint_error(text: str) -> None:
    try:
        value = parse_json(text.encode(), path="fuzz")
    except CheckpointError as error:
        assert error.message.startswith("fuzz: ")  # noqa: PT017 - any other exception fails the test
    else:
        assert isinstance(value, dict)
