"""`fuse average` and its algorithms on real directories."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from fusion_average.command import average
from fusion_average.config import GreedySoupConfig, RunAverageConfig
from fusion_average.greedy import GreedySoup
from fusion_average.run_average import RunAverage
from fusion_core import (
    AdaptiveTask,
    ComponentConfig,
    Measured,
    RunOptions,
    Task,
    TaskPool,
    run_fusion,
)
from fusion_core.commands import load_recipe
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import Batch, Split


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of four checkpoints, whose weights are their steps."""
    for step in (100, 200, 300, 400):
        directory = tmp_path / "run" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        tensors = {"w": torch.full((3, 2), float(step)), "seen": torch.tensor([step])}
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps({"trained_steps": step}))
    return tmp_path / "run"


@pytest.fixture
def fuse() -> Callable[..., str]:
    """Return a function that runs `fuse average` and returns its output."""
    app = typer.Typer()
    app.command()(average)

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--quiet"])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call


def test_an_average_is_written_with_weights_recipe_and_the_newest_side_files(
    fuse: Callable[..., str], run: Path, tmp_path: Path
) -> None:
    fuse(run, "--last", 3, "--schedule", "linear", "-o", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(tensors["w"], torch.full((3, 2), 300.0))
    assert tensors["seen"].tolist() == [400]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["trained_steps"] == 400
    weights = json.loads((tmp_path / "out" / "run_average.json").read_text())["weights"]
    assert weights == pytest.approx({"step-200": 0.25, "step-300": 0.5, "step-400": 0.25})
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert [*recipe["model_pool"]["models"]] == ["step-400", "step-300", "step-200"]
    again = run_fusion(algorithm=recipe["algorithm"], model_pool=recipe["model_pool"], output=None)
    assert torch.equal(again.weights.tensor("w"), tensors["w"])


def test_a_dry_run_prints_the_weights_of_the_run(
    fuse: Callable[..., str], run: Path, tmp_path: Path
) -> None:
    options = ["--window", "200:", "--ema", 0.2, "-o", tmp_path / "out"]
    rows = json.loads(fuse(run, *options, "--dry-run", "--json"))
    assert not (tmp_path / "out").exists()
    assert [row["step"] for row in rows] == [200, 300, 400]
    fuse(run, *options)
    weights = json.loads((tmp_path / "out" / "run_average.json").read_text())["weights"]
    assert weights == {f"step-{row['step']}": row["weight"] for row in rows}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "linaer"], "algorithm.schedule = 'linaer': expected"),
        (["--preset", "swa"], "algorithm.preset = 'swa': expected"),
        (["--preset", "pma"], "expected 10 checkpoints, found 4"),
        (["--ema", "1.5"], "algorithm.ema = 1.5"),
        (["--ema", "0.5", "--schedule", "cosine"], "ema and schedule=cosine conflict"),
        (["--window", "200"], "--window: expected FROM:TO"),
        (["--window", "300:200"], "the first step is larger"),
        (["--set", "algorithm.steps=[1, 2, 3, 4]"], "unsupported option of fuse average"),
        (["--greedy"], "--greedy needs --tasks"),
        (["--greedy", "--ema", "0.5"], "conflicting options: --greedy and --ema"),
    ],
)
def test_bad_options_write_nothing(
    arguments: list[str], message: str, fuse: Callable[..., str], run: Path, tmp_path: Path
) -> None:
    with pytest.raises(FusionError, match=re.escape(message)):
        fuse(run, *arguments, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_is_not_replaced_unasked(
    fuse: Callable[..., str], run: Path, tmp_path: Path
) -> None:
    fuse(run, "--last", 1, "-o", tmp_path / "out")
    with pytest.raises(FusionError, match="exists"):
        fuse(run, "-o", tmp_path / "out")
    fuse(run, "-o", tmp_path / "out", "--overwrite")
    assert load_file(tmp_path / "out" / "model.safetensors")["w"][0, 0] == 250


def test_adapters_are_added_to_their_base(fuse: Callable[..., str], tmp_path: Path) -> None:
    base = torch.randn(4, 3)
    (tmp_path / "base").mkdir()
    save_file({"lin.weight": base}, tmp_path / "base" / "model.safetensors")
    expected = torch.zeros(4, 3)
    for step in (10, 20):
        down, up = torch.randn(2, 3), torch.randn(4, 2)
        expected += (base + 2 * up @ down) / 2
        directory = tmp_path / "run" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        name = "base_model.model.lin.lora_{}.weight"
        save_file(
            {name.format("A"): down, name.format("B"): up},
            directory / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lin"]}
        (directory / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FusionError, match="needs its base"):
        fuse(tmp_path / "run", "-o", tmp_path / "out")
    fuse(tmp_path / "run", "--base", tmp_path / "base", "-o", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.allclose(merged["lin.weight"], expected, atol=1e-6)


def test_many_models_give_the_bytes_of_a_weighted_average() -> None:
    generator = torch.Generator().manual_seed(0)
    models = {f"step-{n}": {"w": torch.randn(700, generator=generator)} for n in range(40)}
    pool = {"name": "checkpoints", "models": models}
    weights = RunAverage(RunAverageConfig(schedule="cosine")).weights_of([*models])
    dense = {"name": "weighted-average", "weights": weights, "normalize": False}
    streamed = run_fusion(algorithm={"name": "run-average", "schedule": "cosine"}, model_pool=pool)
    reference = run_fusion(algorithm=dense, model_pool=pool)
    assert torch.equal(streamed.weights.tensor("w"), reference.weights.tensor("w"))


@pytest.mark.parametrize(("count", "warns"), [(8, True), (9, False)])
def test_a_short_moving_average_warns_that_it_holds_the_oldest_model(
    count: int,
    warns: bool,  # noqa: FBT001 - a parameter
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = {f"step-{number}": {"w": torch.ones(3)} for number in range(count)}
    run_fusion(
        algorithm={"name": "run-average", "ema": 0.2},
        model_pool={"name": "checkpoints", "models": models},
    )
    assert ("step-0, the oldest, the largest weight" in caplog.text) == warns


class Nearness(AdaptiveTask):
    """How near a linear layer is to the identity; larger is better."""

    name = "nearness"

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def evaluate(self, model: nn.Module) -> Measured:
        weight = next(model.parameters()).detach()
        outcome = 1 / (1 + float((weight - self._scale * torch.eye(2)).norm()))
        outcome = math.nan if weight[0, 0] < 0 else outcome  # a model that diverged
        return Measured({"nearness": outcome}, outcomes=[outcome])

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        raise NotImplementedError


class Nearnesses(TaskPool[ComponentConfig]):
    config_class = ComponentConfig
    names = ("nearness",)
    scale = 1.0

    def __getitem__(self, name: str) -> Task:
        return Nearness(self.scale)


class Halved(Nearnesses):
    def halves(self) -> tuple[Halved, Halved]:
        other = Halved(ComponentConfig())
        other.scale = 3.0
        return Halved(ComponentConfig()), other


def layer(*diagonal: float) -> nn.Module:
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.diag(torch.tensor(diagonal, dtype=torch.float32))
    return module


def test_a_greedy_soup_keeps_what_improves_the_average_on_its_half() -> None:
    models = {"far": layer(9, 9), "a": layer(1, 2), "b": layer(1, 0), "c": layer(4, 1)}
    method = GreedySoup(GreedySoupConfig())
    method.uses_tasks = True
    result = run_fusion(
        algorithm=method,
        model_pool={"name": "checkpoints", "models": models},
        task_pool=Halved(ComponentConfig()),
        output=None,
    )
    assert torch.equal(result.weights.tensor("weight"), torch.eye(2))  # the mean of a and b
    assert result.report is not None
    distance = 2 * 2**0.5  # from three times the identity, which the other half measures
    assert result.report.average == pytest.approx(1 / (1 + distance))


@pytest.mark.parametrize("others", [{}, {"a": layer(1, 2), "b": layer(1, 0)}], ids=["all", "some"])
def test_a_greedy_soup_tries_models_that_score_nan_last(others: dict[str, nn.Module]) -> None:
    models = {"nan": layer(-9, 1), **others}
    result = run_fusion(
        algorithm=GreedySoup(GreedySoupConfig()),
        model_pool={"name": "checkpoints", "models": models},
        task_pool=Halved(ComponentConfig()),
        output=None,
        options=RunOptions(evaluate=False),
    )
    expected = torch.eye(2) if others else torch.diag(torch.tensor([-9.0, 1.0]))
    assert torch.equal(result.weights.tensor("weight"), expected)


def test_a_greedy_soup_refuses_to_choose_on_what_is_measured() -> None:
    with pytest.raises(FusionError, match="has no halves of its test examples"):
        GreedySoup(GreedySoupConfig()).tasks(Nearnesses(ComponentConfig()))
