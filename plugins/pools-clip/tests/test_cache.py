"""The cache: directories are complete or missing, and stale ones are removed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_core.errors import DiskError
from pools_clip.cache import KEY, cache_path, cached_directory

THING = {"what": "thing"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's directory for the kind `things`."""
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    return cache_path("things", THING).parent


def make(directory: Path) -> None:
    (directory / "data").write_text("made")


def start_filling(*, then: str) -> "subprocess.Popen[str]":
    """Start a process that writes half of the content, and then runs `then`."""
    program = (
        "import sys, time\n"
        "from pools_clip.cache import cached_directory\n"
        "def make(directory):\n"
        "    (directory / 'data').write_text('half')\n"
        "    print('half', flush=True)\n"
        f"    {then}\n"
        "cached_directory('things', {'what': 'thing'}, make)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "half\n"
    return started


def test_a_directory_is_filled_once(folder: Path) -> None:
    directory = cached_directory("things", THING, make)
    assert directory == cache_path("things", THING)
    assert {path.name for path in directory.iterdir()} == {"data", KEY}
    assert cached_directory("things", THING, lambda _: pytest.fail("made twice")) == directory
    assert list(folder.iterdir()) == [directory]


def test_a_failure_leaves_nothing(folder: Path) -> None:
    def fail(directory: Path) -> None:
        make(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"cannot cache things in .*: No space left"):
        cached_directory("things", THING, fail)
    assert not list(folder.iterdir())


def test_the_next_run_removes_directories_of_a_killed_run(folder: Path) -> None:
    with start_filling(then="time.sleep(60)") as dying:
        dying.send_signal(signal.SIGKILL)
    assert any(path.is_dir() for path in folder.iterdir())
    directory = cached_directory("things", {"what": "other"}, make)
    assert list(folder.iterdir()) == [directory]


def test_directories_of_other_users_are_ignored(folder: Path) -> None:
    """Their locks cannot be opened. Here the lock is a directory."""
    stale, lock = folder / "another-0a1b2c3d", folder / ".another-0a1b2c3d.fuse-lock"
    stale.mkdir(parents=True)
    lock.mkdir()
    directory = cached_directory("things", THING, make)
    assert set(folder.iterdir()) == {stale, lock, directory}


def test_the_first_of_two_runs_publishes_its_directory(folder: Path) -> None:
    with start_filling(then="sys.stdin.readline()") as other:
        directory = cached_directory("things", THING, make)
        assert other.stdin is not None
        other.stdin.write("\n")
    assert other.returncode == 0
    assert (directory / "data").read_text() == "made"
    assert list(folder.iterdir()) == [directory]
