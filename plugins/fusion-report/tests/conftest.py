"""Runs of three tiny experts with hostile names, with reports and logs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import Metric, Published, Reference, Report, RunOptions, run_fusion
from fusion_testing import Mean

if TYPE_CHECKING:
    from pathlib import Path

#: Names that a page must show literally and never interpret.
NAMES = ("<script>alert(1)</script>", "a\"b'c&amp;$x^2$", "日本 \x1b[31m\n")
SHAPES = {
    "body.embed.weight": (5, 4),
    "body.layers.0.up.weight": (4, 4),
    "body.layers.0.up.bias": (4,),
    "body.layers.10.up.weight": (4, 4),
    "body.layers.2.up.weight": (4, 4),
    "body.norm.weight": (4,),
}


@dataclass
class World:
    """A directory with runs."""

    root: Path
    #: names of the experts and of the tasks
    names: tuple[str, ...] = NAMES

    def weights(self, seed: int) -> dict[str, torch.Tensor]:
        """Return the weights of the base (seed 0) or an expert."""
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    def report(self, values: tuple[float, ...], **changes: Any) -> Report:
        """Return a report on one task per expert; the base scores 0.5, experts score 0.8."""
        fields: dict[str, Any] = {
            "tasks": {name: {"accuracy": value} for name, value in zip(NAMES, values, strict=True)},
            "reference": Reference(
                base={name: {"accuracy": 0.5} for name in NAMES},
                experts={name: {"accuracy": 0.8} for name in NAMES},
            ),
            "transductive": True,
            "needs_task": True,
            "remembered": {"base": NAMES},
        }
        return Report(**{**fields, **changes})

    def run(self, name: str, report: Report | None = None) -> Path:
        """Merge the experts into a directory, and add a report."""
        for seed, model in enumerate(("base", "one", "two", "three")):
            if not (self.root / model).exists():
                (self.root / model).mkdir(parents=True)
                save_file(self.weights(seed), self.root / model / "model.safetensors")
        models = dict(
            zip(NAMES, (str(self.root / name) for name in ("one", "two", "three")), strict=True)
        )
        pool = {"name": "checkpoints", "base": str(self.root / "base"), "models": models}
        path = self.root / name
        run_fusion(
            algorithm=Mean(), model_pool=pool, output=path, options=RunOptions(evaluate=False)
        )
        if report is not None:
            (path / "report.json").write_text(json.dumps(report.as_json()))
            (path / "outcomes.json").write_text(json.dumps(report.outcomes_as_json()))
        return path

    def write_search(self, name: str, report: Report | None = None, steps: int = 30) -> Path:
        """Write a run with coefficients and a log of their search."""
        path = self.run(name, report)
        coefficients = {
            expert: {tensor: 0.2 + index + number / 10 for number, tensor in enumerate(SHAPES)}
            for index, expert in enumerate(NAMES)
        }
        (path / "coefficients.json").write_text(
            json.dumps({"schema": 1, "coefficients": coefficients})
        )
        lines = [
            {"step": step, "entropy": 3.0 / (step + 1)}
            | {f"entropy/{name}": 1.0 / (step + 1) for name in NAMES}
            | {f"coefficient/{name}": 0.2 + step * index / 100 for index, name in enumerate(NAMES)}
            for step in range(steps)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def mixed() -> Report:
    """A report with two metrics, one of them better if lower."""
    perplexity = Metric("perplexity", unit="", higher_is_better=False)
    refused = Metric("refused", is_noted=True)
    return Report(
        tasks={"text": {"perplexity": 8.0}, "quiz": {"accuracy": 0.7, "refused": 0.25}},
        reference=Reference(
            base={"text": {"perplexity": 10.0}, "quiz": {"accuracy": 0.72}},
            experts={"text": {"perplexity": 4.0}, "quiz": {"accuracy": 0.8}},
        ),
        metrics={"text": {"perplexity": perplexity}, "quiz": {"refused": refused}},
        measured_on="the first 100 examples of each task",
        conditions={"quiz": {"few-shot": 5}},
        chosen="by 12 trials on the other half",
        published=Published("Tiny 1B", "a paper", {"their method": {"quiz": 0.75}}),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a page can show."""
    world = World(tmp_path_factory.mktemp("whole"))
    return world.write_search("found", world.report((0.4, 0.6, 0.8)))
