"""Predictions of models for unlabeled examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fusion_adapting import build_live, predict_unlabeled
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from fusion_core import AdaptiveTask


@pytest.mark.parametrize(
    ("known", "samples", "predicted"),
    [(None, 8, 8), (None, 100, 100), (None, 129, 129), (1, 64, 1), (8, 256, 8), (100, 256, 100)],
)
def test_as_many_examples_are_predicted_as_asked_for_or_all(
    known: int | None, samples: int, predicted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, task = tiny_pool("mlp", experts=1), _counted(known, monkeypatch)
    model = build_live(pool, pool.experts["a"], torch.device("cpu"))
    assert len(predict_unlabeled(model, task, samples, torch.device("cpu"))) == predicted


def test_logits_are_reduced_batch_by_batch() -> None:
    pool, task, cpu = tiny_pool("mlp", experts=1), TinyTasks()["a"], torch.device("cpu")
    model, sizes = build_live(pool, pool.experts["a"], cpu), list[int]()

    def reduce(logits: torch.Tensor) -> torch.Tensor:
        sizes.append(len(logits))
        return logits.argmax(-1)

    classes = predict_unlabeled(model, task, 128, cpu, reduce=reduce)
    assert sizes == [64, 64]
    assert torch.equal(classes, predict_unlabeled(model, task, 128, cpu).argmax(-1))


def _counted(known: int | None, monkeypatch: pytest.MonkeyPatch) -> AdaptiveTask:
    """Return a task that refuses batches with more examples than it has."""
    task: AdaptiveTask = TinyTasks()["a"]
    draw = task.batch

    def batch(*args: object, size: int, **options: object) -> object:
        assert known is None or size <= known
        return draw(*args, size=size, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(task, "count", lambda _split: known)
    monkeypatch.setattr(task, "batch", batch)
    return task
