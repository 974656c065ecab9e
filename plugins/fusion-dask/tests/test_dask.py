"""Merges on Dask's own scheduler and workers: the same bytes, whoever dies, and clear words."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import mortal
import pytest
from mortal import SHARD
from programs import program, scheduler_in, worker_of

from fusion_core import ExecutorSpec
from fusion_core.commands import load_plugins
from fusion_core.errors import RecipeError, WorkerError
from fusion_core.weights import CheckpointSource, materialise, staged
from fusion_dask import cluster
from fusion_dask.capacity import capacity
from fusion_dask.config import DaskConfig
from fusion_dask.executor import make_dask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor


@pytest.fixture
def executor(scheduler: Path) -> Iterator[Executor]:
    with make_dask(DaskConfig(scheduler_file=str(scheduler))) as made:
        yield made


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of what is to kill workers that are started from now on."""
    tests = str(Path(mortal.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *sys.path]))
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    (tmp_path / "deaths").mkdir()
    return tmp_path / "deaths"


def copied(
    source: CheckpointSource, executor: Executor | None, out: Path, **how: Any
) -> dict[str, bytes]:
    """Write a checkpoint again, shard by shard; returns the files."""
    with staged(out, plan=b"{}", **how) as staging:
        materialise(source, staging, shard_size=SHARD, executor=executor)
        staging.commit(overwrite=False)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def until(ready: Any) -> None:
    end = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_merge_has_the_same_bytes(executor: Executor, checkpoint: Path, tmp_path: Path) -> None:
    source = CheckpointSource(checkpoint)
    found = copied(source, executor, tmp_path / "out")
    assert len(found) == 9
    assert found == copied(source, None, tmp_path / "alone")


def test_a_worker_that_dies_in_the_middle_costs_nothing(
    deaths: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (deaths / "one").touch()
    with make_dask(DaskConfig(workers=2)) as executor:
        until(lambda: executor.slots == 2)
        executor.one_machine = False  # a unit is then a shard, not all of these at once
        found = copied(mortal.Mortal(checkpoint), executor, tmp_path / "out")
    assert not list(deaths.iterdir())
    assert found == copied(CheckpointSource(checkpoint), None, tmp_path / "alone")


def test_when_all_workers_are_dead_the_work_is_kept(
    deaths: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (deaths / "one").touch()
    with (
        make_dask(DaskConfig(workers=1)) as executor,
        pytest.raises(WorkerError, match="no worker on this machine is alive") as caught,
    ):
        executor.one_machine = False
        copied(mortal.Mortal(checkpoint), executor, tmp_path / "out")
    kept = ["Finished work is kept: run the same command with --resume."]
    assert caught.value.__notes__ == kept
    (work,) = tmp_path.glob(".out.fuse-*")
    recorded = (work / "journal.jsonl").read_text().splitlines()
    assert 2 <= len(recorded) <= 6  # the layout and, of 0 to 4, what was told before the death
    source = CheckpointSource(checkpoint)
    found = copied(source, None, tmp_path / "out", resume=True)
    assert found == copied(source, None, tmp_path / "alone")


def test_when_the_scheduler_dies_it_is_said_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        scheduler_in(tmp_path) as (where, process),
        program(tmp_path, *worker_of(where)),
        make_dask(DaskConfig(scheduler_file=str(where))) as executor,
    ):
        future = executor.submit(mortal.wait_for, str(tmp_path))
        until((tmp_path / "begun").exists)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"Dask scheduler at tcp://.* is gone"):
            future.result()
    assert capfd.readouterr().err == ""


def test_what_is_cancelled_has_ended_when_the_executor_is_left(
    scheduler: Path, tmp_path: Path
) -> None:
    with make_dask(DaskConfig(scheduler_file=str(scheduler))) as executor:
        future = executor.submit(mortal.wait_for, str(tmp_path))
        until((tmp_path / "begun").exists)
        assert future.cancel()
        Timer(0.2, (tmp_path / "may end").touch).start()
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("how", ["local class", "unreadable", "no exception"])
def test_an_error_that_cannot_be_read_here_names_the_worker_and_what_it_said(
    executor: Executor, how: str
) -> None:
    said = r"^the Dask worker at tcp://127\.0\.0\.1:\d+ on .* failed: \w+: in its own words\n"
    with pytest.raises(WorkerError, match=said) as caught:
        executor.submit(mortal.fail, how).result()
    assert "in fail" in str(caught.value.__cause__)


