"""A hundred ways to tamper with an output, all of which `fuse verify` finds and names."""

from __future__ import annotations

import hashlib
import os
import shutil
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tiny_outputs import read_statement, write_statement

from fusion_core.errors import IntegrityError
from fusion_publish.verification.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Tamper = Callable[[Path], None]
    #: a description, the change, and the files that a verification must name
    Case = tuple[str, Tamper, Sequence[str]]

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
FILES = [
    *(*SHARDS, "config.json", "model.safetensors.index.json", "provenance.json"),
    *("recipe.yaml", "report.json"),
]


def flip(name: str, share: float, bit: int) -> Tamper:
    def change(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[int(share * (len(data) - 1))] ^= 1 << bit
        (directory / name).write_bytes(data)

    return change


def rewrite(name: str, edit: Callable[[bytes], bytes]) -> Tamper:
    def change(directory: Path) -> None:
        (directory / name).write_bytes(edit((directory / name).read_bytes()))

    return change


def swap(one: str, two: str) -> Tamper:
    def change(directory: Path) -> None:
        contents = (directory / one).read_bytes(), (directory / two).read_bytes()
        (directory / two).write_bytes(contents[0])
        (directory / one).write_bytes(contents[1])

    return change


def exchange_tensors(directory: Path) -> None:
    """Exchange the values of two equally shaped tensors, and nothing else."""
    files = sorted(directory.glob("*.safetensors"))
    data = {path: path.read_bytes() for path in files if b"weight" in path.read_bytes()}
    (one, first), (two, second) = data.items()
    ends = len(first) - 128, len(second) - 128
    one.write_bytes(first[: ends[0]] + second[ends[1] :])
    two.write_bytes(second[: ends[1]] + first[ends[0] :])


def edit_record(edit: Callable[[dict[str, Any]], None]) -> Tamper:
    """Change the provenance, and its checksum with it."""

    def change(directory: Path) -> None:
        statement = read_statement(directory)
        edit(statement)
        write_statement(directory, statement)

    return change


def reverse_digits(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(statement: dict[str, Any]) -> None:
        entry = next(entry for entry in statement["subject"] if entry["name"] == name)
        entry["digest"] = {kind: digest[::-1] for kind, digest in entry["digest"].items()}

    return edit


def drop_subject(statement: dict[str, Any]) -> None:
    statement["subject"] = [e for e in statement["subject"] if e["name"] != "config.json"]


def change_all_tensors_digest(statement: dict[str, Any]) -> None:
    outputs = statement["predicate"]["outputs"]
    outputs["tensors_blake3"] = outputs["tensors_blake3"][::-1]


def change_tensor_digest(statement: dict[str, Any]) -> None:
    tensors = statement["predicate"]["outputs"]["tensors"][SHARDS[1]]
    tensors.update({name: digest[::-1] for name, digest in tensors.items()})


def drop_tensors(statement: dict[str, Any]) -> None:
    statement["predicate"]["outputs"]["tensors"] = {}


def list_cases() -> Iterator[Case]:
    for name in FILES:
        for number, share in enumerate((0, 0.07, 0.31, 0.5, 0.77, 0.93, 1)):
            yield f"flip a bit at {share:.0%} of {name}", flip(name, share, number), [name]
        yield f"truncate {name}", rewrite(name, lambda data: data[:-1]), [name]
        yield f"append to {name}", rewrite(name, lambda data: data + b" "), [name]
        yield f"empty {name}", rewrite(name, lambda _: b""), [name]
        yield f"delete {name}", lambda path, name=name: (path / name).unlink(), [name]
    for name in ("config.json", SHARDS[0], "recipe.yaml"):
        renamed = f"other-{name}"
        move = lambda path, name=name, renamed=renamed: (path / name).rename(path / renamed)  # noqa: E731
        yield f"rename {name}", move, [name, renamed]
    for one, two in (*combinations(SHARDS, 2), ("config.json", "report.json")):
        yield f"swap {one} and {two}", swap(one, two), [one, two]
    for name in ("pytorch_model.bin", "modeling.py", "adapter/x.safetensors", "outcomes.json"):
        yield f"add {name}", lambda path, name=name: _add(path / name), [name]
    for name in (SHARDS[0], "config.json", "report.json"):
        yield f"link {name}", lambda path, name=name: _link_out(path / name), [name]
    for name in ("config.json", "provenance.json"):
        yield f"replace {name} by a pipe", lambda path, name=name: _make_pipe(path / name), [name]
    yield "exchange two tensors", exchange_tensors, ["weight"]
    dtype = rewrite(SHARDS[0], lambda data: data.replace(b'"F32"', b'"I32"'))
    yield "change a dtype", dtype, [SHARDS[0]]
    index = rewrite("model.safetensors.index.json", lambda data: data.replace(b"00001", b"00002"))
    yield "reassign shards", index, ["model.safetensors.index.json"]
    edited = rewrite("config.json", lambda data: data.replace(b": 2", b": 3"))
    yield "edit a key of config.json", edited, ["config.json"]
    for name in FILES:
        if name not in {"provenance.json", "report.json"}:
            yield f"record another digest of {name}", edit_record(reverse_digits(name)), [name]
    yield "unlist a file", edit_record(drop_subject), ["config.json"]
    all_tensors = edit_record(change_all_tensors_digest)
    yield "record another digest of all tensors", all_tensors, ["provenance.json"]
    yield "record another digest of a tensor", edit_record(change_tensor_digest), [SHARDS[1]]
    yield "drop the digests of tensors", edit_record(drop_tensors), ["provenance.json"]


def _add(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")


def _link_out(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.safetensors"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CASES = list(list_cases())


def test_there_are_a_hundred_ways() -> None:
    assert len(CASES) > 100


def find_faults(directory: Path) -> str:
    """Return the faults of a directory, or the error about its provenance."""
    try:
        return repr(verify(directory, subject="copy").faults)
    except IntegrityError as error:
        return str(error)


def test_every_way_to_tamper_is_found_and_named(output: Path, tmp_path: Path) -> None:
    assert find_faults(output) == "[]"
    missed = []
    for description, tamper, names in CASES:
        copy = tmp_path / "copy"
        shutil.copytree(output, copy)
        tamper(copy)
        faults = find_faults(copy)
        missed += [f"{description}: {name} not in {faults}" for name in names if name not in faults]
        shutil.rmtree(copy)
        (tmp_path / "elsewhere.safetensors").unlink(missing_ok=True)
    assert missed == []


def test_a_consistent_forgery_passes(output: Path) -> None:
    """Digests cannot find a change of a file and of every record of it. The docs say so."""
    (output / "config.json").write_text("{}")
    statement = read_statement(output)
    entry = next(entry for entry in statement["subject"] if entry["name"] == "config.json")
    entry["digest"]["sha256"] = hashlib.sha256(b"{}").hexdigest()
    write_statement(output, statement)
    assert find_faults(output) == "[]"
