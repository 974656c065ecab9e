"""The examples in the docstrings of base classes work as they are."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fusion_core
from fusion_core import Split, run_fusion

Models = dict[str, dict[str, torch.Tensor]]


def run_example(base_class: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Execute the example in a public class's docstring; return the names that it defines."""
    doc = inspect.getdoc(getattr(fusion_core, base_class)) or ""
    match = re.search(r"Example::\n\n((?: {4}.*\n|\n)+)", f"{doc}\n")
    assert match is not None, base_class
    defined = {"__name__": "example", **(namespace or {})}
    exec(compile(textwrap.dedent(match[1]), base_class, "exec", dont_inherit=True), defined)
    return defined


def merge(models: Models, *stages: Any) -> torch.Tensor:
    experts = {name: state for name, state in models.items() if name != "base"}
    pool = {"base": models["base"], "models": experts}
    return run_fusion(algorithm=list(stages), model_pool=pool).weights.tensor("layer.weight")


def mean_delta(models: Models) -> torch.Tensor:
    base = models["base"]["layer.weight"]
    return torch.stack([models[name]["layer.weight"] - base for name in "abc"]).mean(dim=0)


def test_an_algorithm(models: Models) -> None:
    pick = run_example("Algorithm")["Pick"]
    experts = {name: state for name, state in models.items() if name != "base"}
    picked = pick(expert="b").run({"base": models["base"], "models": experts})
    assert torch.equal(picked.tensor("layer.weight"), models["b"]["layer.weight"])


@pytest.mark.parametrize(
    ("base_class", "name", "position", "factor"),
    [
        ("Transform", "Halve", 0, 0.5),
        ("Coordinates", "Negate", 0, 1.0),
        ("TensorwiseCalibration", "Halfway", 1, 0.5),
        ("Calibration", "KeepBiases", 1, 1.0),
    ],
)
def test_stages_around_a_tensorwise_algorithm(
    models: Models,
    base_class: str,
    name: str,
    position: int,
    factor: float,
) -> None:
    average = run_example("TensorwiseAlgorithm")["DropAndAverage"](floor=0)
    stages = [average]
    stages.insert(position, run_example(base_class)[name]())
    expected = models["base"]["layer.weight"] + factor * mean_delta(models)
    torch.testing.assert_close(merge(models, *stages), expected)


def test_a_model_pool_and_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "garden", "shore"):
        directory = Path("birds") / name
        directory.mkdir(parents=True)
        save_file(nn.Linear(6, 3).state_dict(), directory / "model.safetensors")
    for name in ("day", "night"):
        images = {str(split): torch.randn(8, 6) for split in Split}
        labels = {str(split): torch.arange(8) % 2 for split in Split}
        torch.save({"images": images, "labels": labels}, tmp_path / f"{name}.pt")
    birds = run_example("ModelPool")
    signs = run_example("TaskPool", run_example("FeatureTask"))
    pool = birds["BirdsPool"](birds["BirdsConfig"](folder="birds"))
    tasks = signs["SignsPool"](signs["SignsConfig"](folder=str(tmp_path)))
    average = run_example("TensorwiseAlgorithm")["DropAndAverage"](floor=0)
    report = run_fusion(algorithm=average, model_pool=pool, task_pool=tasks).report
    assert report is not None
    assert set(report.tasks) == {"day", "night"}
    batch = tasks["day"].batch(0, size=4, split=Split.UNLABELED, seed=0)
    assert (len(batch), batch.labels) == (4, None)
    with pytest.raises(fusion_core.FusionError, match="unknown task 'dya'; did you mean day"):
        tasks["dya"]


def test_a_task_that_only_evaluates() -> None:
    sums = run_example("Task")["Sums"]([(torch.tensor([1.0, 0.0]), 0), (torch.ones(2), 1)])
    measured = sums.evaluate(nn.Identity())
    assert (dict(measured), measured.outcomes) == ({"accuracy": 0.5}, (1.0, 0.0))
