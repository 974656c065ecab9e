"""The lock of an output, and fallbacks for missing system calls."""

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
from fusion_core.weights import CheckpointSource, StateDictSource, materialise, stage_output
from fusion_core.weights.writing import lock, ownership
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.lock import lock_output

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"x": torch.arange(1000.0)}


def write(output: Path, *, overwrite: bool = False) -> None:
    with stage_output(output, overwrite=overwrite) as staging:
        materialise(StateDictSource(STATE), staging, shard_size=10**9)
        staging.commit(overwrite=overwrite)


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse `flock`, as some network file systems do."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture(params=["flock", "no flock"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no flock":
        without_flock(monkeypatch)
    return str(request.param)


def test_second_run_fails_and_names_lock_owner(tmp_path: Path, system: str) -> None:
    output = tmp_path / "out"
    with lock_output(output):
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


def test_stale_flock_file_is_taken_over(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".out.fuse-lock"
    left.write_text(json.dumps({"pid": 1, "host": "gone"}))
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "directory"])
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_planted_lock_is_neither_followed_nor_waited_for(
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


def test_lock_check_does_not_fail_starting_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check holds the lock for a moment, and the run tries again."""
    path = tmp_path / ".out.fuse-lock"
    path.touch()
    looking = [os.open(path, os.O_RDONLY)]
    assert ownership.take_flock(looking[0], shared=True)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(looking.pop()))
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["[" * 4000, '{"pid": [], "host": 1}', "\xff", ""])
def test_invalid_owner_record_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with lock_output(tmp_path / "out"):
        (tmp_path / ".out.fuse-lock").write_text(name, encoding="latin-1")
        with pytest.raises(OutputError, match="by another run"):
            write(tmp_path / "out")


def test_stale_owner_file_must_be_removed_by_hand(
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


def test_owner_without_record_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_write_owner", lambda _: None)
    with lock_output(tmp_path / "out"), pytest.raises(OutputError, match="by another run"):
        write(tmp_path / "out")


def test_lock_file_removed_before_locking_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was opened before its holder ended. Another run may hold a new file by now."""
    real, removed = os.open, []

    def late(path: Any, *arguments: Any, **keys: Any) -> int:
        descriptor = real(path, *arguments, **keys)
        if str(path).endswith(lock.LOCK) and not removed:
            os.unlink(path)
            removed.append(path)
        return descriptor

    monkeypatch.setattr(os, "open", late)
    with lock_output(tmp_path / "out"):
        assert removed
        assert (tmp_path / ".out.fuse-lock").exists()


# --- space --------------------------------------------------------------------------------------


def test_failed_cleanup_keeps_first_error(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system turns read-only. The lock's descriptor is closed nevertheless."""
    del system
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(DiskError, match="Read-only"), lock_output(tmp_path / "out"):
        monkeypatch.setattr(os, "unlink", refused)
        monkeypatch.setattr(os, "fsync", refused)
        write_durably(tmp_path / "x", b"")
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_free_space_is_checked_without_fallocate(
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


def test_other_fallocate_errors_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(DiskError, match="File too large"):
        write(tmp_path / "out")


def test_fsync_replaces_missing_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fdatasync")
    write(tmp_path / "out")
    assert torch.equal(CheckpointSource(tmp_path / "out").tensor("x"), STATE["x"])
