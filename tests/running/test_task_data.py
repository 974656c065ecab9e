"""The data of tasks: recorded by its hashes, locked, and compared by a reproduction."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fusion_core import run_fusion
from fusion_core.cli.app import app
from fusion_core.commands import load_yaml, read_provenance
from fusion_core.errors import CheckpointError, IntegrityError
from fusion_core.files import hash_files

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Site

pytestmark = pytest.mark.plugins

#: A pool that measures the distance from a number in a file, and a method that adapts to it.
PLUGIN = """
from pathlib import Path
from fusion_core import (
    AdaptiveTask, Algorithm, AlgorithmSpec, ComponentConfig, InputPath, ModelPoolSpec, TaskPool,
    TaskPoolSpec, hookimpl,
)
from pools_checkpoints import CheckpointsPool
from fusion_core.weights import StateDictSource
from fusion_core.files import hash_files

class PoolConfig(ComponentConfig):
    file: InputPath
    "The file with the number."

class Distance(AdaptiveTask):
    name = "number"
    def __init__(self, file): self.file = file
    def evaluate(self, model): return {"accuracy": float(Path(self.file).read_text())}
    def batch(self, step, *, size, split, seed): raise NotImplementedError
    def logits(self, model, batch): raise NotImplementedError

class Numbers(TaskPool[PoolConfig]):
    config_class = PoolConfig
    names = ("number",)
    def __getitem__(self, name): return Distance(self.config.file)
    def measure(self, subject, tasks=None, *, label="evaluate", progress=None):
        return {"number": self["number"].evaluate(None)}
    def inputs(self): return {"number": {"test": {"files": hash_files([self.config.file])}}}

class Models(CheckpointsPool):
    def check_builds(self): pass

class Shift(Algorithm[ComponentConfig]):
    config_class = ComponentConfig
    def run(self, pool, context):
        shift = context.tasks["number"].evaluate(None)["accuracy"]
        state = pool.base.state_dict()
        return StateDictSource({name: tensor + shift for name, tensor in state.items()})

@hookimpl
def fusion_register_model_pools():
    yield ModelPoolSpec(name="plain", summary="Models.", target="numbers_x:Models",
                        config="pools_checkpoints:CheckpointsConfig")
@hookimpl
def fusion_register_task_pools():
    yield TaskPoolSpec(name="numbers", summary="Numbers.", target="numbers_x:Numbers",
                       config="numbers_x:PoolConfig")
@hookimpl
def fusion_register_algorithms():
    yield AlgorithmSpec(name="shift", summary="Shifts.", target="numbers_x:Shift",
                        config="fusion_core:ComponentConfig", needs_tasks="labeled")
"""


@pytest.fixture
def recipe(site: Site, tmp_path: Path) -> Path:
    """Write a recipe of a method that adapts to the number in a file."""
    site.install("numbers-x", PLUGIN)
    for seed, name in enumerate(("base", "a")):
        (tmp_path / name).mkdir()
        drawn = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
        save_file({"w": drawn}, tmp_path / name / "model.safetensors")
    (tmp_path / "number.txt").write_text("1")
    content = {
        "algorithm": "shift",
        "model_pool": {"name": "plain", "base": "base", "models": {"a": "a"}},
        "task_pool": {"name": "numbers", "file": "number.txt"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    return tmp_path / "recipe.yaml"


def call(*arguments: object) -> str:
    """Call `fuse`, and return its output or raise its error."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_changed_data_is_noticed(recipe: Path, tmp_path: Path) -> None:
    output, number = tmp_path / "out", tmp_path / "number.txt"
    run_fusion(recipe, output=output)
    hashed = {"number.txt": {"bytes": 1, "sha256": sha256(b"1").hexdigest()}}
    assert read_provenance(output).tasks == {"number": {"test": {"files": hashed}}}
    assert "bit for bit" in call("reproduce", output, "-q")
    assert "data of 1 tasks" in call("lock", recipe, "-q")
    locked = tmp_path / "recipe.lock.yaml"
    assert load_yaml(locked.read_text(), origin="lock")["lock"]["tasks"]["number"]["test"] == {
        "files": hashed
    }
    run_fusion(locked, output=tmp_path / "locked")

    number.write_text("2")
    with pytest.raises(IntegrityError, match=r"task number: test files number\.txt sha256"):
        call("reproduce", output, "-q")
    with pytest.raises(IntegrityError, match=r"differ from the lock.*\n.*number\.txt sha256"):
        run_fusion(locked, output=tmp_path / "again")
    call("evaluate", output, "-q")
    recorded = read_provenance(output)
    assert recorded.run.evaluation is not None
    now = recorded.run.evaluation.data["number"]["test"]["files"]["number.txt"]["sha256"]
    assert now == sha256(b"2").hexdigest()
    assert recorded.tasks["number"]["test"]["files"] == hashed, "what the method adapted to"
    assert "verified" in call("verify", output)


def test_files_are_named_from_their_common_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x", tmp_path / "a" / "b" / "x"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    hashes = hash_files(map(str, paths))
    assert list(hashes) == ["b/x", "x"]
    assert hashes["x"]["sha256"] == sha256(str(paths[0]).encode()).hexdigest()
    assert hash_files([]) == {}
    paths[0].write_text("changed")
    assert hash_files([str(paths[0])])["x"]["sha256"] == sha256(b"changed").hexdigest()
    with pytest.raises(CheckpointError, match="missing"):
        hash_files([str(tmp_path / "missing")])
