"""Models are measured once: what is cached, what invalidates it, and who shares it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import Report, RunOptions, plan, run_fusion
from fusion_core.commands import RunIdentities
from fusion_core.report.table import report_notes
from fusion_core.running import _identity, cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Outcome, Site

pytestmark = pytest.mark.plugins

POOLS = """
    import torch
    from pathlib import Path
    from fusion_core import ComponentConfig, ModelPool, ModelPoolSpec, Task, TaskPool, TaskPoolSpec
    from fusion_core import Measured, hookimpl
    from fusion_core.weights import CheckpointSource

    MEASURED = []

    class Models(ComponentConfig):
        root: str
        bias: float = 0.0

    class Lines(ModelPool):
        config_class = Models

        def __init__(self, config):
            super().__init__(config)
            root = Path(config.root)
            self.base = CheckpointSource(root / "base.safetensors")
            self.experts = {n: CheckpointSource(root / f"{n}.safetensors") for n in ("a", "b")}

        def build(self, weights, **options):
            model = torch.nn.Linear(3, 3, bias=False)
            model.load_state_dict(weights.state_dict())
            return model.eval()

        def assets(self, *, dtype=None):
            return {"config.json": Path(self.config.root) / "config.json"}

    class Data(ComponentConfig):
        file: str
        scale: float = 1.0

    class Sum(Task):
        def __init__(self, name, config):
            self.name, self.config = name, config

        def evaluate(self, model):
            MEASURED.append(self.name)
            factor = float(Path(self.config.file).read_text()) * self.config.scale
            value = float(model.weight.detach().double().abs().sum()) * factor / 3.0
            if self.name == "c":
                return {"sum": value}
            return Measured({"sum": value}, [value / 2, value * 1.5], [1, 1])

    class Sums(TaskPool):
        config_class = Data
        names = ("a", "b", "c")

        def __getitem__(self, name):
            return Sum(name, self.config)

        def identity(self, name):
            return {"data": Path(self.config.file).read_text(), "scale": self.config.scale}

    @hookimpl
    def fusion_register_model_pools():
        yield ModelPoolSpec(name="lines", summary="", target="line_pools:Lines",
                            config="line_pools:Models")

    @hookimpl
    def fusion_register_task_pools():
        yield TaskPoolSpec(name="sums", summary="", target="line_pools:Sums",
                           config="line_pools:Data")
