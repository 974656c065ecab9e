"""The engine on other processes: the same bytes, and clear errors where it cannot work."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.errors import (
    BrokenPluginError,
    DiskError,
    IntegrityError,
    RecipeError,
    WorkerError,
)
from fusion_core.planning.run_options import RunOptions
from fusion_core.weights import (
    CheckpointSource,
    RenamedSource,
    StateDictSource,
    WeightSource,
    materialise,
    stage_output,
)
from fusion_core.weights.merging.execution import _Shipped, is_in_process, run_all
from fusion_core.weights.state_dict import find_in_memory_source
from fusion_core.weights.writing import _journal as journal_module
from fusion_core.weights.writing.workspace import find_workspaces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from conftest import Site

Models = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture
def pool(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(1)
    for name, state in models.items():
        large = torch.randn(300, 1000, generator=generator)  # more than one block
        save_file({**state, "large": large}, tmp_path / f"{name}.safetensors")
    experts = {name: f"{tmp_path}/{name}.safetensors" for name in ("a", "b", "c")}
    return {"name": "checkpoints", "base": f"{tmp_path}/base.safetensors", "models": experts}


@pytest.fixture
def spawning(site: Site, processes: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a plugin with an executor of other processes, which all runs share."""
    site.install(
        "spawning",
        """
        from concurrent.futures import Executor
        from fusion_core import ComponentConfig, ExecutorSpec, hookimpl

        class Processes(Executor):
            def submit(self, function, /, *given, **keys):
                return POOL.submit(function, *given, **keys)

        @hookimpl
        def fusion_register_executors():
            yield ExecutorSpec(
                name="processes", summary="", target="spawning:make", config="spawning:Config"
            )

        class Config(ComponentConfig): ...

        def make(config):
            return Processes()
        """,
    )
    monkeypatch.setattr(importlib.import_module("spawning"), "POOL", processes, raising=False)


