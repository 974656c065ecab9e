"""`fuse clean`: what stopped runs left is shown, put in order, and removed when it is agreed to."""

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
from fusion_core.weights import StateDictSource, materialise, staged
from fusion_core.weights.writing import workplace
from fusion_core.weights.writing.leftovers import leftovers
from fusion_core.weights.writing.lock import locked
from fusion_core.weights.writing.ours import take_flock
from fusion_core.weights.writing.workplace import Workplace, workplaces_in


def write(output: Path, *, value: float = 1.0, overwrite: bool = False) -> None:
    source = StateDictSource({"x": torch.full((30_000,), value)})
    with staged(output, overwrite=overwrite, plan=b"{}") as staging:
        materialise(source, staging, shard_size=10**9)
        staging.commit(overwrite=overwrite)
    sign(output)


def interrupt(output: Path) -> Workplace:
    """Leave what a run leaves that was interrupted."""
    source = StateDictSource({"x": torch.ones(30_000)})
    with pytest.raises(KeyboardInterrupt), staged(output, plan=b"{}") as staging:
        materialise(source, staging, shard_size=10**9)
        raise KeyboardInterrupt
    (left,) = (each for each in workplaces_in(output.parent) if each.output == output)
    return left


def run(*arguments: str | Path, answer: str = "") -> str:
    done = CliRunner().invoke(app, ["clean", *map(str, arguments)], input=answer)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def listed(*arguments: str | Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))
    return found


def test_there_may_be_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out")
    assert run() == "nothing to clean in outputs\n"
    assert run(".") == "nothing to clean in .\n"
    assert listed() == []
    assert os.listdir(tmp_path) == ["out"]


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="gone is not a directory"):
        run(tmp_path / "gone")


def test_what_is_left_is_shown_with_size_age_and_what_is_done(tmp_path: Path) -> None:
    left = interrupt(tmp_path / "out")
    hours_ago = time.time() - 3 * 3600
    for path in (left.path, *left.path.rglob("*")):
        os.utime(path, (hours_ago, hours_ago))
    shown = run(tmp_path)
    assert str(left.path) in shown
    assert "3 hours" in shown
    assert "1 tensors" in shown
    assert re.search(r"\d\d\d\.\d kB", shown)
    assert left.path.exists()
    (row,) = listed(tmp_path)
    assert row["output"] == str(tmp_path / "out")
    assert row["bytes"] >= 120_000
    assert row["age_seconds"] == pytest.approx(3 * 3600, abs=100)
    assert (row["tensors"], row["in_use"], row["removed"]) == (1, False, False)


def test_yes_removes_all_that_is_dead_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "done")
    interrupt(tmp_path / "one")
    alive = interrupt(tmp_path / "two")
    for name in (".hidden", ".note.fuse-xyz", "three.fuse-0123456789ab"):
        (tmp_path / name).mkdir()
    (tmp_path / ".file.fuse-0123456789ab").touch()
    with locked(tmp_path / "two"):
        rows = {row["output"]: row for row in listed(tmp_path, "--yes")}
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


def test_a_name_that_is_no_text_is_listed(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/.\xff.fuse-0123456789ab"))
    place.mkdir()
    assert "\\udcff" in run(tmp_path)
    (row,) = listed(tmp_path, "--yes")
    assert (row["path"], row["removed"]) == (str(place), True)


@pytest.mark.parametrize("answer", ["y\n", "n\n"])
def test_a_person_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    left = interrupt(tmp_path / "out")
    monkeypatch.setattr(command, "_is_interactive", lambda: True)
    assert "Remove those that are not in use?" in run(tmp_path, answer=answer)
    assert left.path.exists() == (answer == "n\n")


def test_a_run_that_begins_in_the_meantime_keeps_its_own(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    (found,) = leftovers(tmp_path)
    with locked(tmp_path / "out"):
        assert not found.remove()
    assert found.path.exists()


def test_what_cannot_be_described_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another user's, or one whose run has just ended."""
    closed, other = interrupt(tmp_path / "closed"), interrupt(tmp_path / "other")
    real = Workplace.touched.fget  # type: ignore[attr-defined]

    def touched(place: Workplace) -> float:
        if place == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return float(real(place))

    monkeypatch.setattr(Workplace, "touched", property(touched))
    assert [leftover.path for leftover in leftovers(tmp_path)] == [other.path]
    assert f"left out: {closed.path} cannot be written: Permission denied" in caplog.text


def test_what_may_not_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path / "out")
    (found,) = leftovers(tmp_path)

    def refused(_: Workplace) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "remove", refused)
        with pytest.raises(DiskError, match="cannot be written: Permission denied"):
            found.remove()
        patch.setattr(Workplace, "remove", lambda _: None)  # as far as the file system lets us
        with pytest.raises(DiskError, match="cannot be removed"):
            found.remove()
    assert found.remove()


