"""Objectives of the search, and the tasks that it adapts on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_adapting import (
    Batches,
    Outcome,
    Predictions,
    TaskSummary,
    ask_teachers,
    disagreement_with,
    entropy,
    log_probabilities,
    standardise,
)
from fusion_core import Progress, RunContext
from fusion_core.errors import RecipeError
from fusion_linear.task_arithmetic import TaskArithmetic

if TYPE_CHECKING:
    from collections.abc import Callable

    from pools_checkpoints import CheckpointsPool


def test_entropy_of_a_uniform_prediction_is_log_of_the_classes() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [100.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor(4.0).log() / 2  # the second row is certain
    torch.testing.assert_close(entropy(logits), expected)


def test_masked_classes_add_no_entropy() -> None:
    masked = entropy(torch.tensor([[1.0, 2.0, -torch.inf]]))
    torch.testing.assert_close(masked, entropy(torch.tensor([[1.0, 2.0]])))


def test_a_summary_of_a_task_detects_predictions_of_one_class() -> None:
    logits = torch.zeros(8, 4)
    logits[:, 2] = 1
    summary = TaskSummary.of(Outcome(0.5, logits))
    assert (summary.objective, summary.only_class, summary.examples) == (0.5, 2, 8)
    logits[0, 3] = 2
    assert TaskSummary.of(Outcome(0.5, logits)).classes == {2: 7, 3: 1}


def test_the_teacher_objective_brings_predictions_nearer_to_the_experts(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool("mlp", trained=True)
    context = RunContext(tasks=tasks)
    AdaMerging(AdaMergingConfig(objective="teacher", steps=30, lr=0.02)).run(pool, context)
    totals = [step["teacher"] for step in context.metrics.steps.values()]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


def test_a_standardised_teacher_does_not_say_how_sure_a_merge_is_to_be(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    names, pool, steps = ["a", "b"], make_pool("mlp", trained=True), Batches(8, 0)
    where: Any = {"device": torch.device("cpu"), "progress": Progress()}
    teachers = ask_teachers(pool, [tasks[name] for name in names], steps, 1, **where)
    plain = disagreement_with(teachers, 2.0)
    standardised = disagreement_with(teachers, 2.0, standardise=True)
    for name in names:
        logits = teachers[name].logs[teachers[name].rows[0]]
        assert float(standardised(name, 0, 0.1 * logits + 3)) == pytest.approx(0, abs=1e-6)
        assert float(plain(name, 0, 0.1 * logits + 3)) > 0.1
        assert float(standardised(name, 0, -logits)) > 1


@pytest.mark.parametrize("given", [None, True, False])
def test_after_isotropic_task_vectors_logits_are_compared_at_one_size(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, *, given: bool | None
) -> None:
    pool, both = make_pool("mlp", trained=True), [tasks["a"], tasks["b"]]
    method = AdaMerging(AdaMergingConfig(preset="strong", steps=1, standardise=given))
    sections: list[dict[str, Any]] = [
        {"name": "disentangle", "directions": "isotropic", "scale": 4.0},
        {"name": "isotropise"},
        {"name": "disentangle", "directions": "orthogonal", "scale": 1.0},
        {"name": "orthogonalise"},
    ]
    plain: list[bool] = []
    for section in sections:
        context = RunContext(tasks=tasks, transforms=(section,))
        logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        objective = method.objective(pool, both, context)
        small, large = objective("a", 0, logits), objective("a", 0, 9 * logits)
        plain.append(not torch.isclose(small, large))
    expected = {None: [False, False, True, True], True: [False] * 4, False: [True] * 4}
    assert plain == expected[given]


def test_answers_and_ruled_out_classes_are_not_standardised() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]).log_softmax(-1)
    rows = {0: torch.tensor([0, 1])}
    single = Predictions(scores, None, rows, [range(1), range(1, 2)])
    several = Predictions(scores, None, rows, [range(2)])
    ruled_out = log_probabilities(torch.tensor([[1.0, -torch.inf], [0.0, 1.0]]))
    masked = Predictions(ruled_out, None, rows, single.examples)
    assert [part.are_scores for part in (single, several, masked)] == [True, False, False]
    teachers = {"single": single, "several": several}
    plain = disagreement_with(teachers, 4.0)
    standardised = disagreement_with(teachers, 4.0, standardise=True)
    logits = torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 3.0]])
    assert standardised("several", 0, logits) == plain("several", 0, logits)
    assert standardised("single", 0, logits) != plain("single", 0, logits)


def test_equal_scores_have_no_gradient_rather_than_nan() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    standardise(logits).square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_search_without_steps_is_its_start(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool("mlp", trained=True)
    options = AdaMergingConfig(preset="strong", steps=0)
    start = AdaMerging(options).run(pool, RunContext(tasks=tasks))
    expected = TaskArithmetic(scale=options.init).run(pool, RunContext())
    for name in expected.infos:
        torch.testing.assert_close(start.tensor(name), expected.tensor(name))


def test_a_task_without_an_expert_has_no_teacher(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    config = AdaMergingConfig(objective="teacher", tasks=["a", "c"])
    with pytest.raises(RecipeError, match="no expert was fine-tuned for task 'c'"):
        AdaMerging(config).run(make_pool("mlp"), RunContext(tasks=turned_tasks))


@pytest.mark.parametrize(("chosen", "adapted"), [(None, ["a", "b"]), (["c", "a"], ["c", "a"])])
def test_adapts_on_the_experts_tasks_by_default(
    chosen: Any, adapted: list[str], make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    context = RunContext(tasks=turned_tasks)
    AdaMerging(AdaMergingConfig(steps=1, tasks=chosen)).run(make_pool("mlp"), context)
    logged = [key for key in context.metrics.steps[0] if key.startswith("entropy/")]
    assert logged == [f"entropy/{name}" for name in adapted]
