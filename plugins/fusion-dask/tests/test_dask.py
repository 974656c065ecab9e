"""Merges on a scheduler and workers of Dask: the same bytes after failures, and clear errors."""

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
from programs import program, scheduler_in, worker_arguments

from fusion_core import ExecutorSpec
from fusion_core.commands import load_plugins
from fusion_core.errors import RecipeError, WorkerError
from fusion_core.weights import CheckpointSource, materialise, stage_output
from fusion_dask import cluster
from fusion_dask.config import DaskConfig
from fusion_dask.executor import count_slots, make_dask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor


@pytest.fixture
def executor(scheduler: Path) -> Iterator[Executor]:
    with make_dask(DaskConfig(scheduler_file=str(scheduler))) as executor:
        yield executor


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose files kill workers that are started from now on."""
    tests = str(Path(mortal.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *sys.path]))
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    (tmp_path / "deaths").mkdir()
    return tmp_path / "deaths"


def copy_checkpoint(
    source: CheckpointSource, executor: Executor | None, out: Path, **options: Any
) -> dict[str, bytes]:
    """Copy a checkpoint shard by shard; return the files' contents."""
    with stage_output(out, plan=b"{}", **options) as staging:
        materialise(source, staging, shard_size=SHARD, executor=executor)
        staging.commit(overwrite=False)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def wait_until(ready: Any) -> None:
    end = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_dies_does_not_change_the_result(
    deaths: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (deaths / "one").touch()
    with make_dask(DaskConfig(workers=2)) as executor:
        wait_until(lambda: executor.slots == 2)
        executor.one_machine = False  # so that a unit of work is one shard
        files = copy_checkpoint(mortal.Mortal(checkpoint), executor, tmp_path / "out")
    assert not list(deaths.iterdir())
    assert files == copy_checkpoint(CheckpointSource(checkpoint), None, tmp_path / "alone")


@pytest.mark.thorough
def test_finished_work_is_kept_when_all_workers_have_died(
    deaths: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (deaths / "one").touch()
    with (
        make_dask(DaskConfig(workers=1)) as executor,
        pytest.raises(WorkerError, match="all workers on this machine have died") as caught,
    ):
        executor.one_machine = False
        copy_checkpoint(mortal.Mortal(checkpoint), executor, tmp_path / "out")
    notes = ["Finished work is kept: run the same command with --resume."]
    assert caught.value.__notes__ == notes
    (staging,) = tmp_path.glob(".out.fuse-*")
    recorded = (staging / "journal.jsonl").read_text().splitlines()
    assert (
        2 <= len(recorded) <= 6
    )  # the layout and, of tensors 0 to 4, those reported before the death
    source = CheckpointSource(checkpoint)
    files = copy_checkpoint(source, None, tmp_path / "out", resume=True)
    assert files == copy_checkpoint(source, None, tmp_path / "alone")


@pytest.mark.thorough
def test_the_death_of_the_scheduler_is_the_only_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        scheduler_in(tmp_path) as (scheduler_file, process),
        program(tmp_path, *worker_arguments(scheduler_file)),
        make_dask(DaskConfig(scheduler_file=str(scheduler_file))) as executor,
    ):
        future = executor.submit(mortal.wait_for, str(tmp_path))
        wait_until((tmp_path / "begun").exists)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(
            WorkerError, match=r"lost the connection to the Dask scheduler at tcp://"
        ):
            future.result()
    assert capfd.readouterr().err == ""


@pytest.mark.thorough
def test_cancelled_calls_have_ended_after_the_executor_exits(
    scheduler: Path, tmp_path: Path
) -> None:
    with make_dask(DaskConfig(scheduler_file=str(scheduler))) as executor:
        future = executor.submit(mortal.wait_for, str(tmp_path))
        wait_until((tmp_path / "begun").exists)
        assert future.cancel()
        Timer(0.2, (tmp_path / "may end").touch).start()
    assert (tmp_path / "ended").exists()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", ["local class", "unreadable", "no exception"])
def test_an_error_that_cannot_be_decoded_names_the_worker_and_its_message(
    executor: Executor, how: str
) -> None:
    message = r"^the Dask worker at tcp://127\.0\.0\.1:\d+ on .* failed: \w+: in its own words\n"
    with pytest.raises(WorkerError, match=message) as caught:
        executor.submit(mortal.fail, how).result()
    assert "in fail" in str(caught.value.__cause__)


def test_a_result_that_cannot_be_decoded_names_the_worker(executor: Executor) -> None:
    with pytest.raises(WorkerError, match="returned a result that cannot be decoded: ImportError"):
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
        wait_until((tmp_path / "begun").exists)
        raise KeyboardInterrupt
    assert future.cancelled()
    assert not (tmp_path / "ended").exists()
    (tmp_path / "may end").touch()


def test_a_missing_package_of_workers_is_named(executor: Executor) -> None:
    with pytest.raises(WorkerError, match="lacks a package of this run: No module named 'nowhere"):
        executor.submit(mortal.need_absent).result()


def test_resources_select_the_workers(scheduler: Path) -> None:
    options = {"scheduler_file": str(scheduler), "patience": 0.1}
    with make_dask(DaskConfig(**options, resources={"GPU": 1})) as executor:
        assert executor.slots == 1
        pids = {executor.submit(os.getpid).result() for _ in range(4)}
    assert len(pids) == 1
    with pytest.raises(WorkerError, match="has no worker with GPU=2, TPU=1\n"):
        make_dask(DaskConfig(**options, resources={"GPU": 2, "TPU": 1}))


def test_slots_are_limited_by_threads_and_resources() -> None:
    workers = [{"nthreads": 4, "resources": {"GPU": 2}}, {"nthreads": 1, "resources": {}}]
    assert count_slots(workers, {}) == 5
    assert count_slots(workers, {"GPU": 0.75}) == 2
    assert count_slots(workers, {"GPU": 1, "TPU": 1}) == 0


def test_a_missing_scheduler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(WorkerError, match=r"scheduler\.json has no address"):
        make_dask(DaskConfig(scheduler_file=str(path)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"address": "here:1", "workers": 2}, "leave workers out"),
        ({"address": "here:1", "scheduler_file": "there"}, "give one of them"),
        ({"resources": {"GPU": 1}}, "give its address"),
        ({"address": "here"}, "expected a host and a port"),
        ({"address": "tcp://:8786"}, "expected a host and a port"),
        ({"address": "http://here:8787"}, "unknown protocol 'http'"),
        ({"address": "here:99999"}, "expected a port from 1"),
        ({"address": " "}, "the value is empty"),
        ({"address": None}, "the value is empty"),
        ({"scheduler_file": ""}, "the value is empty"),
    ],
)
def test_invalid_and_conflicting_options_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        DaskConfig(**options)


@pytest.mark.thorough
def test_a_broken_installation_of_another_plugin_does_not_stop_dask(
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


@pytest.mark.thorough
def test_a_script_needs_no_main_guard_and_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-W", "error", "script.py"]
    completed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert completed.stdout == "[2, 3]\n"
    assert completed.stderr == ""
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py", "tmp"]
