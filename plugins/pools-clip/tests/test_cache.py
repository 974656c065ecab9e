"""What is made of downloads and kept: whole or not at all, and nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_core.errors import DiskError
from pools_clip.kept import KEY, kept, place_of

THING = {"what": "thing"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where things of the kind `things` are kept."""
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    return place_of("things", THING).parent


def make(directory: Path) -> None:
    (directory / "data").write_text("made")


def making(*, then: str) -> "subprocess.Popen[str]":
    """Start a process that says when it has made half of the thing, then does something."""
    program = (
        "import sys, time\n"
        "from pools_clip.kept import kept\n"
        "def make(directory):\n"
        "    (directory / 'data').write_text('half')\n"
        "    print('half', flush=True)\n"
        f"    {then}\n"
        "kept('things', {'what': 'thing'}, make)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "half\n"
    return started


def test_it_is_made_once(folder: Path) -> None:
    place = kept("things", THING, make)
    assert place == place_of("things", THING)
    assert {path.name for path in place.iterdir()} == {"data", KEY}
    assert kept("things", THING, lambda _: pytest.fail("made twice")) == place
    assert list(folder.iterdir()) == [place]


def test_what_fails_leaves_nothing(folder: Path) -> None:
    def fail(directory: Path) -> None:
        make(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"things cannot be kept in .*: No space left"):
        kept("things", THING, fail)
    assert not list(folder.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next(folder: Path) -> None:
    with making(then="time.sleep(60)") as dying:
        dying.send_signal(signal.SIGKILL)
    assert any(path.is_dir() for path in folder.iterdir())
    place = kept("things", {"what": "other"}, make)
    assert list(folder.iterdir()) == [place]


def test_what_is_not_ours_to_remove_hinders_nobody(folder: Path) -> None:
    """Its lock cannot be opened: here it is a directory, in a shared cache another user's file."""
    left, lock = folder / "another-0a1b2c3d", folder / ".another-0a1b2c3d.fuse-lock"
    left.mkdir(parents=True)
    lock.mkdir()
    place = kept("things", THING, make)
    assert set(folder.iterdir()) == {left, lock, place}


def test_what_a_run_is_making_is_left_alone_and_the_first_to_end_counts(folder: Path) -> None:
    with making(then="sys.stdin.readline()") as other:
        place = kept("things", THING, make)
        assert other.stdin is not None
        other.stdin.write("\n")
    assert other.returncode == 0
    assert (place / "data").read_text() == "made"
    assert list(folder.iterdir()) == [place]
