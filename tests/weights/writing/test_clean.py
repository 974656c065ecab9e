"""`fuse clean`: leftovers of stopped runs are listed, repaired, and removed after confirmation."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import plant
from signed import sign
from typer.testing import CliRunner

from fusion_core.cli import clean as command
from fusion_core.cli.app import app
from fusion_core.errors import DiskError, OutputError, RecipeError
from fusion_core.weights import StateDictSource, materialise, stage_output
from fusion_core.weights.writing import workspace
from fusion_core.weights.writing.leftovers import find_leftovers
from fusion_core.weights.writing.lock import lock_output
from fusion_core.weights.writing.ownership import take_flock
from fusion_core.weights.writing.workspace import Workspace, find_workspaces


def write(output: Path, *, value: float = 1.0, overwrite: bool = False) -> None:
    source = StateDictSource({"x": torch.full((30_000,), value)})
    with stage_output(output, overwrite=overwrite, plan=b"{}") as staging:
        materialise(source, staging, shard_size=10**9)
        staging.commit(overwrite=overwrite)
    sign(output)


def interrupt(output: Path) -> Workspace:
    """Interrupt a run and return its staging directory."""
    source = StateDictSource({"x": torch.ones(30_000)})
    with pytest.raises(KeyboardInterrupt), stage_output(output, plan=b"{}") as staging:
        materialise(source, staging, shard_size=10**9)
        raise KeyboardInterrupt
    (left,) = (
        workspace for workspace in find_workspaces(output.parent) if workspace.output == output
    )
    return left


def run(*arguments: str | Path, answer: str = "") -> str:
    done = CliRunner().invoke(app, ["clean", *map(str, arguments)], input=answer)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def list_leftovers(*arguments: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))
    return rows


def test_clean_without_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out")
    assert run() == "nothing to clean in outputs\n"
    assert run(".") == "nothing to clean in .\n"
    assert list_leftovers() == []
    assert os.listdir(tmp_path) == ["out"]


def test_missing_directory_raises(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="gone is not a directory"):
        run(tmp_path / "gone")


def test_leftover_lists_size_age_and_finished_tensors(tmp_path: Path) -> None:
    left = interrupt(tmp_path / "out")
    hours_ago = time.time() - 3 * 3600
    for path in (left.path, *left.path.rglob("*")):
        os.utime(path, (hours_ago, hours_ago))
    listing = run(tmp_path)
    assert str(left.path) in listing
    assert "3 hours" in listing
    assert "1 tensors" in listing
    assert re.search(r"\d\d\d\.\d kB", listing)
    assert left.path.exists()
    (row,) = list_leftovers(tmp_path)
    assert row["output"] == str(tmp_path / "out")
    assert row["bytes"] >= 120_000
    assert row["age_seconds"] == pytest.approx(3 * 3600, abs=100)
    assert (row["tensors"], row["in_use"], row["removed"]) == (1, False, False)


def test_yes_removes_only_leftovers_of_dead_runs(tmp_path: Path) -> None:
    write(tmp_path / "done")
    interrupt(tmp_path / "one")
    alive = interrupt(tmp_path / "two")
    for name in (".hidden", ".note.fuse-xyz", "three.fuse-0123456789ab"):
        (tmp_path / name).mkdir()
    (tmp_path / ".file.fuse-0123456789ab").touch()
    with lock_output(tmp_path / "two"):
        rows = {row["output"]: row for row in list_leftovers(tmp_path, "--yes")}
        assert rows[str(tmp_path / "one")]["removed"]
        assert rows[str(tmp_path / "two")]["in_use"]
        assert not rows[str(tmp_path / "two")]["removed"]
        assert "alive" in run(tmp_path, "--yes")
    assert sorted(os.listdir(tmp_path)) == [
        ".file.fuse-0123456789ab",
        ".hidden",
        ".note.fuse-xyz",
        alive.path.name,
        "done",
        "three.fuse-0123456789ab",
    ]


def test_undecodable_name_is_listed_and_removed(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/.\xff.fuse-0123456789ab"))
    directory.mkdir()
    assert "\\udcff" in run(tmp_path)
    (row,) = list_leftovers(tmp_path, "--yes")
    assert (row["path"], row["removed"]) == (str(directory), True)


@pytest.mark.parametrize("answer", ["y\n", "n\n"])
def test_terminal_asks_before_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    left = interrupt(tmp_path / "out")
    monkeypatch.setattr(command, "_is_interactive", lambda: True)
    assert "Remove those that are not in use?" in run(tmp_path, answer=answer)
    assert left.path.exists() == (answer == "n\n")


def test_leftover_of_newly_started_run_is_not_removed(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    (leftover,) = find_leftovers(tmp_path)
    with lock_output(tmp_path / "out"):
        assert not leftover.remove()
    assert leftover.path.exists()


def test_unreadable_leftover_is_skipped_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A leftover of another user, or one whose run has just ended."""
    closed, other = interrupt(tmp_path / "closed"), interrupt(tmp_path / "other")
    real = Workspace.last_change.fget  # type: ignore[attr-defined]

    def last_change(workspace: Workspace) -> float:
        if workspace.path == closed.path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return float(real(workspace))

    monkeypatch.setattr(Workspace, "last_change", property(last_change))
    assert [leftover.path for leftover in find_leftovers(tmp_path)] == [other.path]
    assert f"skipping a leftover: {closed.path} cannot be written: Permission denied" in caplog.text