def test_locks_of_dead_runs_go_too(tmp_path: Path) -> None:
    (tmp_path / ".out.fuse-lock").write_text("{}")
    (row,) = listed(tmp_path)
    assert (row["output"], row["tensors"]) == (str(tmp_path / "out"), None)
    with locked(tmp_path / "other"):
        assert run(tmp_path, "--yes").endswith("removed: 1\n")
        assert os.listdir(tmp_path) == [".other.fuse-lock"]


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe"])
def test_what_is_planted_as_a_lock_goes_and_what_it_leads_to_stays(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "victim").write_text("precious")
    interrupt(tmp_path / "out")
    plant(kind, tmp_path / ".out.fuse-lock", tmp_path / "victim")
    before = sorted(os.listdir(tmp_path))
    assert len(listed(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == before
    assert run(tmp_path, "--yes").endswith("removed: 2\n")
    assert os.listdir(tmp_path) == ["victim"]
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_directory_in_the_place_of_a_lock_hides_nothing_else(tmp_path: Path) -> None:
    interrupt(tmp_path / "one")
    interrupt(tmp_path / "two")
    (tmp_path / ".one.fuse-lock").mkdir()
    with pytest.raises(DiskError, match=r"\.one\.fuse-lock is not a regular file"):
        run(tmp_path, "--yes")
    assert [each.output.name for each in workplaces_in(tmp_path)] == ["one"]


@pytest.mark.parametrize("below", ["", "out"])
def test_a_file_that_was_about_to_replace_another_goes_too(tmp_path: Path, below: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine" / ".x.fuse-01234567", tmp_path / ".x.fuse-0123456z"):
        path.touch()
    left = tmp_path / below / ".report.json.fuse-01234567"
    left.write_text("{")
    with left.open() as stream:
        assert take_flock(stream.fileno())
        (row,) = listed(tmp_path, "--yes")
        assert (row["in_use"], row["removed"]) == (True, False)
    (row,) = listed(tmp_path, "--yes")
    assert (row["path"], row["removed"]) == (str(left), True)
    assert not left.exists()
    assert sorted(os.listdir(tmp_path)) == [".x.fuse-0123456z", "mine", "out"]
    assert os.listdir(tmp_path / "mine") == [".x.fuse-01234567"]


@pytest.fixture
def between_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Leave what a crash leaves between the two renames that replace an output."""
    write(tmp_path / "out", value=1.0)
    made: list[Workplace] = []

    def crash(place: Workplace) -> None:
        place.output.rename(place.old)
        made.append(place)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Workplace, "exchange", crash)
        write(tmp_path / "out", value=2.0, overwrite=True)
    assert not (tmp_path / "out").exists()
    return made[0]


def value_of(output: Path) -> float:
    from fusion_core.weights import CheckpointSource

    return float(CheckpointSource(output).tensor("x")[0])


def test_an_output_that_was_moved_aside_is_put_back(
    tmp_path: Path, between_renames: Workplace
) -> None:
    (row,) = listed(tmp_path)
    assert not (tmp_path / "out").exists()  # to list changes nothing
    assert row["tensors"] == 1
    run(tmp_path, "--yes")
    assert value_of(tmp_path / "out") == 1.0
    assert os.listdir(tmp_path) == ["out"]


def test_the_next_run_puts_it_back_before_it_looks(
    tmp_path: Path, between_renames: Workplace
) -> None:
    with pytest.raises(OutputError, match="already there"):
        write(tmp_path / "out", value=3.0)
    assert value_of(tmp_path / "out") == 1.0
    write(tmp_path / "out", value=3.0, overwrite=True)
    assert value_of(tmp_path / "out") == 3.0


def test_an_output_that_was_deleted_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run had been committed, and was killed before it removed what it had replaced."""
    monkeypatch.setattr(workplace, "exchanged_at_once", lambda *_: False)
    write(tmp_path / "out", value=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "remove", lambda _: None)
        write(tmp_path / "out", value=2.0, overwrite=True)
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, "--yes").endswith("removed: 1\n")
    assert os.listdir(tmp_path) == []
