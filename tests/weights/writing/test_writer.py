from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from signed import sign

from fusion_core.errors import (
    BrokenPluginError,
    CheckpointError,
    DiskError,
    OutputError,
    RecipeError,
)
from fusion_core.progress import Progress
from fusion_core.weights import (
    CheckpointSource,
    StateDictSource,
    WeightSource,
    materialise,
    stage_output,
)
from fusion_core.weights.writing import _fault as fault
from fusion_core.weights.writing import ownership, workspace, writer
from fusion_core.weights.writing.disk import exchange_atomically, write_durably
from fusion_core.weights.writing.output_path import check_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion_core.progress import Advance

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(4)
    return {
        "a": torch.randn(30, 10, generator=generator),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "n": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "z": torch.randn(300, generator=generator).half(),
    }


def write(
    state: State | WeightSource, output: Path, *, shard_size: int = 10**9, overwrite: bool = False
) -> None:
    source = state if isinstance(state, WeightSource) else StateDictSource(state)
    with stage_output(output, overwrite=overwrite) as staging:
        materialise(source, staging, shard_size=shard_size)
        staging.add("config.json", b"{}")
        staging.commit(overwrite=overwrite)


def assert_holds(output: Path, state: State) -> None:
    source = CheckpointSource(output)
    assert source.infos.keys() == state.keys()
    for name, tensor in state.items():
        written = source.tensor(name)
        assert written.dtype is tensor.dtype
        assert torch.equal(written, tensor), name


def read_tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


# --- what is written ----------------------------------------------------------------------------


