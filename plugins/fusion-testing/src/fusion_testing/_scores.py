"""Checks of heads: scores have gradients, and depend on nothing but the model and the example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.contracts.batch import ATTENTION_MASK, Batch, Split
from fusion_core.contracts.task_pool import FeatureTask, TaskPool
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import (
    SIZE,
    adaptive_tasks,
    draw,
    every_split,
    keys_of,
    unpadded,
)
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fusion_core.contracts.task_pool import AdaptiveTask

#: What torch says of an operation on tensors of two devices.
_TWO_DEVICES = ("expected device", "same device")


class ScoreChecks(ComponentSuite):
    """What the heads of every task keep; a part of `TaskPoolSuite`."""

    def test_scores_have_gradients(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`logits` is one row of finite scores per example, differentiable in the parameters."""
        model.requires_grad_(True)
        for task, split in every_split(pool):
            batch = draw(task, split, SIZE)
            scores = task.logits(model, batch)
            if scores.dim() != 2 or len(scores) != SIZE or not scores.isfinite().all():  # noqa: PLR2004
                fail(
                    f"{task.name}: `logits` returns scores of shape {list(scores.shape)}, or some "
                    "that are not finite.",
                    "Return finite scores of shape (examples, classes).",
                )
            if batch.labels is not None and int(batch.labels.max()) >= scores.shape[1]:
                fail(
                    f"{task.name}: a label is {int(batch.labels.max())}, and `logits` has "
                    f"{scores.shape[1]} classes.",
                    "Count classes from 0, and give the head a score for each.",
                )
            model.zero_grad()
            if scores.requires_grad:
                torch.autograd.backward(scores.logsumexp(-1).sum())
            if not any(p.grad is not None and p.grad.any() for p in model.parameters()):
                fail(f"{task.name}: no gradient reaches the model.", "Do not detach in `logits`.")

    def test_scores_are_the_same_again(
        self, make: Callable[[], TaskPool[Any]], model: nn.Module
    ) -> None:
        """A head has no memory: neither earlier calls nor the order of tasks change scores."""
        pool = make()
        first = {task.name: _scores(task, model) for task in adaptive_tasks(pool)}
        second = {task.name: _scores(task, model) for task in reversed([*adaptive_tasks(pool)])}
        third = {task.name: _scores(task, model) for task in reversed([*adaptive_tasks(make())])}
        for name, scores in first.items():
            for again in (second[name], third[name]):
                if not _are_close(scores, again):
                    fail(
                        f"{name}: `logits` gives other scores when it is called again.",
                        "Make the head from the task alone, and leave dropout off.",
                    )

    def test_scores_leave_the_batch_alone(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`logits` changes no tensor of its batch."""
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            before = keys_of(batch)
            with torch.no_grad():
                task.logits(model, batch)
            if keys_of(batch) != before:
                fail(
                    f"{task.name}: `logits` writes to the batch.",
                    "Do not use operations that end in _ on inputs.",
                )

    def test_examples_do_not_see_each_other(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An example's scores are the same in any company: batches can be split and shared."""
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            with torch.no_grad():
                together = task.logits(model, batch)
                alone = torch.cat([task.logits(model, batch.part(n, n + 1)) for n in range(SIZE)])
            if not _are_close(together, alone):
                fail(
                    f"{task.name}: scores depend on the batch.",
                    "Use the model in evaluation mode, and no statistics of the batch.",
                )

    def test_padding_does_not_change_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An example scores the same without its padding: batches of other lengths are joined."""
        looked_at = False
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            if batch.mask is None:
                continue
            looked_at = True
            _check_padding(task, model, batch)
        if not looked_at:
            pytest.skip(f"no batch has an {ATTENTION_MASK}")

    def test_features_and_head_are_the_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """A FeatureTask's `logits` is its head on its features."""
        tasks = [task for task in pool if isinstance(task, FeatureTask)]
        for task in tasks:
            batch = draw(task, Split.TEST, SIZE)
            with torch.no_grad():
                scores = task.head(task.features(model, batch.inputs))
                logits = task.logits(model, batch)
            if scores.shape != logits.shape or not torch.allclose(
                scores, logits, rtol=1e-5, atol=1e-5
            ):
                fail(f"{task.name}: `logits` is not head(features).", "Do not override `logits`.")
        if not tasks:
            pytest.skip("no task is a FeatureTask")

    def test_tasks_follow_the_model_to_its_device(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """Inputs and heads are moved to the model's device; the meta device stands for any."""
        model = request.getfixturevalue("model").to("meta")
        for task in pool:
            try:
                task.evaluate(model)
            except Exception as error:  # noqa: BLE001 - see below
                if any(words in str(error) for words in _TWO_DEVICES):
                    fail(
                        f"{task.name}: `evaluate` mixes devices: {error}",
                        "Move batches to the model's device, next(model.parameters()).device, and "
                        "the head to that of the features.",
                    )
                # any other error: tensors without values cannot be measured to the end


def _are_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def _scores(task: AdaptiveTask, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return task.logits(model, draw(task, Split.TEST, SIZE))


def _check_padding(task: AdaptiveTask, model: nn.Module, batch: Batch) -> None:
    alone = [unpadded(batch, row) for row in range(len(batch))]
    if batch.mask is not None and batch.mask.all():
        batch = Batch(batch.padded(batch.mask.shape[1] + 1))
    with torch.no_grad():
        cut = torch.cat([task.logits(model, each) for each in alone])
        padded = [task.logits(model, batch), task.logits(model, Batch.joined(alone))]
    if not all(_are_close(scores, cut) for scores in padded):
        fail(
            f"{task.name}: scores depend on padding.",
            f"Pad on the right, give the model the {ATTENTION_MASK}, and leave out by it what features are "
            "made of.",
        )