def test_failed_removal_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path / "out")
    (leftover,) = find_leftovers(tmp_path)

    def refused(_: Workspace) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove", refused)
        with pytest.raises(DiskError, match="cannot be written: Permission denied"):
            leftover.remove()
        patch.setattr(Workspace, "remove", lambda _: None)  # as if the file system refused
        with pytest.raises(DiskError, match="cannot be removed"):
            leftover.remove()
    assert leftover.remove()


def test_stale_locks_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.fuse-lock").write_text("{}")
    (row,) = list_leftovers(tmp_path)
    assert (row["output"], row["tensors"]) == (str(tmp_path / "out"), None)
    with lock_output(tmp_path / "other"):
        assert run(tmp_path, "--yes").endswith("removed: 1\n")
        assert os.listdir(tmp_path) == [".other.fuse-lock"]


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe"])
def test_planted_lock_is_removed_without_its_target(tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").write_text("precious")
    interrupt(tmp_path / "out")
    plant(kind, tmp_path / ".out.fuse-lock", tmp_path / "victim")
    before = sorted(os.listdir(tmp_path))
    assert len(list_leftovers(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == before
    assert run(tmp_path, "--yes").endswith("removed: 2\n")
    assert os.listdir(tmp_path) == ["victim"]
    assert (tmp_path / "victim").read_text() == "precious"


def test_directory_named_like_lock_does_not_hide_other_leftovers(tmp_path: Path) -> None:
    interrupt(tmp_path / "one")
    interrupt(tmp_path / "two")
    (tmp_path / ".one.fuse-lock").mkdir()
    with pytest.raises(DiskError, match=r"\.one\.fuse-lock is not a regular file"):
        run(tmp_path, "--yes")
    assert [workspace.output.name for workspace in find_workspaces(tmp_path)] == ["one"]


@pytest.mark.parametrize("below", ["", "out"])
def test_temporary_files_are_removed(tmp_path: Path, below: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine" / ".x.fuse-01234567", tmp_path / ".x.fuse-0123456z"):
        path.touch()
    left = tmp_path / below / ".report.json.fuse-01234567"
    left.write_text("{")
    with left.open() as stream:
        assert take_flock(stream.fileno())
        (row,) = list_leftovers(tmp_path, "--yes")
        assert (row["in_use"], row["removed"]) == (True, False)
    (row,) = list_leftovers(tmp_path, "--yes")
    assert (row["path"], row["removed"]) == (str(left), True)
    assert not left.exists()
    assert sorted(os.listdir(tmp_path)) == [".x.fuse-0123456z", "mine", "out"]
    assert os.listdir(tmp_path / "mine") == [".x.fuse-01234567"]


@pytest.fixture
def between_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Crash between the two renames that replace an output."""
    write(tmp_path / "out", value=1.0)
    crashes: list[Workspace] = []

    def crash(crashed: Workspace) -> None:
        crashed.output.rename(crashed.old)
        crashes.append(crashed)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Workspace, "exchange", crash)
        write(tmp_path / "out", value=2.0, overwrite=True)
    assert not (tmp_path / "out").exists()
    return crashes[0]


def value_of(output: Path) -> float:
    from fusion_core.weights import CheckpointSource

    return float(CheckpointSource(output).tensor("x")[0])


def test_clean_restores_output_that_was_moved_aside(
    tmp_path: Path, between_renames: Workspace
) -> None:
    (row,) = list_leftovers(tmp_path)
    assert not (tmp_path / "out").exists()  # listing changes nothing
    assert row["tensors"] == 1
    run(tmp_path, "--yes")
    assert value_of(tmp_path / "out") == 1.0
    assert os.listdir(tmp_path) == ["out"]


def test_next_run_restores_output_that_was_moved_aside(
    tmp_path: Path, between_renames: Workspace
) -> None:
    with pytest.raises(OutputError, match="already exists"):
        write(tmp_path / "out", value=3.0)
    assert value_of(tmp_path / "out") == 1.0
    write(tmp_path / "out", value=3.0, overwrite=True)
    assert value_of(tmp_path / "out") == 3.0


def test_deleted_output_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was committed, and killed before it removed the replaced output."""
    monkeypatch.setattr(workspace, "exchange_atomically", lambda *_: False)
    write(tmp_path / "out", value=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove", lambda _: None)
        write(tmp_path / "out", value=2.0, overwrite=True)
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, "--yes").endswith("removed: 1\n")
    assert os.listdir(tmp_path) == []
