"""Mutants of good files: refused with a `CheckpointError`, or read as safetensors reads them.

Every push tries 20,000 headers and as many indexes, `nox -s fuzz` a hundred times as many. A round
is named by its seed, so a finding can be repeated; what was found stays in `corpus/`, whose files
are mutated further.
"""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import SafetensorError, deserialize, safe_open

from fusion_core.errors import CheckpointError
from fusion_core.weights import CheckpointSource, TensorInfo
from fusion_core.weights.reading import header as bounded
from fusion_core.weights.reading.format import (
    DTYPE_NAMES,
    DTYPES,
    build_header,
    parse_header,
    parse_index,
)
from fusion_core.weights.source import view_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Header = dict[str, Any]

ROUNDS = 20
MUTANTS = int(os.environ.get("FUSION_FUZZ_MUTANTS", "10000")) // ROUNDS
SEED = os.environ.get("FUSION_FUZZ_SEED", "2026")
CORPUS = Path(__file__).parent / "corpus"
SEEDS = sorted(CORPUS.rglob("*.safetensors"))


def _check_message(error: CheckpointError) -> None:
    assert error.message.startswith("mutant")
    assert error.message.isprintable()
    assert len(error.message) < 2000


class Scratch:
    """One file, rewritten for every mutant: making 20,000 files takes longer than parsing them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def read(self, content: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
        """Read a file as this project does: name -> dtype, shape, bytes; None if it is refused."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        try:
            header = bounded.Header(self._descriptor, self.path)
            entries, _ = parse_header(header, header.size, self.path.name, path="mutant")
        except CheckpointError as error:
            _check_message(error)
            return None
        return {
            name: (
                DTYPE_NAMES[tensor.info.dtype],
                list(tensor.info.shape),
                content[tensor.offset : tensor.offset + tensor.info.nbytes],
            )
            for name, tensor in entries.items()
        }

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    file = Scratch(tmp_path / "mutant.safetensors")
    yield file
    file.close()


# --- good files, and what is done to them -------------------------------------------------------