def test_safetensors_loads_written_model(state: State, tmp_path: Path) -> None:
    write(state, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("shard_size", [1, 600, 1200, 1300, 10_000])
def test_sharding_changes_no_tensor(state: State, tmp_path: Path, shard_size: int) -> None:
    write(state, tmp_path / "out", shard_size=shard_size)
    assert_holds(tmp_path / "out", state)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    loaded: State = {}
    for shard in shards:
        part = load_file(shard)
        assert not loaded.keys() & part.keys()
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= shard_size
        loaded |= part
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    index = tmp_path / "out" / "model.safetensors.index.json"
    if len(shards) == 1:
        assert shards[0].name == "model.safetensors"
        assert not index.exists()
    else:
        expected = [
            f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
        ]
        assert [shard.name for shard in shards] == expected
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
        assert content["weight_map"].keys() == state.keys()


def test_pieces_may_be_written_in_any_order(state: State, tmp_path: Path) -> None:
    source = StateDictSource(state)
    with stage_output(tmp_path / "out") as staging:
        staging.lay_out(list(source.infos.values()), shard_size=500)
        pieces = [
            (info, start, min(start + 13, info.numel))
            for info in reversed(source.infos.values())
            for start in reversed(range(0, info.numel, 13))
        ]
        with ThreadPoolExecutor(4) as executor:
            list(
                executor.map(
                    lambda piece: staging.shards.write(
                        piece[0], piece[1], source.read(piece[0].name, *piece[1:])
                    ),
                    pieces,
                )
            )
        staging.finish_shards()
        staging.commit(overwrite=False)
    assert_holds(tmp_path / "out", state)


def test_non_contiguous_view_is_written_in_order(tmp_path: Path) -> None:
    turned = torch.arange(12.0).reshape(3, 4).T
    source = StateDictSource({"x": turned})
    with stage_output(tmp_path / "out") as staging:
        staging.lay_out(list(source.infos.values()), shard_size=10**9)
        staging.shards.write(source.infos["x"], 0, turned)
        staging.finish_shards()
        staging.commit(overwrite=False)
    assert_holds(tmp_path / "out", {"x": turned})


def test_progress_counts_every_byte(state: State, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(Progress):
        @contextmanager
        def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
            assert (label, unit) == ("merge", "B")
            seen.append(total)
            yield lambda count, **_: seen.append(-count)

    with stage_output(tmp_path / "out") as staging:
        materialise(StateDictSource(state), staging, shard_size=10**9, progress=Counting())
    assert sum(seen) == 0
    assert seen[0] == sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_modes_follow_umask(state: State, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(state, tmp_path / "out", shard_size=600)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_missing_parents_are_created(state: State, tmp_path: Path) -> None:
    write(state, tmp_path / "some" / "where" / "out")
    assert_holds(tmp_path / "some" / "where" / "out", state)


def test_unfinished_shard_is_not_readable(state: State, tmp_path: Path) -> None:
    source = StateDictSource(state)
    with stage_output(tmp_path / "out") as staging:
        staging.lay_out(list(source.infos.values()), shard_size=10**9)
        for info in source.infos.values():
            staging.shards.write(info, 0, source.read(info.name, 0, info.numel))
        with pytest.raises(CheckpointError):
            CheckpointSource(staging.directory)
        staging.finish_shards()
        assert_holds(staging.directory, state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda stop: torch.zeros(stop - 1), r"\d+ elements"),
        (lambda stop: torch.zeros(stop + 1), r"\d+ elements"),  # would overwrite the next tensor
        (lambda stop: torch.zeros(stop, dtype=torch.int32), r"torch\.int32 elements"),
        (lambda stop: torch.zeros(stop, dtype=torch.complex64), r"torch\.complex64 elements"),
        (lambda stop: [0.0] * stop, "a list instead"),
    ],
)
def test_source_with_wrong_values_raises(
    state: State, tmp_path: Path, make: Callable[[int], Any], message: str
) -> None:
    class Wrong(StateDictSource):
        def read(self, name: str, start: int, stop: int) -> Any:
            del name, start
            return make(stop)

    expected = rf"'mine' gave {message} of the \d+ from 0 on of tensor '\w+'"
    with pytest.raises(BrokenPluginError, match=expected):
        write(Wrong({"a": state["a"]}, label="'mine'"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


# --- the output's path --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "file", "link", "broken link"])
def test_existing_path_is_not_touched(state: State, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("data")
    if kind == "directory":
        output.mkdir()
        (output / "precious").write_text("data")
    elif kind == "file":
        output.write_text("data")
    else:
        output.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    before = read_tree(tmp_path)
    with pytest.raises(OutputError) as caught:
        write(state, output)
    assert caught.value.exit_code == 7
    if kind != "directory":
        with pytest.raises(OutputError):
            write(state, output, overwrite=True)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_mount_point_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OutputError, match="disk is a mount point") as caught:
        check_output(tmp_path / "disk", overwrite=overwrite)
    assert "Name a directory in it" in str(caught.value)
    check_output(tmp_path / "disk" / "out", overwrite=overwrite)


@pytest.mark.parametrize("function", ["exists", "is_symlink", "iterdir"])
def test_unreadable_output_raises_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, function, refused)
    with pytest.raises(DiskError, match="out cannot be written: Permission denied"):
        check_output(tmp_path / "out", overwrite=False)


def test_unreadable_parent_raises_disk_error(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.exists

    def exists(path: Path) -> bool:
        if path == tmp_path / "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(DiskError, match="out cannot be written: Permission denied"):
        write(state, tmp_path / "locked" / "out")


def test_too_long_name_raises_disk_error(state: State, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="File name too long"):
        write(state, tmp_path / ("x" * 300))


def test_empty_directory_is_a_valid_output(state: State, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(state, tmp_path / "out")
    assert_holds(tmp_path / "out", state)


def test_directory_filled_during_run_is_not_touched(state: State, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(OutputError, match="already exists"), stage_output(output) as staging:
        materialise(StateDictSource(state), staging, shard_size=10**9)
        output.mkdir()
        (output / "precious").write_text("data")
        staging.commit(overwrite=False)
    assert read_tree(tmp_path) == {"out": b"", "out/precious": b"data"}


@pytest.fixture(params=["at once", "by a third name"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "at once":
        monkeypatch.setattr(workspace, "exchange_atomically", lambda *_: False)
    return str(request.param)


@pytest.mark.usefixtures("how")
def test_overwriting_replaces_everything(state: State, tmp_path: Path) -> None:
    write(state, tmp_path / "out", shard_size=1)
    (tmp_path / "out" / "stale").write_text("old")
    sign(tmp_path / "out")
    write({"new": torch.ones(2)}, tmp_path / "out", overwrite=True)
    assert_holds(tmp_path / "out", {"new": torch.ones(2)})
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]
    write({"new": torch.zeros(2)}, tmp_path / "fresh", overwrite=True)
    assert_holds(tmp_path / "fresh", {"new": torch.zeros(2)})


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes two steps")
def test_exchange_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(os, "rename", None)
    assert exchange_atomically(tmp_path / "one", tmp_path / "two")
    assert read_tree(tmp_path).keys() == {"one", "one/two", "two", "two/one"}
    with pytest.raises(OSError, match="No such file"):
        exchange_atomically(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b/c", "a/../../b", "a//b", "", ".", "..", "model.safetensors"]
)
def test_invalid_side_file_name_raises(state: State, tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(BrokenPluginError, match="side file"),
        stage_output(tmp_path / "out") as staging,
    ):
        materialise(StateDictSource(state), staging, shard_size=10**9)
        staging.add(name, b"x")
    assert read_tree(tmp_path) == {}


def test_side_file_may_be_in_folder(state: State, tmp_path: Path) -> None:
    def write(*, stop: bool = False, **options: Any) -> None:
        with stage_output(tmp_path / "out", plan=b"{}", **options) as staging:
            materialise(StateDictSource(state), staging, shard_size=10**9)
            staging.add("folder/x", b"x")
            staging.add("folder/y", b"y")
            if stop:
                raise KeyboardInterrupt
            staging.commit(overwrite=False)

    with pytest.raises(KeyboardInterrupt):
        write(stop=True)
    write(resume=True)
    assert (tmp_path / "out" / "folder" / "y").read_bytes() == b"y"


def test_large_side_file_is_copied_in_bounded_memory(state: State, tmp_path: Path) -> None:
    size = 64 * 2**20
    with (tmp_path / "tokenizer.model").open("wb") as stream:
        stream.truncate(size)
    with stage_output(tmp_path / "out") as staging:
        materialise(StateDictSource(state), staging, shard_size=10**9)
        tracemalloc.start()
        staging.add("tokenizer.model", tmp_path / "tokenizer.model")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        digest = hashlib.sha256(bytes(size)).hexdigest()
        assert staging.side_files["tokenizer.model"] == (size, digest)
        staging.commit(overwrite=False)
    assert most < size / 10
    assert (tmp_path / "out" / "tokenizer.model").stat().st_size == size


def test_unreadable_side_file_raises_checkpoint_error(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"vocab\.txt cannot be read"),
        stage_output(tmp_path / "out") as staging,
    ):
        staging.add("vocab.txt", tmp_path / "vocab.txt")


@pytest.mark.parametrize("kind", ["missing", "empty", "ours", "ours with a report"])
def test_writable_outputs_are_accepted(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind != "missing":
        output.mkdir()
    if kind.startswith("ours"):
        (output / "x").touch()
        sign(output)
    if kind.endswith("report"):
        for name in ("report.json", "report.html", ".report.json.fuse-01234567"):
            (output / name).touch()
    check_output(output, overwrite=kind.startswith("ours"))


FOREIGN: dict[str, str | None] = {
    "none": None,
    "of another tool": '{"builder": {"id": "https://example.org"}, "materials": []}',
    "not JSON": "who made this",
    "another shape": '{"schema": 1, "versions": {"fusion-core": "0.1.0"}, "outputs": ["x"]}',
    "no version": '{"schema": 1, "versions": {}, "outputs": {"files": {"x": {}}}}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("provenance", FOREIGN.values(), ids=FOREIGN)
def test_directory_not_written_by_fuse_is_not_replaced(
    state: State, tmp_path: Path, provenance: str | None
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "x").write_text("precious")
    if provenance is not None:
        (output / "provenance.json").write_text(provenance)
    before = read_tree(tmp_path)
    with pytest.raises(OutputError, match="out was not written by fuse"):
        write(state, output, overwrite=True)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "directory", "directory of a listed name", "link"])
def test_foreign_file_in_output_is_not_deleted(state: State, tmp_path: Path, kind: str) -> None:
    output, notes = tmp_path / "out", tmp_path / "out" / "notes"
    write(state, output)
    if kind == "directory of a listed name":
        notes.touch()
    sign(output)
    notes.unlink(missing_ok=True)
    if kind == "file":
        notes.touch()
    elif kind == "link":
        notes.symlink_to(tmp_path)
    else:
        notes.mkdir()
    before = read_tree(output)
    with pytest.raises(OutputError, match="holds files that fuse did not write: notes"):
        write(state, output, overwrite=True)
    assert read_tree(output) == before
    assert os.listdir(tmp_path) == ["out"]


def test_file_added_to_output_during_run_is_not_deleted(state: State, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(state, output)
    sign(output)
    with (
        pytest.raises(OutputError, match="fuse did not write: notes"),
        stage_output(output, overwrite=True) as staging,
    ):
        materialise(StateDictSource({"new": torch.ones(2)}), staging, shard_size=10**9)
        (output / "notes").write_text("data")
        staging.commit(overwrite=True)
    assert_holds(output, state)
    assert (output / "notes").read_text() == "data"


@pytest.mark.parametrize("name", ["merged.safetensors", "x.GGUF", "m.bin", "a\0b", "a\ud800"])
def test_invalid_output_path_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"is a directory|invalid output path"):
        check_output(tmp_path / name, overwrite=False)


# --- order --------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the file operations of a test, each with the name of its file."""
    calls: list[tuple[str, str]] = []

    def record(function: str, name: Callable[..., str]) -> None:
        real = getattr(os, function)

        def call(*arguments: Any, **keys: Any) -> Any:
            result = real(*arguments, **keys)
            calls.append((function, name(*arguments)))
            return result

        monkeypatch.setattr(os, function, call)

    def of_descriptor(descriptor: int, *_: object) -> str:
        return short_name(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def short_name(path: Path) -> str:
        return path.name.split(".fuse-")[0]

    record("fsync", of_descriptor)
    record("fdatasync", of_descriptor)
    record("pwrite", lambda fd, data, at: f"{of_descriptor(fd)} {'header' if not at else 'data'}")
    record("rename", lambda one, other: f"{short_name(Path(one))} -> {short_name(Path(other))}")
    return calls


@pytest.mark.parametrize("overwrite", [False, True])
def test_everything_is_synced_before_rename(
    state: State,
    tmp_path: Path,
    calls: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,  # noqa: FBT001
) -> None:
    """The order is: data, the journal of that data, headers, directories, the rename."""
    monkeypatch.setattr(workspace, "exchange_atomically", lambda *_: False)
    if overwrite:
        write(state, tmp_path / "new" / "out")
        sign(tmp_path / "new" / "out")
        calls.clear()
    write(state, tmp_path / "new" / "out", overwrite=overwrite)
    model, journal = "model.safetensors", "journal.jsonl"
    data = max(n for n, call in enumerate(calls) if call == ("pwrite", f"{model} data"))
    steps = [call for n, call in enumerate(calls[data:]) if calls[data:][n - 1] != call]
    assert [step for step in steps if "lock" not in step[1]] == [
        ("pwrite", f"{model} data"),
        ("fdatasync", model),
        ("pwrite", f"{journal} data"),
        ("fdatasync", journal),
        ("pwrite", f"{model} header"),
        ("fdatasync", model),
        ("fsync", "config.json"),
        ("fsync", "model"),
        ("pwrite", f"{journal} data"),
        ("fdatasync", journal),
        *([("rename", "out -> old")] if overwrite else []),
        ("rename", "model -> out"),
        ("fsync", "new"),
    ]
    reserved = calls[:data]
    assert overwrite or reserved[0] == ("fsync", tmp_path.name)  # where `new` was made
    assert ("fsync", "model") in reserved  # the shards' names are durable before the journal is


# --- when it goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), CheckpointError("bad")]
)
def test_exception_during_merge_leaves_nothing(
    state: State, tmp_path: Path, error: BaseException
) -> None:
    class Failing(StateDictSource):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            if name == "z":
                raise error
            return super().read(name, start, stop)

    with pytest.raises(type(error)):
        write(Failing(state), tmp_path / "parent" / "out")
    assert read_tree(tmp_path) == {}


def test_descriptors_are_closed_after_errors(state: State, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(RuntimeError, match="half"), stage_output(tmp_path / "out") as staging:
            staging.lay_out(list(StateDictSource(state).infos.values()), shard_size=1)
            raise RuntimeError("half way")
    write(state, tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("nth", [1, 2])
def test_interrupt_after_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The interrupt follows the rename, on a system without an atomic exchange."""
    write({"old": torch.ones(2)}, tmp_path / "out")
    sign(tmp_path / "out")
    monkeypatch.setattr(workspace, "exchange_atomically", lambda *_: False)
    calls = 0
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        moved = rename(path, target)
        if calls == nth:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write({"new": torch.ones(2)}, tmp_path / "out", overwrite=True)
    assert_holds(tmp_path / "out", {"new" if nth == 2 else "old": torch.ones(2)})
    assert os.listdir(tmp_path) == ["out"]


def test_empty_directory_is_restored_after_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    sync = writer.sync_directory

    def failing(directory: Path) -> None:
        if directory == tmp_path:
            raise OSError(errno.EIO, "broken")
        sync(directory)

    monkeypatch.setattr(writer, "sync_directory", failing)
    with pytest.raises(DiskError):
        write({"new": torch.ones(2)}, tmp_path / "out")
    assert read_tree(tmp_path) == {"out": b""}


# --- single files -------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_durable_write_leaves_old_or_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    write_durably(tmp_path / "report.json", b"old")
    assert (tmp_path / "report.json").read_bytes() == b"old"
    monkeypatch.setattr(os, function, lambda *_, **__: (_ for _ in ()).throw(error))
    kind = DiskError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind):
        write_durably(tmp_path / "report.json", b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["report.json"]
    assert (tmp_path / "report.json").read_bytes() in {b"old", b"new"}


def test_disk_without_inodes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    none_left = SimpleNamespace(f_files=real.f_files or 1, f_favail=0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "statvfs", lambda _: none_left)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(DiskError, match="no inode left") as caught:
        write_durably(tmp_path / "report.json", b"new")
    assert "bytes" not in str(caught.value)


def test_temporary_file_is_locked_while_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(point: str) -> None:
        seen.append((point, [ownership.is_held(path) for path in tmp_path.iterdir()]))

    seen: list[tuple[str, list[bool]]] = []
    monkeypatch.setattr(fault, "listener", look)
    write_durably(tmp_path / "report.json", b"new")
    assert seen == [("temporary file written", [True])]
