"""Objectives of the search, and the tasks that it adapts on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.monitor import TaskSummary
from fusion_adapting import Outcome, entropy
from fusion_core import RunContext
from fusion_core.errors import RecipeError

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
