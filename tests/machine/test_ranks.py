"""Of several processes that torchrun started, the first one writes, evaluates and speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fusion_core import RunContext, run_fusion
from fusion_core.contracts.algorithm import Algorithm
from fusion_core.machine.devices import resolve_device
from fusion_core.machine.ranks import is_helper_process, local_gpu
from fusion_core.recipe.config import ComponentConfig

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


class Remembering(Algorithm[ComponentConfig]):
    """The first expert; remembers what it was run with."""

    config_class = ComponentConfig
    seen: RunContext

    def run(self, pool: ModelPool, context: RunContext) -> WeightSource:
        self.seen = context
        context.log(0, {"loss": 1.0})
        return next(iter(pool.experts.values()))


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")


def _run(path: Path) -> tuple[Remembering, Path | None]:
    algorithm = Remembering(ComponentConfig())
    models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    result = run_fusion(algorithm=algorithm, model_pool={"models": models}, output=path)
    return algorithm, result.path


@pytest.mark.usefixtures("helper")
def test_a_helper_takes_part_and_leaves_no_file(tmp_path: Path) -> None:
    algorithm, path = _run(tmp_path / "out")
    assert path is None
    assert algorithm.seen.state is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("helper")
def test_a_helper_ignores_an_output_that_the_first_began(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    assert _run(tmp_path / "out")[1] is None


def test_the_first_of_several_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    algorithm, path = _run(tmp_path / "out")
    assert path == tmp_path / "out"
    assert algorithm.seen.state is not None
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == '{"step": 0, "loss": 1.0}\n'


def test_a_single_process_is_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not is_helper_process()
    assert local_gpu() is None


@pytest.mark.usefixtures("helper")
def test_each_process_uses_its_local_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    assert resolve_device("cpu") == torch.device("cpu")
