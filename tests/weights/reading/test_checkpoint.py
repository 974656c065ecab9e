from __future__ import annotations

import copy
import errno
import json
import os
import pickle
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
    by_dtype = {
        str(dtype): torch.randint(0, 2, (5, 7), generator=generator).to(dtype)
        for dtype in DTYPES.values()
    }
    return {
        **by_dtype,
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


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "sharded", "file"])
def test_every_tensor_is_read_to_the_bit(request: pytest.FixtureRequest, kind: str) -> None:
    path: Path = request.getfixturevalue("single" if kind == "file" else kind)
    source = CheckpointSource(path / "model.safetensors" if kind == "file" else str(path))
    assert source.infos.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert same(source.tensor(name), tensor), name


def test_a_range_is_read_exactly(single: Path) -> None:
    source = CheckpointSource(single)
    vector = tensors()["vector"]
    for start, stop in ((0, 300), (0, 0), (299, 300), (300, 300), (17, 113)):
        assert torch.equal(source.read("vector", start, stop), vector[start:stop])


def test_a_file_has_what_is_read_where_it_says(sharded: Path) -> None:
    source = CheckpointSource(sharded)
    descriptor, offset = source.file_range("vector", 20) or (-1, -1)
    stored = torch.frombuffer(bytearray(os.pread(descriptor, 40, offset)), dtype=torch.float32)
    assert same(stored, source.read("vector", 20, 30))


def test_a_format_that_reads_itself_names_no_file(single: Path) -> None:
    class Negated(CheckpointSource):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            return -super().read(name, start, stop)

    assert Negated(single).file_range("vector", 0) is None


def test_short_reads_are_continued(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CheckpointSource(single)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
    assert torch.equal(source.tensor("vector"), tensors()["vector"])


def test_too_many_open_files_are_an_error_with_a_remedy(
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


@pytest.mark.parametrize("clone", [copy.copy, lambda source: pickle.loads(pickle.dumps(source))])
def test_copies_open_the_files_themselves(sharded: Path, clone: object) -> None:
    source = CheckpointSource(sharded)
    other: CheckpointSource = clone(source)  # type: ignore[operator]
    del source
    assert torch.equal(other.tensor("vector"), tensors()["vector"])


def test_files_are_closed_when_a_source_is_deleted(single: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        CheckpointSource(single)
    for _ in range(20):
        with pytest.raises(CheckpointError):
            CheckpointSource(single / "nothing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_describes_itself_and_its_files(sharded: Path) -> None:
    source = CheckpointSource(sharded)
    assert source.describe() == str(sharded)
    files = source.origin.files
    assert files.keys() == {"one.safetensors", "two.safetensors"}
    for name, facts in files.items():
        assert facts["bytes"] == (sharded / name).stat().st_size
        assert len(facts["header_sha256"]) == 64
    assert files == CheckpointSource(sharded).origin.files


# --- what is refused ----------------------------------------------------------------------------


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


def test_a_tensor_that_the_index_does_not_list_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["scalar"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'scalar' is not listed"):
        CheckpointSource(sharded)


def test_a_tensor_that_only_the_index_has_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = "one.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'ghost' is not in 'one\.safetensors'"):
        CheckpointSource(sharded)


def test_a_file_without_tensors_and_a_link_that_leads_out_are_refused(tmp_path: Path) -> None:
    empty, directory = tmp_path / "empty.safetensors", tmp_path / "directory"
    save_file({}, empty)
    directory.mkdir()
    (directory / "model.safetensors").symlink_to(empty)
    for path, message in (
        (empty, "no tensors"),
        (directory, "leads out"),
        (tmp_path, "holds neither"),
    ):
        with pytest.raises(CheckpointError, match=message):
            CheckpointSource(path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        CheckpointSource(tmp_path / "pipe.safetensors")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors does not exist.* 1 of 2 shards"):
        CheckpointSource(sharded)