def good_file(rng: random.Random) -> tuple[Header, bytes]:
    """Return the header, as a mapping, and the data of a well-formed file."""
    dtypes = rng.sample(list(DTYPES.values()), rng.randint(1, 4))
    shapes = [tuple(rng.choice([0, 1, 2, 3]) for _ in range(rng.randrange(4))) for _ in dtypes]
    infos = [
        TensorInfo(f"layer.{n}", shape, dtype)
        for n, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    header, size = build_header(infos, {"format": "pt"} if rng.random() < 0.5 else {})
    return json.loads(header[8:]), bytes(rng.randrange(2) for _ in range(size))


ODD: list[Any] = [
    0, 1, -1, 7, 8, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, 1.5, 8.0, -0.0, 1e300, True,
    None, "", "F32", "F64", "BF16", "BOOL", "U16", "U64", "C64", "F4", "I8", "i8", "8", [], [0],
    [0, 0], [0, 8], [8, 0], [2, 0], [-1], [1] * 8, [1] * 9, [[1]], [2**32, 2**32], [2**62, 4, 0],
    {}, {"a": 1}, "\ud800", "é", "\x00", "\x1b[31m", "\u202e", "x" * 512, "x" * 513,
]  # fmt: skip
NAMES = ["", "new", "a\n", "\ud800", "é", "x" * 600, "x" * 512, "é" * 257, "a\x1b[2J", "../x", "__"]
FIELDS = ["dtype", "shape", "data_offsets", "extra", "__metadata__", ""]
BYTES = b'{}[]",:0123456789-+.eE \t\r\n\\utrfnalse\x00\x1f\x7f\x80\xc0\xed\xff'
PIECES = [
    b" ", b"-", b"0", b"00", b"1", b",", b'"', b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"e0",
    b".0", b"\n", b"\t", b"[", b"{", b"[" * 2000, b"9" * 30, b"9" * 5000, b"\\/", b"\\", b"NaN",
    b"null", b"//", b"/**/", b'"a":1,', b'"dtype":"F32",', b'"shape":[],', b"\xc3\xa9",
    b"\xed\xa0\x80",
]  # fmt: skip


def _entry(rng: random.Random, header: Header) -> Header | None:
    """Return a tensor's description that can be changed, if one is left."""
    entries = [value for name, value in header.items() if name != "__metadata__"]
    entry = rng.choice(entries) if entries else None
    whole = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    lists = whole and isinstance(entry["shape"], list) and isinstance(entry["data_offsets"], list)
    return entry if lists and entry["data_offsets"] else None


def replace_entry(rng: random.Random, header: Header) -> None:
    header[rng.choice([*header, "new", "__metadata__"])] = rng.choice(ODD)


def replace_field(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        entry[rng.choice(FIELDS)] = rng.choice(ODD)


def drop_field(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        entry.pop(rng.choice(list(entry)))


def rename(rng: random.Random, header: Header) -> None:
    name = rng.choice(list(header))
    header[rng.choice(NAMES)] = header.pop(name)


def repeat(rng: random.Random, header: Header) -> None:
    header[rng.choice(NAMES)] = header[rng.choice(list(header))]


def drop(rng: random.Random, header: Header) -> None:
    header.pop(rng.choice(list(header)))


def move_offset(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        offsets = entry["data_offsets"]
        at = rng.randrange(len(offsets))
        if isinstance(offsets[at], int):
            offsets[at] += rng.choice([-8, -4, -1, 1, 4, 8, 2**32, 2**64])


def slide(rng: random.Random, header: Header) -> None:
    """Move a whole tensor: its size still fits its shape."""
    if entry := _entry(rng, header):
        step = rng.choice([-8, -1, 1, 8])
        entry["data_offsets"] = [
            offset + step if isinstance(offset, int) else offset for offset in entry["data_offsets"]
        ]


def reshape(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        entry["shape"].insert(
            rng.randrange(len(entry["shape"]) + 1), rng.choice([0, 1, 1, 1, 2, 2**40])
        )


def transpose(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        rng.shuffle(entry["shape"])


def retype(rng: random.Random, header: Header) -> None:
    if entry := _entry(rng, header):
        entry["dtype"] = rng.choice(list(DTYPE_NAMES.values()))


def swap(rng: random.Random, header: Header) -> None:
    one, other = rng.choice(list(header)), rng.choice(list(header))
    header[one], header[other] = header[other], header[one]


def shuffle(rng: random.Random, header: Header) -> None:
    items = list(header.items())
    rng.shuffle(items)
    header.clear()
    header.update(items)


def annotate(rng: random.Random, header: Header) -> None:
    header["__metadata__"] = {rng.choice(NAMES): rng.choice(["", "é", "\x00", "\U0001f600", "x"])}


def add_empty(rng: random.Random, header: Header) -> None:
    """Add a tensor without elements, at a place that may be inside another."""
    entry = _entry(rng, header)
    at = entry["data_offsets"][-1] if entry and rng.random() < 0.5 else rng.choice([0, 1, 4, 8])
    shape = rng.choice([[0], [0, 3], [2**40, 0], [2**31, 2**31, 0], [0] * 8])
    header[rng.choice(NAMES)] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at]}


STRUCTURAL: list[Callable[[random.Random, Header], None]] = [
    replace_entry, replace_field, replace_field, drop_field, rename, repeat, drop, move_offset,
    slide, reshape, transpose, retype, swap, shuffle, annotate, add_empty,
]  # fmt: skip


def spell(rng: random.Random, header: Header) -> bytes:
    """Write a header as one of the many texts that mean it."""
    separators = rng.choice([(",", ":"), (", ", ": "), (",\n", ":\t")])
    text = json.dumps(header, ensure_ascii=rng.random() < 0.6, separators=separators)
    return text.encode("utf-8", "surrogatepass")


def scratch_text(rng: random.Random, text: bytes) -> bytes:
    """Change, cut or insert a few bytes of a text."""
    changed = bytearray(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.choice(BYTES)])
            case 1:
                changed[at:at] = rng.choice(PIECES)
            case 2:
                del changed[at : at + rng.choice([1, 1, 2, 8])]
            case 3:  # repeat a part: keys, descriptions, brackets
                changed[at:at] = changed[at : at + rng.randrange(1, 60)]
    return bytes(changed)


def frame(rng: random.Random, text: bytes, data: bytes) -> bytes:
    """Put length, header and data together, now and then not as they should be."""
    if rng.random() < 0.3:
        text += rng.choice([b" ", b"       ", b"\0", b"\n", b"\t ", b"{}"])
    length = len(text)
    match rng.randrange(12):
        case 0:
            data = data[: rng.randrange(len(data) + 1)]
        case 1:
            data += bytes(rng.choice([1, 4, 8]))
        case 2:
            length = max(0, length + rng.choice([-8, -2, -1, 1, 2, 8, 2**32, 2**62]))
    return struct.pack("<Q", length) + text + data


def mutant(rng: random.Random) -> bytes:
    """Break a good file in ways that know its structure; some mutants are still good files."""
    if rng.random() < 0.05:
        return scratch_text(rng, rng.choice(SEEDS).read_bytes())
    header, data = good_file(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if header:
            rng.choice(STRUCTURAL)(rng, header)
            header = json.loads(json.dumps(header))  # nothing is shared between its parts
    text = spell(rng, header)
    if rng.random() < 0.35:
        text = scratch_text(rng, text)
    return frame(rng, text, data)


# --- headers ------------------------------------------------------------------------------------


def read_as_safetensors(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Read a file as safetensors does."""
    return {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for name, tensor in deserialize(content)
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_mutants_are_refused_or_read_as_safetensors_reads_them(
    scratch: Scratch, number: int
) -> None:
    rng = random.Random(f"{SEED}-{number}")
    taken = 0
    for _ in range(MUTANTS):
        content = mutant(rng)
        ours = scratch.read(content)
        if ours is None:
            continue
        taken += 1
        try:
            assert ours == read_as_safetensors(content), content
        except SafetensorError as error:
            pytest.fail(f"we accept what safetensors refuses ({error}): {content!r}")
        if taken % 20 == 0:
            _check_opened(scratch.path, content)
    assert taken > MUTANTS // 10  # mutants that are still files: otherwise nothing was compared


def _check_opened(path: Path, content: bytes) -> None:
    """Compare what the two libraries hand to a program that opens the file."""
    names = [name for name, _ in deserialize(content)]
    if not names:
        with pytest.raises(CheckpointError, match="holds no tensors"):
            CheckpointSource(path)
        return
    source = CheckpointSource(path)
    with safe_open(path, "pt") as opened:
        assert set(opened.keys()) == set(source.infos) == set(names)
        for name in names:
            tensor, ours = opened.get_tensor(name), source.tensor(name)
            assert (tensor.shape, tensor.dtype) == (ours.shape, ours.dtype)
            assert bytes(view_bytes(tensor.contiguous())) == bytes(view_bytes(ours))


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_decisions_on_the_corpus_are_stable(scratch: Scratch, path: Path) -> None:
    content = path.read_bytes()
    ours = scratch.read(content)
    assert (ours is not None) == (path.parent.name == "accepted")
    assert ours is None or ours == read_as_safetensors(content)


def test_the_corpus_exists() -> None:
    kinds = {path.parent.name for path in SEEDS}
    assert kinds == {"accepted", "refused"}


# --- indexes ------------------------------------------------------------------------------------

FILES = [
    "model-00001-of-00002.safetensors", "a.safetensors", "../a.safetensors", "/a.safetensors",
    "b/a.safetensors", "..", ".",
    "", "a.bin", "a.safetensors\x00", "a.safetensors\n", ".safetensors", "a.safetensors/",
    "é.safetensors", "\ud800.safetensors", "\u202e.safetensors", "~/a.safetensors",
    "a" * 600 + ".safetensors",
]  # fmt: skip


def index_mutant(rng: random.Random) -> bytes:
    weights: Any = {f"layer.{n}": rng.choice(FILES[:2]) for n in range(rng.randint(1, 4))}
    if rng.random() < 0.6:
        weights[rng.choice(list(weights))] = rng.choice([*FILES, *ODD])
    index: Any = {"metadata": rng.choice([{}, {"total_size": 8}, *ODD]), "weight_map": weights}
    if rng.random() < 0.1:
        index[rng.choice(list(index))] = rng.choice(ODD)
    text = spell(rng, index)
    return scratch_text(rng, text) if rng.random() < 0.5 else text


@pytest.mark.parametrize("number", range(ROUNDS))
def test_mutant_indexes_are_refused_or_name_plain_files(tmp_path: Path, number: int) -> None:
    rng = random.Random(f"{SEED}-index-{number}")
    taken = 0
    for _ in range(MUTANTS):
        text = index_mutant(rng)
        try:
            index = parse_index(text, path="mutant")
        except CheckpointError as error:
            _check_message(error)
            continue
        taken += 1
        assert index == json.loads(text)["weight_map"]
        for file in index.values():
            assert os.path.normpath(tmp_path / file) == str(tmp_path / file), file
            assert (tmp_path / file).parent == tmp_path
            assert not set(file) & set("/\0\n"), file
            assert file.endswith(".safetensors")
    assert taken > MUTANTS // 10