@pytest.mark.sampled(3)
@pytest.mark.plugins
@pytest.mark.usefixtures("spawning")
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "task-arithmetic", "scale": 0.3},
        {"name": "ties", "scope": "tensor"},
        {"name": "ties", "scope": "model"},
    ],
    ids=lambda algorithm: "-".join(map(str, algorithm.values())),
)
def test_other_processes_write_the_same_bytes(
    pool: dict[str, Any], tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    for executor in ("threads", "processes"):
        run_fusion(
            algorithm=algorithm,
            model_pool=pool,
            output={"path": executor, "shard_size": 100_000},
            options=RunOptions(executor=executor),
        )
    files = sorted(path.name for path in (tmp_path / "threads").iterdir())
    assert len(files) > 3
    assert sorted(path.name for path in (tmp_path / "processes").iterdir()) == files
    for name in files:
        if name != "provenance.json":
            written = (tmp_path / "processes" / name).read_bytes()
            assert written == (tmp_path / "threads" / name).read_bytes()


@pytest.mark.plugins
@pytest.mark.usefixtures("spawning")
def test_models_in_memory_are_refused_by_name(models: Models, tmp_path: Path) -> None:
    pool = {"base": models["base"], "models": {"a": models["a"]}}
    with pytest.raises(RecipeError, match=r"base \(live\) is in this process's memory") as caught:
        run_fusion(
            algorithm="ties",
            model_pool=pool,
            output=tmp_path / "out",
            options=RunOptions(executor="processes"),
        )
    assert "the Processes works in other processes" in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


class Unpicklable(CheckpointSource):
    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("cannot pickle a lock")


def test_unpicklable_source_is_refused(
    pool: dict[str, Any], tmp_path: Path, processes: Executor
) -> None:
    with (
        pytest.raises(RecipeError, match=r"cannot be sent .* cannot pickle a lock"),
        stage_output(tmp_path / "out") as staging,
    ):
        source = Unpicklable("base.safetensors")
        materialise(source, staging, shard_size=10**9, executor=processes)
    assert not (tmp_path / "out").exists()


class Killed(CheckpointSource):
    """Kills the process that reads one of its tensors, as the system does without memory."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name == "scale":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, start, stop)


def test_dead_worker_ends_run_and_keeps_work(
    pool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1)
    engine = importlib.import_module("fusion_core.weights.writing.materialise")
    monkeypatch.setattr(engine, "_WORTH_SENDING", 1)
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes,
        pytest.raises(WorkerError, match="worker of the ProcessPoolExecutor died") as caught,
        stage_output(tmp_path / "out", plan=b"{}") as staging,
    ):
        source = Killed("base.safetensors")
        materialise(source, staging, shard_size=10**9, executor=processes)
    assert any("--resume" in note for note in caught.value.__notes__)
    (left,) = find_workspaces(tmp_path)
    assert left.can_be_resumed


class Full(CheckpointSource):
    """Keeps the worker that reads from writing more than 100 bytes per file."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return super().read(name, start, stop)


@pytest.mark.thorough
def test_disk_failure_in_worker_raises_disk_error(pool: dict[str, Any], tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes,
        pytest.raises(DiskError, match="cannot be written: File too large") as caught,
        stage_output(tmp_path / "out") as staging,
    ):
        source = Full("base.safetensors")
        materialise(source, staging, shard_size=10**9, executor=processes)
    assert caught.value.hint


def leaving(_: object) -> None:
    raise SystemExit(0)


def test_exit_in_worker_is_attributed(processes: Executor) -> None:
    with pytest.raises(BrokenPluginError, match=r"SystemExit: 0, in leaving \(.*test_materialise"):
        list(run_all(processes, leaving, [None]))


def test_executor_may_declare_where_it_works() -> None:
    class OutOfProcess(ThreadPoolExecutor):
        in_process = False

    assert is_in_process(ThreadPoolExecutor(1))
    assert not is_in_process(OutOfProcess(1))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_source_in_memory_is_found_at_any_depth(models: Models, depth: int) -> None:
    live = StateDictSource(models["a"], label="a (live)")
    source: WeightSource = live
    for _ in range(depth):
        source = RenamedSource(source, {name: name for name in source.infos})
    assert find_in_memory_source(source) is live


def test_source_on_disk_is_not_held_in_memory(pool: dict[str, Any]) -> None:
    assert find_in_memory_source(CheckpointSource("base.safetensors")) is None


class Elsewhere(ThreadPoolExecutor):
    """Claims to work on other machines, and records the submitted units."""

    in_process = False

    def __init__(self) -> None:
        super().__init__(1)
        self.units: list[Any] = []

    def submit(self, function: Any, /, *arguments: Any, **keys: Any) -> Any:
        self.units.append(arguments[-1])
        return super().submit(function, *arguments, **keys)


def test_on_other_machines_each_shard_has_one_writer(tmp_path: Path) -> None:
    tensors = {str(n): torch.full((200 if n == 5 else 100,), float(n)) for n in range(6)}
    save_file(tensors, tmp_path / "model.safetensors")
    source = CheckpointSource(tmp_path / "model.safetensors")
    with Elsewhere() as executor, stage_output(tmp_path / "out") as staging:
        materialise(source, staging, shard_size=800, executor=executor)
        shards = [[info.name for info in shard.infos] for shard in staging.shards.layout.shards]
    units = [[info.name for info, *_ in unit] for unit in executor.units]
    assert sorted(units) == shards == [["0", "1"], ["2", "3"], ["4"], ["5"]]
    assert units[-1] == ["4"]  # the smallest


def test_two_units_per_slot_are_submitted_ahead() -> None:
    executor = Elsewhere()
    executor.slots = 20  # type: ignore[attr-defined]
    with executor:
        results = run_all(executor, abs, range(100))
        assert next(results) == 0
        assert len(executor.units) == 40
        assert sum(results) == sum(range(100))


def test_worker_with_other_versions_is_refused() -> None:
    shipped = _Shipped.of(abs, Elsewhere())
    assert shipped(-1) == 1
    other = replace(shipped, versions={**shipped.versions, "torch": "1.0"}, sha256=b"")
    with pytest.raises(WorkerError, match=r"a worker on .* has torch [\d.]+, this run has 1\.0"):
        other(-1)


def test_file_missing_on_worker_names_worker(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    source = CheckpointSource(tmp_path / "model.safetensors")
    shipped = _Shipped.of(source.read, Elsewhere())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WorkerError, match=r"a worker on .*: .*model.safetensors does not exist"):
        shipped("a")


def test_workers_resolve_relative_paths_and_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(2)}, "model.safetensors")
    source = CheckpointSource("model.safetensors")
    pickled = pickle.dumps(source)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    state = source.__getstate__()
    seen = {file: (-1, -1, *rest[2:]) for file, rest in state["_stamps"].items()}
    there = replace(state["location"], path=tmp_path / "model.safetensors")
    mounted = CheckpointSource.__new__(CheckpointSource)
    mounted.__setstate__({**state, "location": there, "_stamps": seen})
    assert pickle.loads(pickled).read("a", 0, 2).equal(mounted.read("a", 0, 2))
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    with pytest.raises(IntegrityError, match="differs from the file that was opened"):
        pickle.loads(pickled)