def test_a_result_that_cannot_be_read_here_names_the_worker(executor: Executor) -> None:
    with pytest.raises(WorkerError, match="returned what cannot be read here: ImportError"):
        executor.submit(mortal.fail, "result").result()


def test_an_interrupt_ends_the_wait_for_a_worker_that_hangs(
    scheduler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion_dask.executor._SECONDS_TO_END", 0.2)
    with (
        pytest.raises(KeyboardInterrupt),
        make_dask(DaskConfig(scheduler_file=str(scheduler))) as executor,
    ):
        future = executor.submit(mortal.wait_for, str(tmp_path))
        until((tmp_path / "begun").exists)
        raise KeyboardInterrupt
    assert future.cancelled()
    assert not (tmp_path / "ended").exists()
    (tmp_path / "may end").touch()


def test_a_package_that_workers_lack_is_named(executor: Executor) -> None:
    with pytest.raises(WorkerError, match="lacks what this run uses: No module named 'nowhere"):
        executor.submit(mortal.need_absent).result()


def test_resources_decide_who_works(scheduler: Path) -> None:
    where = {"scheduler_file": str(scheduler), "patience": 0.1}
    with make_dask(DaskConfig(**where, resources={"GPU": 1})) as executor:
        assert executor.slots == 1
        pids = {executor.submit(os.getpid).result() for _ in range(4)}
    assert len(pids) == 1
    with pytest.raises(WorkerError, match="has no worker with GPU=2, TPU=1\n"):
        make_dask(DaskConfig(**where, resources={"GPU": 2, "TPU": 1}))


def test_slots_are_threads_as_far_as_resources_go() -> None:
    workers = [{"nthreads": 4, "resources": {"GPU": 2}}, {"nthreads": 1, "resources": {}}]
    assert capacity(workers, {}) == 5
    assert capacity(workers, {"GPU": 0.75}) == 2
    assert capacity(workers, {"GPU": 1, "TPU": 1}) == 0


def test_a_scheduler_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 0.3)
    with pytest.raises(WorkerError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9: "):
        make_dask(DaskConfig(address="tcp://127.0.0.1:9"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = "tcp://127.0.0.1:{1}".format(*mute.getsockname())
        with pytest.raises(WorkerError, match=f"no Dask scheduler answers at {address}: "):
            make_dask(DaskConfig(address=address))
    with pytest.raises(WorkerError, match="tls` names no certificates"):
        make_dask(DaskConfig(address="tls://127.0.0.1:9"))


@pytest.mark.parametrize("content", [None, b"", b'{"address": "tcp', b"[]", b'{"address": 7}'])
def test_a_scheduler_file_without_an_address_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkerError, match=r"scheduler\.json does not say where"):
        make_dask(DaskConfig(scheduler_file=str(path)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"address": "here:1", "workers": 2}, "leave workers out"),
        ({"address": "here:1", "scheduler_file": "there"}, "give one of them"),
        ({"resources": {"GPU": 1}}, "name its address"),
        ({"address": "here"}, "expected a host and a port"),
        ({"address": "tcp://:8786"}, "expected a host and a port"),
        ({"address": "http://here:8787"}, "unknown protocol 'http'"),
        ({"address": "here:99999"}, "expected a port from 1"),
        ({"address": " "}, "it is empty"),
        ({"address": None}, "it is empty"),
        ({"scheduler_file": ""}, "it is empty"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        DaskConfig(**options)


def test_half_an_installation_stops_nobody_once_dask_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half-1.0.dist-info"  # `importlib_metadata`, which Dask imports, raises here
    half.mkdir()
    (half / "entry_points.txt").write_text("[fusion_core.plugins]\nhalf = half\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins.cache_clear()
    assert load_plugins().find(ExecutorSpec, "dask").spec.name == "dask"
    load_plugins.cache_clear()


SCRIPT = """
from fusion_dask.config import DaskConfig
from fusion_dask.executor import make_dask

with make_dask(DaskConfig(workers=2)) as executor:
    print([executor.submit(abs, -number).result() for number in (2, 3)])
"""


def test_a_script_needs_no_guard_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    own = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-W", "error", "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[2, 3]\n"
    assert done.stderr == ""
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py", "tmp"]
