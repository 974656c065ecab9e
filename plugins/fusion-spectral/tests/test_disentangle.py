"""The choice of directions and scale by unlabeled examples."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import Batch, RunContext, Split, merge, run_fusion
from fusion_core.errors import FusionError, RecipeError
from fusion_linear.task_arithmetic import TaskArithmetic
from fusion_spectral import disentangle
from fusion_spectral.disentangle import Disentangle
from fusion_spectral.sums import Judges, find_full_strength
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from pathlib import Path

SUM = {"name": "task-arithmetic", "scale": 1.0}


class Answers:
    """A task whose examples have several predictions, the first of them or only later ones."""

    def __init__(self, task: Any, *, from_example: int) -> None:
        self.task, self.name, self.first = task, task.name, from_example

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def with_all_predictions(self) -> Answers:
        return self

    def batch(self, step: int, **options: Any) -> Batch:
        batch = self.task.batch(step, **options)
        predicted = torch.ones(len(batch), 2, dtype=torch.long)
        predicted[: self.first, 1] = 0
        return Batch({"inputs": batch.inputs, "predicted": predicted}, None)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        logits = self.task.logits(model, Batch(batch.tensors["inputs"], None))
        counts = torch.tensor(batch.count_predictions())
        return logits.repeat_interleave(counts, dim=0)


class RuledOut:
    """A task with a class that is ruled out."""

    def __init__(self, task: Any) -> None:
        self.task, self.name = task, task.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def with_all_predictions(self) -> RuledOut:
        return self

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        logits = self.task.logits(model, batch).clone()
        logits[:, 0] = -torch.inf
        return logits


def choose(pool: Any, tasks: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    context = RunContext(tasks=tasks)
    fitted = Disentangle(**options).fit(pool, context)
    saved: Any = context.side_files.get("choice.json")
    return fitted.config, {**json.loads(saved or b"{}"), "warnings": context.warnings}


@pytest.mark.parametrize("directions", ["orthogonal", "isotropic"])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_sum_that_predicts_as_the_experts_is_chosen(directions: str, scale: float) -> None:
    """Experts that are a sum themselves: no other sum agrees with all of them."""
    pool = tiny_pool("mlp")
    stage = {"name": "disentangle", "directions": directions, "scale": scale}
    total = merge([stage, SUM], pool)
    agreeing = pool.with_sources({})
    agreeing.expert_of = lambda _: total
    config, saved = choose(agreeing, TinyTasks(), samples=512)
    assert (config.directions, config.scale) == (directions, scale)
    assert saved["chosen"] == {"directions": directions, "scale": scale}
    assert [f"isotropic task vectors at scale {scale:g}" in text for text in saved["warnings"]] == [
        True
    ] * (directions == "isotropic")
    distances = sorted(candidate["distance"] for candidate in saved["candidates"])
    assert len(distances) == 16
    assert distances[0] < 1e-5
    assert distances[1] > 1e-3


def test_a_sum_of_one_expert_has_full_strength_where_it_is_the_expert() -> None:
    pool = tiny_pool("mlp", experts=1)
    half = merge([{**SUM, "scale": 0.5}], pool)
    assert find_full_strength(pool, half, RunContext()) == pytest.approx(2, rel=1e-5)
    assert find_full_strength(pool, merge([{**SUM, "scale": -1.0}], pool), RunContext()) == 1.0


@pytest.mark.parametrize(("directions", "scale"), [("orthogonal", 1.0), ("isotropic", 3.0)])
def test_without_evidence_the_scale_is_the_expected_one(
    directions: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sums of one kind are equally close, and those of the other are not finite."""
    monkeypatch.setattr(disentangle, "find_full_strength", lambda *_: 3.3)
    distances = [0.1, math.nan] if directions == "orthogonal" else [math.nan, 0.1]
    by_scale = iter([distance for distance in distances for _ in range(8)])
    monkeypatch.setattr(Judges, "_distance", lambda *_: next(by_scale))
    config, _ = choose(tiny_pool("mlp"), TinyTasks(), samples=1)
    assert (config.directions, config.scale) == (directions, scale)


def test_given_directions_need_no_tasks_and_are_those_of_their_stage() -> None:
    pool = tiny_pool("mlp")
    for directions, name in (("orthogonal", "orthogonalise"), ("isotropic", "isotropise")):
        ours = merge([{"name": "disentangle", "directions": directions}, SUM], pool)
        theirs = merge([name, SUM], pool)
        assert all(torch.equal(ours.tensor(n), theirs.tensor(n)) for n in ours.infos)
        doubled = merge([{"name": "disentangle", "directions": directions, "scale": 2}, SUM], pool)
        expected = merge([name, {**SUM, "scale": 2.0}], pool)
        for n in doubled.infos:
            torch.testing.assert_close(doubled.tensor(n), expected.tensor(n))


def test_a_scale_needs_directions() -> None:
    with pytest.raises(RecipeError, match="scale needs directions"):
        Disentangle(scale=2.0)


@pytest.mark.parametrize(
    "wrap",
    [partial(Answers, from_example=0), partial(Answers, from_example=1), RuledOut],
    ids=["answers", "a longer second answer", "a class ruled out"],
)
def test_nothing_is_chosen_by_what_cannot_be_standardised(wrap: Any) -> None:
    tasks: Any = TinyTasks()
    tasks.adaptive = lambda name: wrap(tasks[name]) if name == "b" else tasks[name]
    config, saved = choose(tiny_pool("mlp"), tasks)
    assert (config.directions, config.scale) == ("orthogonal", 1.0)
    assert saved == {"warnings": []}


def test_tasks_without_unlabeled_examples_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = TinyTasks()
    empty = {"a", "b"}
    for name in tasks.names:
        count = 0 if name in empty else 1
        monkeypatch.setattr(
            tasks[name], "count", lambda split, n=count: n if split is Split.UNLABELED else 9
        )
    config, saved = choose(tiny_pool("mlp"), tasks)
    assert saved["chosen"]["directions"] == config.directions
    monkeypatch.setattr(tasks["c"], "count", lambda _: 0)
    with pytest.raises(RecipeError, match="no expert has a task with unlabeled examples"):
        choose(tiny_pool("mlp"), tasks)


def test_a_run_writes_its_choice_and_its_options_can_be_read_again(tmp_path: Path) -> None:
    stage, pool = Disentangle(samples=4), tiny_pool("mlp")
    run = run_fusion(
        algorithm=[stage, TaskArithmetic(scale=1.0)],
        model_pool=pool,
        task_pool=TinyTasks(),
        output=tmp_path / "out",
    )
    (file,) = (tmp_path / "out").glob("*choice.json")
    chosen = {"name": "disentangle", **json.loads(file.read_text())["chosen"]}
    expected = merge([chosen, SUM], pool)
    for name in expected.infos:
        assert torch.equal(run.weights.tensor(name), expected.tensor(name))
    stage.to_yaml(tmp_path / "options.yaml")
    assert Disentangle.from_yaml(tmp_path / "options.yaml").config == stage.config


def test_without_finite_predictions_nothing_can_be_chosen() -> None:
    pool = tiny_pool("mlp")
    broken = pool.with_sources({})
    build = pool.build

    def build_broken(weights: Any, **options: Any) -> Any:
        model = build(weights, **options)
        is_expert = any(weights is expert for expert in pool.experts.values())
        if not is_expert:
            model.register_forward_hook(lambda *_: torch.full_like(_[2], torch.nan))
        return model

    broken.build = build_broken
    with pytest.raises(FusionError, match="no sum of task vectors has finite predictions"):
        choose(broken, TinyTasks())
