"""Stopped and resumed runs: what they keep, report and repeat."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from planted import plant
from safetensors.torch import save_file
from signed import sign

from fusion_core import run_fusion
from fusion_core.contracts.algorithm import Algorithm
from fusion_core.errors import DiskError, FusionError, RecipeError, Terminated
from fusion_core.planning.run_options import RunOptions
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import (
    CheckpointSource,
    StateDictSource,
    WeightSource,
    materialise,
    stage_output,
)
from fusion_core.weights.merging import execution
from fusion_core.weights.writing import _fault as fault
from fusion_core.weights.writing import _journal as journal_module
from fusion_core.weights.writing import workspace
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.leftovers import find_leftovers
from fusion_core.weights.writing.workspace import Workspace, find_workspaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool

Models = dict[str, dict[str, torch.Tensor]]
STATE = {f"layer.{n}": torch.full((10,), float(n)) for n in range(20)}


@pytest.fixture(autouse=True)
def _journal_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record every tensor, and let a unit of work hold one: a stopped unit is computed again."""
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1)
    monkeypatch.setattr(execution, "_UNIT", (1, 1))


@pytest.fixture
def pool(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    for name, state in models.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    experts = {name: f"{name}.safetensors" for name in ("a", "b")}
    return {"name": "checkpoints", "base": "base.safetensors", "models": experts}


class Stopping(StateDictSource):
    """Raises when one of its tensors is read, after the earlier ones have been recorded."""

    def __init__(self, error: BaseException | None, at: int = 12) -> None:
        super().__init__(STATE)
        self.error, self.at, self.reads = error, at, 0

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.reads += 1
        if self.error is not None and name == f"layer.{self.at}":
            raise self.error
        return super().read(name, start, stop)


def write(
    source: WeightSource, output: Path, *, resume: bool = False, plan: bytes | None = b"{}"
) -> None:
    with stage_output(output, plan=plan, resume=resume) as staging:
        materialise(source, staging, shard_size=300)
        staging.commit(overwrite=False)


def stop_with(error: BaseException, output: Path, **options: Any) -> BaseException:
    with pytest.raises(type(error)) as caught:
        write(Stopping(error), output, **options)
    return caught.value


def unfinished_outputs(directory: Path) -> list[str]:
    return [workspace.output.name for workspace in find_workspaces(directory)]


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        Terminated(),
        DiskError("full"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["Ctrl-C", "SIGTERM", "disk", "memory", "GPU", "CPU", "cuBLAS", "system"],
)
def test_error_from_outside_keeps_work(tmp_path: Path, error: BaseException) -> None:
    reported = stop_with(error, tmp_path / "out")
    assert any("--resume" in note for note in reported.__notes__)
    assert os.listdir(tmp_path) == [workspace.path.name for workspace in find_workspaces(tmp_path)]
    rest = Stopping(None)
    write(rest, tmp_path / "out", resume=True)
    assert rest.reads == 8
    write(Stopping(None), tmp_path / "at-once")
    for file in (tmp_path / "at-once").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["at-once", "out"]


@pytest.mark.parametrize("error", [FusionError("bad weights"), RuntimeError("bug"), OSError("b")])
def test_possibly_wrong_tensors_are_not_kept(tmp_path: Path, error: Exception) -> None:
    reported = stop_with(error, tmp_path / "out")
    assert not hasattr(reported, "__notes__")
    assert os.listdir(tmp_path) == []


def test_nothing_is_kept_without_finished_tensors(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(Stopping(KeyboardInterrupt(), at=0), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_nothing_is_kept_without_a_plan(tmp_path: Path) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out", plan=None)
    assert os.listdir(tmp_path) == []


def test_os_error_of_plugin_is_not_wrapped(tmp_path: Path) -> None:
    error = OSError(28, "No space left for the plugin's own cache")
    assert stop_with(error, tmp_path / "out") is error


@pytest.mark.parametrize("at_once", [True, False])
def test_replaced_output_is_not_resumable_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """After the exchange, the old output lies in the staging directory."""

    def interrupt(point: str) -> None:
        if point == "in place":
            raise KeyboardInterrupt

    if not at_once:
        monkeypatch.setattr(workspace, "exchange_atomically", lambda *_: False)
    write(Stopping(None), tmp_path / "out")
    sign(tmp_path / "out")
    monkeypatch.setattr(fault, "listener", interrupt)
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        stage_output(tmp_path / "out", plan=b"{}", overwrite=True) as staging,
    ):
        materialise(StateDictSource({"new": torch.ones(3)}), staging, shard_size=300)
        staging.commit(overwrite=True)
    assert not hasattr(caught.value, "__notes__")
    assert os.listdir(tmp_path) == ["out"]
    assert list(CheckpointSource(tmp_path / "out").infos) == ["new"]


# --- what is resumed ----------------------------------------------------------------------------


def test_work_of_another_plan_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    fresh = Stopping(None)
    write(fresh, tmp_path / "out", resume=True, plan=b'{"seed": 1}')
    assert fresh.reads == 20
    assert "nothing to resume" in caplog.text
    assert "starting from the beginning" in caplog.text
    assert unfinished_outputs(tmp_path) == ["out"]


def test_run_without_resume_keeps_and_reports_old_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    fresh = Stopping(None)
    write(fresh, tmp_path / "out")
    assert fresh.reads == 20
    assert "--resume would continue it" in caplog.text
    assert unfinished_outputs(tmp_path) == ["out"]


def test_work_of_similarly_named_output_is_not_used(tmp_path: Path) -> None:
    names = ("out", "out.fuse-0123456789ab", "[o]ut", "ou*")
    for name in names:
        stop_with(KeyboardInterrupt(), tmp_path / name)
    for name in names:
        rest = Stopping(None)
        write(rest, tmp_path / name, resume=True)
        assert rest.reads == 8
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_other_layout_starts_from_the_beginning(tmp_path: Path) -> None:
    """An algorithm may return other tensors the second time, at other offsets."""
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    others = {**STATE, "layer.3": torch.ones(11)}
    del others["layer.5"]
    source = StateDictSource(others)
    write(source, tmp_path / "out", resume=True)
    write(source, tmp_path / "at-once")
    for file in (tmp_path / "at-once").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.plugins
def test_models_in_memory_cannot_be_resumed(models: Models, tmp_path: Path) -> None:
    pool = {"base": models["base"], "models": {"a": models["a"]}}
    for output in (None, tmp_path / "out"):
        with pytest.raises(RecipeError, match="in memory cannot be resumed"):
            run_fusion(
                algorithm="ties", model_pool=pool, output=output, options=RunOptions(resume=True)
            )
    assert os.listdir(tmp_path) == []


# --- what is planted ---------------------------------------------------------------------------


BROKEN: dict[str, Callable[[Workspace, Path], object]] = {
    "model is a link": lambda left, victim: _replaced_by_link(left.model, victim),
    "state is a link": lambda left, victim: _replaced_by_link(left.state, victim),
    "no model": lambda left, _: shutil.rmtree(left.model),
    "no state": lambda left, _: shutil.rmtree(left.state),
    "a link in state": lambda left, victim: (left.state / "nested-0").symlink_to(victim),
    "something else beside them": lambda left, _: (left.path / "x").mkdir(),
    **{
        f"{name} is a {kind}": lambda left, victim, name=name, kind=kind: plant(
            kind, left.path / name, victim / "precious"
        )
        for name in ("plan.json", "journal.jsonl", "model/model-00001-of-00020.safetensors")
        for kind in ("link", "hard link", "pipe", "directory")
        if (name[:5], kind) != ("model", "directory")  # side files may lie in folders
    },
    "a link in a folder": lambda left, victim: _linked(left.model / "folder", victim),
}


def _linked(folder: Path, victim: Path) -> None:
    folder.mkdir()
    (folder / "x").symlink_to(victim / "precious")


def _replaced_by_link(directory: Path, victim: Path) -> None:
    shutil.rmtree(directory)
    directory.symlink_to(victim)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("then", ["resume", "run", "clean"])
def test_planted_work_is_not_resumed_and_can_be_removed(
    tmp_path: Path, how: str, then: str
) -> None:
    """Such work is neither resumed nor followed, and is removed like other leftovers."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("data")
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    (left,) = find_workspaces(tmp_path)
    BROKEN[how](left, victim)
    if then == "clean":
        (leftover,) = find_leftovers(tmp_path)
        assert os.path.lexists(left.path)
        assert leftover.remove()
    else:
        fresh = Stopping(None)
        write(fresh, tmp_path / "out", resume=then == "resume")
        assert fresh.reads == 20
        shutil.rmtree(tmp_path / "out")
    assert os.listdir(tmp_path) == ["victim"]
    assert os.listdir(victim) == ["precious"]
    assert (victim / "precious").read_text() == "data"


@pytest.mark.parametrize("name", ["folder", "model-00001-of-00020.safetensors"])
def test_folder_among_finished_shards_is_removed(tmp_path: Path, name: str) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    (left,) = find_workspaces(tmp_path)
    (left.model / name).unlink(missing_ok=True)
    (left.model / name).mkdir()
    (left.model / name / "x").write_text("of a side file")
    fresh = Stopping(None)
    write(fresh, tmp_path / "out", resume=True)
    assert fresh.reads < 10
    assert not (tmp_path / "out" / name).is_dir()


def test_work_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    fresh = Stopping(None)
    write(fresh, tmp_path / "out", resume=True)
    assert fresh.reads == 20
    assert unfinished_outputs(tmp_path) == ["out"]


HOSTILE = [
    b"1e999",
    b'{"commit": 1e999}',
    b'{"commit": ' + b"9" * 5000 + b"}",
    b"[" * 10_000,
    b'{"name":' * 1_500 + b"1",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"name": ["layer.1"], "digest": "' + b"0" * 64 + b'"}',
    b'{"name": "layer.1", "digest": "short"}',
    b'{"layout": null}',
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:30].decode("ascii", "replace"))
def test_journal_ends_at_invalid_line(tmp_path: Path, line: bytes) -> None:
    good = b'{"name": "layer.%d", "digest": "' + b"0" * 64 + b'"}\n'
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"layout": "x"}\n' + good % 1 + line + b"\n" + good % 2)
    journal = Journal(path)
    assert (journal.layout, list(journal.tensors)) == ("x", ["layer.1"])


def test_huge_journal_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    assert Journal(path).tensors == {}


def test_unknown_tensor_in_journal_is_ignored(tmp_path: Path) -> None:
    stop_with(KeyboardInterrupt(), tmp_path / "out")
    (left,) = find_workspaces(tmp_path)
    with left.journal.open("a") as stream:
        stream.write('{"name": "\\ud800", "digest": "' + "0" * 64 + '"}\n')
    rest = Stopping(None)
    write(rest, tmp_path / "out", resume=True)
    assert rest.reads == 8


# --- algorithms ---------------------------------------------------------------------------------


class StepsConfig(ComponentConfig):
    steps: int = 6


class Steps(Algorithm[StepsConfig]):
    """Searches in steps and can resume after each of them."""

    config_class = StepsConfig
    error: BaseException | None = None
    done: int = 0

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        assert context.state is not None
        last = context.state / "step"
        first = int(last.read_text()) if last.exists() else 0
        for step in range(first, self.config.steps):
            if step == 4 and self.error is not None:
                raise self.error
            write_durably(last, str(step + 1).encode())
            self.done += 1
        context.save("steps.txt", b"found")
        return pool.experts["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of GPU memory")])
def test_algorithm_resumes_from_its_state(
    pool: dict[str, Any], tmp_path: Path, error: BaseException
) -> None:
    first, second = Steps(StepsConfig()), Steps(StepsConfig())
    first.error = error
    with pytest.raises(type(error)) as caught:
        run_fusion(algorithm=first, model_pool=pool, output="out")
    assert any("--resume" in note for note in caught.value.__notes__)
    assert not (tmp_path / "out").exists()
    run_fusion(algorithm=second, model_pool=pool, output="out", options=RunOptions(resume=True))
    assert (first.done, second.done) == (4, 2)
    assert sorted({*os.listdir("out")} - {"README.md"}) == [
        "model.safetensors",
        "provenance.json",
        "recipe.yaml",
        "steps.txt",
    ]
    assert unfinished_outputs(tmp_path) == []


def test_recipe_error_of_algorithm_leaves_nothing(pool: dict[str, Any], tmp_path: Path) -> None:
    algorithm = Steps(StepsConfig())
    algorithm.error = FusionError("diverged")
    with pytest.raises(FusionError, match="diverged"):
        run_fusion(algorithm=algorithm, model_pool=pool, output="out")
    assert unfinished_outputs(tmp_path) == []


def test_bug_discards_tensors_but_keeps_algorithm_state(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="bug"),
        stage_output(tmp_path / "out", plan=b"{}") as staging,
    ):
        write_durably(staging.state / "step", b"4")
        materialise(Stopping(RuntimeError("bug")), staging, shard_size=300)
    with stage_output(tmp_path / "out", plan=b"{}", resume=True) as staging:
        assert (staging.state / "step").read_bytes() == b"4"
        whole = Stopping(None)
        materialise(whole, staging, shard_size=300)
        assert whole.reads == 20


def test_run_in_memory_has_no_state(models: Models) -> None:
    class Looks(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            assert context.state is None
            return pool.experts["a"]

    run_fusion(algorithm=Looks(), model_pool={"base": models["base"], "models": {"a": models["a"]}})


# --- interrupts ---------------------------------------------------------------------------------


def test_interrupt_does_not_close_files_under_writing_threads(tmp_path: Path) -> None:
    """A second Ctrl-C does not wait for threads, whose descriptors must stay valid."""
    source = StateDictSource(STATE)
    with pytest.raises(KeyboardInterrupt), stage_output(tmp_path / "out", plan=b"{}") as staging:
        staging.lay_out(list(source.infos.values()), shard_size=10**9)
        shards = staging.shards
        raise KeyboardInterrupt
    others = [os.open(tmp_path / f"other{n}", os.O_RDWR | os.O_CREAT) for n in range(20)]
    info = source.infos["layer.1"]
    shards.write(info, 0, source.tensor("layer.1"))  # as a thread that has not noticed yet
    assert all((tmp_path / f"other{n}").stat().st_size == 0 for n in range(20))
    for descriptor in others:
        os.close(descriptor)


STOPPED = """
import signal
import sys
from fusion_core.cli import app
from fusion_core.weights.writing import _fault as fault, _journal as journal_module
journal_module.BATCH_BYTES = 1
reached = []
def listen(point):
    reached.append(point)
    if point == "journal synced" and reached.count(point) == 3:
        print("now", flush=True)
        sys.stdin.readline()
fault.listener = listen
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell ignores it
app.main()
"""


@pytest.mark.sampled(2)
@pytest.mark.plugins
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_signal_keeps_work_and_suggests_resume(
    fuse: Callable[..., Outcome], pool: dict[str, Any], sent: signal.Signals, code: int
) -> None:
    models = json.dumps(pool["models"])
    arguments = ["run", "--algo", "task-arithmetic", "--pool", "checkpoints", "-o", "out"]
    arguments += [
        "--set",
        "model_pool.base=base.safetensors",
        "--set",
        f"model_pool.models={models}",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "now\n"
        run.send_signal(sent)
        _, reported = run.communicate("go on\n")
    assert run.returncode == code
    assert "Finished work is kept: run the same command with --resume." in reported
    assert "Traceback" not in reported
    assert unfinished_outputs(Path()) == ["out"]
    again = fuse(*arguments, "--resume", "--executor", "serial", "-v")
    assert again.code == 0, again.err
    assert "resuming in .out.fuse-" in again.err
    assert "merge the rest" in again.err
    assert again.out.endswith("written: out\n")
    assert unfinished_outputs(Path()) == []