"""


@pytest.fixture(autouse=True)
def _unread_code() -> Iterator[None]:
    forget_code()
    cache.warn_unwritable.cache_clear()
    yield
    forget_code()


def forget_code() -> None:
    _identity.identify_package.cache_clear()
    _identity.find_distributions.cache_clear()


class World:
    """A pool of files with tasks, and the measurements of runs on them."""

    def __init__(self, root: Path, site: Site) -> None:
        self.root = root
        self.module = Path(site.path / "line_pools.py")
        site.install("line-pools", POOLS, requires=("fusion-core>=0.1,<0.2",))
        for number, name in enumerate(("base", "a", "b")):
            self.save(name, float(number))
        (root / "config.json").write_text("{}")
        (root / "data").write_text("0.125")

    def save(self, name: str, value: float, dtype: torch.dtype = torch.float32) -> None:
        values = torch.full((3, 3), value + 0.1).to(dtype)
        save_file({"weight": values}, self.root / f"{name}.safetensors")

    def run(self, *, fresh: bool = False, bias: float = 0.0, scale: float = 1.0) -> list[str]:
        """Return the tasks that were not in the cache."""
        result = run_fusion(
            algorithm="simple-average",
            model_pool={"name": "lines", "root": str(self.root), "bias": bias},
            task_pool={"name": "sums", "file": str(self.root / "data"), "scale": scale},
            output=self.root / "out",
            options=RunOptions(fresh=fresh, overwrite=True),
        )
        assert result.report is not None
        self.report: Report = result.report
        measured: list[str] = sys.modules["line_pools"].MEASURED
        repeated = measured[3:]  # the merge itself comes first
        measured.clear()
        return repeated


@pytest.fixture
def world(tmp_path: Path, site: Site) -> World:
    (tmp_path / "world").mkdir()
    return World(tmp_path / "world", site)


ALL = ["a", "b", "c", "a", "b"]


def test_the_second_run_measures_the_merge_alone(world: World) -> None:
    assert world.run() == ALL
    first = world.report
    assert first.remembered == {}
    assert world.run() == []
    second = world.report
    assert second.remembered == {"base": ("a", "b", "c"), "experts": ("a", "b")}
    assert replace(second, remembered={}) == first, "to the bit"
    outcomes = second.outcomes_as_json()
    assert outcomes == first.outcomes_as_json()
    assert [list(outcomes[row]) for row in ("tasks", "base", "experts")] == [["a", "b"]] * 3
    assert json.loads((world.root / "out" / "outcomes.json").read_text()) == outcomes
    stored = json.loads((world.root / "out" / "report.json").read_text())
    assert stored["remembered"] == {"base": ["a", "b", "c"], "experts": ["a", "b"]}
    assert report_notes({"m": second})[-1] == (
        "known from an earlier command: base, experts; --fresh measures again"
    )
    assert world.run(fresh=True) == ALL
    assert world.run() == []


def change_weights(world: World) -> None:
    path = world.root / "base.safetensors"
    before = path.stat()
    world.save("base", 7.0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync leaves it


def change_dtype(world: World) -> None:
    for name in ("base", "a", "b"):
        world.save(name, 1.0, torch.float64)


def change_dtype_of_models(world: World) -> None:
    del world
    sys.modules["line_pools"].Sums.dtype = torch.bfloat16  # type: ignore[attr-defined]


def change_code(world: World) -> None:
    world.module.write_text(world.module.read_text() + "# another version\n")
    forget_code()


def change_version(world: World) -> None:
    path = world.module.parent / "line_pools-1.0.dist-info" / "METADATA"
    path.write_text(path.read_text().replace("Version: 1.0", "Version: 1.1"))
    forget_code()


CHANGES: dict[str, tuple[Callable[[World], object], list[str]]] = {
    "weights": (change_weights, ["a", "b", "c"]),
    "dtype of weights": (change_dtype, ALL),
    "dtype of models": (change_dtype_of_models, ALL),
    "configuration": (lambda world: (world.root / "config.json").write_text("{} "), ALL),
    "data": (lambda world: (world.root / "data").write_text("0.25"), ALL),
    "code": (change_code, ALL),
    "version": (change_version, ALL),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_dependency_is_measured_again(world: World, change: str) -> None:
    world.run()
    make, expected = CHANGES[change]
    make(world)
    assert world.run() == expected
    assert world.run() == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_dependency_changes_run_identity(world: World, change: str) -> None:
    recipe = {
        "algorithm": "simple-average",
        "model_pool": {"name": "lines", "root": str(world.root)},
        "task_pool": {"name": "sums", "file": str(world.root / "data")},
    }
    nested = {"algorithm": "simple-average", "model_pool": {"models": {"inner": recipe}}}

    def identities() -> list[Any]:
        return [RunIdentities().of(plan(raw, RunOptions())) for raw in (recipe, nested)]

    before = identities()
    assert None not in before
    assert identities() == before
    CHANGES[change][0](world)
    inside = change not in {"dtype of models", "data"}  # at which nothing nested looks
    changed = [one != other for one, other in zip(before, identities(), strict=True)]
    assert changed == [True, inside]


def test_libraries_that_build_on_the_core_are_identified_by_code(site: Site) -> None:
    site.install("line-help", "ONE = 1", requires=("fusion-core>=0.1",))
    site.install("line-more", "TWO = 2", requires=("line_help>=0.1", "torch"))
    code = _identity.identify_code(type("Of", (), {"__module__": "line_more"}))
    assert code is not None
    assert set(code) == {"fusion_core", "line_help", "line_more"}


def test_adapting_library_is_identified_by_code() -> None:
    from fusion_adamerging.adamerging import AdaMerging

    code = _identity.identify_code(AdaMerging)
    assert code is not None
    assert {"fusion_adamerging", "fusion_adapting", "fusion_core"} <= set(code)


def test_pool_options_are_part_of_the_key(world: World) -> None:
    world.run()
    assert world.run(bias=1.0) == ALL
    assert world.run(scale=0.5) == ALL
    assert world.run() == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", ["dtype", "threads", "processor", "device", "gpu"])
def test_other_machine_measures_again(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    world.run()
    real = _identity.identify_machine

    def other(device: torch.device) -> dict[str, Any]:
        assert what in real(device)
        return {**real(device), what: "another"}

    monkeypatch.setattr(_identity, "identify_machine", other)
    assert world.run() == ALL


def test_models_in_memory_are_measured_every_time(world: World, site: Site) -> None:
    del site
    line = torch.nn.Linear(3, 3, bias=False)
    pool = {"base": line, "models": {"a": line, "b": line}}
    tasks = {"name": "sums", "file": str(world.root / "data")}
    for _ in range(2):
        result = run_fusion(algorithm="simple-average", model_pool=pool, task_pool=tasks)
        assert result.report is not None
        assert result.report.remembered == {}
    assert not cache.cache_directory().exists()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_text('{"key": {}, "metrics": {"sum": 1.0}}'),
    "text": lambda path: path.write_text(path.read_text().replace('"sum": ', '"sum": "x", "y": ')),
    "list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "link": lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to(path.name + "x")),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_entry_is_measured_again(world: World, damage: str) -> None:
    world.run()
    first = world.report
    files = list(cache.cache_directory().iterdir())
    assert len(files) == 8
    for path in files:
        DAMAGE[damage](path)
    assert world.run() == ALL
    assert replace(world.report, remembered={}) == first


def test_unwritable_cache_warns_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.root / "data"))  # which is a file
    with caplog.at_level(logging.WARNING):
        assert world.run() == ALL
        assert world.run() == ALL
    (line,) = caplog.messages
    assert line.startswith("cannot cache measurements in ")


def test_fresh_option_measures_again(
    world: World, fuse: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = (f"model_pool.root={world.root}", f"task_pool.file={world.root / 'data'}")
    options = [option for name in sets for option in ("--set", name)]
    run = ("run", "--algo", "simple-average", "--pool", "lines", "--task-pool", "sums", *options)
    flags: list[tuple[str, ...]] = [("-o", "out0"), ("-o", "out1"), ("-o", "out2", "--fresh")]
    outputs = [fuse(*run, "-q", *flag).out for flag in flags]
    assert ["known from an earlier command" in output for output in outputs] == [False, True, False]
    measure = ("evaluate", "out0", "-q", "--json")
    assert json.loads(fuse(*measure).out)["remembered"].keys() == {"merged", "base", "experts"}
    assert json.loads(fuse(*measure, "--fresh").out)["remembered"] == {}


def test_run_and_evaluation_share_scores(
    world: World, fuse: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    first = world.report
    monkeypatch.chdir(tmp_path)
    measured: list[str] = sys.modules["line_pools"].MEASURED

    def evaluate(model: str, *flags: str) -> tuple[list[str], dict[str, Any]]:
        measured.clear()
        outcome = fuse("evaluate", model, "-q", "--json", *flags)
        return list(measured), json.loads(outcome.out)

    tasks, report = evaluate("world/out")
    assert tasks == []
    assert report["tasks"] == {name: dict(row) for name, row in first.tasks.items()}
    assert report["remembered"]["merged"] == ["a", "b", "c"]
    # an expert's figure on its own task is known from the run, its others from now on
    expert = ("world/a.safetensors", "--recipe", "world/out/recipe.yaml")
    assert [evaluate(*expert)[0] for _ in range(2)] == [["b", "c"], []]
    assert evaluate("world/base.safetensors", *expert[1:])[0] == []
    assert evaluate("world/out", "--set", "task_pool.scale=2.0")[0] == ["a", "b", "c", *ALL]
    assert evaluate("world/out", "--fresh")[0] == ["a", "b", "c", *ALL]
    shutil.copytree(world.root / "out", tmp_path / "copy")
    assert evaluate("copy")[0] == ["a", "b", "c"]
    assert evaluate("./copy/../copy")[0] == []
    os.utime(world.root / "out" / "model.safetensors")
    assert evaluate("world/out")[0] == ["a", "b", "c"]


def test_evaluation_refuses_options_that_change_nothing(
    world: World, fuse: Callable[..., Outcome]
) -> None:
    world.run()
    out = str(world.root / "out")
    refused = {
        "algorithm.scale=1": "algorithm does not change how a finished model is measured",
        "scale=2": "--set task_pool.scale=2",
        "task_pool.scal=2": "task_pool.scal: unknown option; did you mean scale?",
    }
    for assignment, words in refused.items():
        outcome = fuse("evaluate", out, "-q", "--set", assignment)
        assert outcome.code == 2
        assert words in outcome.err


def test_flags_change_the_recorded_options(world: World, fuse: Callable[..., Outcome]) -> None:
    world.run(scale=0.5)
    out = world.root / "out"
    recorded = (out / "report.json").read_bytes()
    changed = str(world.root / "other")
    Path(changed).write_text("1.0")
    outcome = fuse("evaluate", str(out), "-q", "--json", "--set", f"task_pool.file={changed}")
    expected = 8 * world.report.tasks["c"]["sum"]  # the recorded scale still applies
    assert json.loads(outcome.out)["tasks"]["c"]["sum"] == pytest.approx(expected)
    assert (out / "report.json").read_bytes() == recorded


def test_mini8_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pools_clip.tasks import ClipTask

    calls: list[str] = []
    real = ClipTask.evaluate

    def evaluate(task: ClipTask, model: torch.nn.Module) -> Mapping[str, float]:
        calls.append(task.name)
        return real(task, model)

    monkeypatch.setattr(ClipTask, "evaluate", evaluate)

    def count(limit: int) -> int:
        calls.clear()
        pool = {"name": "mini8", "tasks": ["shapes", "latin"]}
        tasks = {**pool, "limit": limit}
        result = run_fusion(
            algorithm="simple-average",
            model_pool=pool,
            task_pool=tasks,
            output={"path": "out"},
            options=RunOptions(overwrite=True),
        )
        assert result.report is not None
        return len(calls)

    monkeypatch.chdir(tmp_path)
    assert [count(8), count(8), count(9)] == [6, 2, 6]
