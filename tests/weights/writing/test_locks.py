"""The lock of an output, and what is done where a system lacks what others have."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from planted import plant

from fusion_core.errors import DiskError, OutputError
from fusion_core.weights import CheckpointSource, StateDictSource, materialise, staged
from fusion_core.weights.writing import lock, ours
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.lock import locked

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"x": torch.arange(1000.0)}


def write(output: Path, *, overwrite: bool = False) -> None:
    with staged(output, overwrite=overwrite) as staging:
        materialise(StateDictSource(STATE), staging, shard_size=10**9)
        staging.commit(overwrite=overwrite)


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse locks as some network file systems do."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture(params=["flock", "no flock"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no flock":
        without_flock(monkeypatch)
    return str(request.param)


def test_a_second_run_learns_who_was_first(tmp_path: Path, system: str) -> None:
    output = tmp_path / "out"
    with locked(output):
        before = sorted(os.listdir(tmp_path))
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=f"by process {os.getpid()} on ") as caught:
                write(output, overwrite=overwrite)
            assert caught.value.exit_code == 7
            assert ("If it has ended, remove" in str(caught.value)) == (system != "flock")
        assert sorted(os.listdir(tmp_path)) == before
        write(tmp_path / "other")
    write(output)
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_lock_that_was_left_behind_is_taken_over_where_the_kernel_frees_it(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".out.fuse-lock"
    left.write_text(json.dumps({"pid": 1, "host": "gone"}))
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "directory"])
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_what_is_planted_as_a_lock_is_neither_followed_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *, flock: bool
) -> None:
    if not flock:
        without_flock(monkeypatch)
    victim, planted = tmp_path / "victim", tmp_path / ".out.fuse-lock"
    victim.write_text("precious")
    plant(kind, planted, victim)
    with pytest.raises(DiskError, match=r"\.out\.fuse-lock is not a regular file"):
        write(tmp_path / "out")
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == [".out.fuse-lock", "victim"]


def test_to_look_whether_a_run_is_alive_does_not_end_one_that_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is looked at is held for a moment; the run tries again."""
    path = tmp_path / ".out.fuse-lock"
    path.touch()
    looking = [os.open(path, os.O_RDONLY)]
    assert ours.take_flock(looking[0], shared=True)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(looking.pop()))
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["[" * 4000, '{"pid": [], "host": 1}', "\xff", ""])
def test_whatever_a_lock_says_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with locked(tmp_path / "out"):
        (tmp_path / ".out.fuse-lock").write_text(name, encoding="latin-1")
        with pytest.raises(OutputError, match="by another run"):
            write(tmp_path / "out")


def test_elsewhere_it_has_to_be_removed_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch)
    left = tmp_path / ".out.fuse-owner"
    left.write_text(json.dumps({"pid": 1, "host": "gone"}))
    with pytest.raises(OutputError, match=r"process 1 on gone") as caught:
        write(tmp_path / "out")
    assert f"remove {left}" in str(caught.value)
    left.unlink()
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_holder_without_a_name_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_sign", lambda _: None)
    with locked(tmp_path / "out"), pytest.raises(OutputError, match="by another run"):
        write(tmp_path / "out")


def test_a_lock_whose_file_was_removed_in_between_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened before the run that held it ended: another may hold a new file by now."""
    real, removed = os.open, []

    def late(path: Any, *given: Any, **keys: Any) -> int:
        descriptor = real(path, *given, **keys)
        if str(path).endswith(lock.LOCK) and not removed:
            os.unlink(path)
            removed.append(path)
        return descriptor

    monkeypatch.setattr(os, "open", late)
    with locked(tmp_path / "out"):
        assert removed
        assert (tmp_path / ".out.fuse-lock").exists()


# --- space --------------------------------------------------------------------------------------


def test_what_failed_stands_where_nothing_can_be_removed_either(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that turns read-only; the lock's descriptor is closed all the same."""
    del system
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(DiskError, match="Read-only"), locked(tmp_path / "out"):
        monkeypatch.setattr(os, "unlink", refused)
        monkeypatch.setattr(os, "fsync", refused)
        write_durably(tmp_path / "x", b"")
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_space_is_looked_for_where_it_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def refused(*_: object) -> None:
        assert code is not None
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    write(tmp_path / "out")
    assert torch.equal(CheckpointSource(tmp_path / "out").tensor("x"), STATE["x"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3000))
    with pytest.raises(DiskError, match="No space left on device") as caught:
        write(tmp_path / "more")
    assert "4,104 bytes are needed, 3,000 bytes are free there" in str(caught.value)
    assert os.listdir(tmp_path) == ["out"]


def test_other_errors_of_reserving_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(DiskError, match="File too large"):
        write(tmp_path / "out")


def test_without_fdatasync_fsync_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fdatasync")
    write(tmp_path / "out")
    assert torch.equal(CheckpointSource(tmp_path / "out").tensor("x"), STATE["x"])
