from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.errors import CheckpointError, IntegrityError
from fusion_core.weights import CheckpointSource
from fusion_core.weights.reading.format import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {
        str(dtype): torch.randint(0, 2, (5, 7), generator=generator).to(dtype)
        for dtype in DTYPES.values()
    }
    return {
        **found,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "vector": torch.randn(300, generator=generator),
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors agree in shape, dtype and every bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    directory = tmp_path / "single"
    directory.mkdir()
    save_file(tensors(), directory / "model.safetensors")
    return directory


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = tmp_path / "sharded"
    directory.mkdir()
    names = list(tensors())
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors()[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def change_index(directory: Path, change: dict[str, str | None]) -> None:
    index = json.loads((directory / INDEX).read_text())
    for name, file in change.items():
        if file is None:
            index["weight_map"].pop(name)
        else:
            index["weight_map"][name] = file
    (directory / INDEX).write_text(json.dumps(index))


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "sharded", "file"])
def test_every_tensor_is_read_to_the_bit(request: pytest.FixtureRequest, kind: str) -> None:
    path: Path = request.getfixturevalue("single" if kind == "file" else kind)
    source = CheckpointSource(path / "model.safetensors" if kind == "file" else str(path))
    assert source.infos.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert same(source.tensor(name), tensor), name


def test_a_range_is_that_range(single: Path) -> None:
    source = CheckpointSource(single)
    vector = tensors()["vector"]
    for start, stop in ((0, 300), (0, 0), (299, 300), (300, 300), (17, 113)):
        assert torch.equal(source.read("vector", start, stop), vector[start:stop])


def test_short_reads_are_continued(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CheckpointSource(single)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
    assert torch.equal(source.tensor("vector"), tensors()["vector"])


def test_too_many_open_files_are_told_the_way_out(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(CheckpointError, match="Too many open files") as caught:
        CheckpointSource(single)
    assert "ulimit -n" in (caught.value.hint or "")


def test_a_failing_disk_is_a_checkpoint_error(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CheckpointSource(single)

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: Input/output"):
        source.tensor("vector")
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(CheckpointError, match="Input/output"):
        CheckpointSource(single)


def test_threads_may_share_a_source(sharded: Path) -> None:
    source = CheckpointSource(sharded)
    names = list(tensors()) * 20
    with ThreadPoolExecutor(4) as executor:
        read = list(executor.map(source.tensor, names))
    assert all(same(one, tensors()[name]) for one, name in zip(read, names, strict=True))


@pytest.mark.parametrize("clone", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_open_the_files_themselves(sharded: Path, clone: object) -> None:
    source = CheckpointSource(sharded)
    other: CheckpointSource = clone(source)  # type: ignore[operator]
    del source
    assert torch.equal(other.tensor("vector"), tensors()["vector"])


def test_another_process_reads_a_pickled_source(single: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(pickle.dumps(CheckpointSource(single)))
    code = (
        "import pickle, sys; source = pickle.load(open(sys.argv[1], 'rb'));"
        "print(source.tensor('vector').double().sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "source")], capture_output=True, check=True
    )
    assert float(done.stdout) == tensors()["vector"].double().sum().item()


def test_files_are_closed_when_a_source_goes(single: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        CheckpointSource(single)
    for _ in range(20):
        with pytest.raises(CheckpointError):
            CheckpointSource(single / "nothing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_says_what_it_is(sharded: Path) -> None:
    source = CheckpointSource(sharded)
    assert source.describe() == str(sharded)
    files = dict(source.files())
    assert files.keys() == {"one.safetensors", "two.safetensors"}
    for name, facts in files.items():
        assert facts["bytes"] == (sharded / name).stat().st_size
        assert len(facts["header_sha256"]) == 64
    assert files == dict(CheckpointSource(sharded).files())


# --- what is refused ----------------------------------------------------------------------------


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        CheckpointSource(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds neither"):
        CheckpointSource(tmp_path)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    for name in ("pytorch_model.bin", "model.pt", "x.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
            CheckpointSource(tmp_path / name)
    renamed = tmp_path / "model.safetensors"
    renamed.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        CheckpointSource(tmp_path)
    assert not canary.exists()


def test_an_empty_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        CheckpointSource(tmp_path)


@pytest.mark.parametrize("where", ["header", "data"])
def test_a_truncated_file_is_refused_wherever_it_ends(single: Path, where: str) -> None:
    file = single / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    ends = range(0, header, 13) if where == "header" else range(header, len(content), 29)
    for end in ends:
        file.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            CheckpointSource(single)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(single: Path) -> None:
    source = CheckpointSource(single)
    file = single / "model.safetensors"
    size = file.stat().st_size
    for end in (size - 1, size // 2, 0):
        os.truncate(file, end)
        with pytest.raises(
            IntegrityError, match=r"model\.safetensors changed .* ends inside"
        ) as caught:
            for name in source.infos:
                source.tensor(name)
        assert caught.value.exit_code == 8


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors does not exist.* 1 of 2 shards"):
        CheckpointSource(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    os.truncate(sharded / "two.safetensors", 200)
    with pytest.raises(CheckpointError, match=r"two\.safetensors"):
        CheckpointSource(sharded)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vector": "one.safetensors"}, "'vector'"),
        ({"scalar": None}, "'scalar' is not listed"),
        ({"ghost": "one.safetensors"}, "'ghost' is not in 'one.safetensors'"),
        ({"ghost": "three.safetensors"}, "three.safetensors does not exist"),
    ],
)
def test_an_index_must_fit_its_shards(
    sharded: Path, change: dict[str, str | None], problem: str
) -> None:
    home = json.loads((sharded / INDEX).read_text())["weight_map"]["vector"]
    if change == {"vector": home}:
        change = {"vector": "two.safetensors"}
    change_index(sharded, change)
    with pytest.raises(CheckpointError, match=problem):
        CheckpointSource(sharded)


def test_only_regular_files_are_opened(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        CheckpointSource(sharded)
    (sharded / "two.safetensors").rmdir()
    os.mkfifo(sharded / "two.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        CheckpointSource(sharded)


def test_a_huge_index_is_refused_without_being_read(sharded: Path) -> None:
    with (sharded / INDEX).open("wb") as stream:
        stream.truncate(2**40)  # sparse; reading it would fail for lack of memory
    with pytest.raises(CheckpointError, match="an index of"):
        CheckpointSource(sharded)
