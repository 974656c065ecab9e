"""Checks of `logits`: scores have gradients, and depend only on the model and the example."""

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
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from fusion_core.contracts.task_pool import AdaptiveTask

#: Parts of torch's messages about tensors on two devices.
_TWO_DEVICES = ("expected device", "same device")


class ScoreChecks(ComponentSuite):
    """Checks of every task's scores; part of `TaskPoolSuite`."""

    def test_scores_have_gradients(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`logits` returns one row of finite scores per prediction, with gradients."""
        model.requires_grad_(True)
        for task, split in _with_all_predictions(every_split(pool)):
            batch = draw(task, split, SIZE)
            scores, rows = task.logits(model, batch), sum(batch.count_predictions())
            if scores.dim() != 2 or len(scores) != rows or not scores.isfinite().all():  # noqa: PLR2004
                fail(
                    f"{task.name}: expected finite scores of shape [{rows}, classes] from "
                    f"`logits`, got shape {list(scores.shape)} or scores that are not finite.",
                    "Return finite scores of shape (examples, classes), or (predictions, classes) "
                    "if the batch marks several per example.",
                )
            if batch.labels is not None and int(batch.labels.max()) >= scores.shape[1]:
                fail(
                    f"{task.name}: a {split} label is {int(batch.labels.max())}, but `logits` "
                    f"returns scores for {scores.shape[1]} classes.",
                    "Number classes from 0, and return one score per class.",
                )
            model.zero_grad()
            if scores.requires_grad:
                torch.autograd.backward(scores.logsumexp(-1).sum())
            if not any(p.grad is not None and p.grad.any() for p in model.parameters()):
                fail(
                    f"{task.name}: `logits` has no gradient in the model's parameters.",
                    "Do not call detach() or use torch.no_grad() in `logits`.",
                )

    def test_scores_are_the_same_again(
        self, make: Callable[[], TaskPool[Any]], model: nn.Module
    ) -> None:
        """Neither earlier calls nor the order of tasks change scores."""
        pool = make()
        first = {task.name: _scores(task, model) for task in adaptive_tasks(pool)}
        second = {task.name: _scores(task, model) for task in reversed([*adaptive_tasks(pool)])}
        third = {task.name: _scores(task, model) for task in reversed([*adaptive_tasks(make())])}
        for name, scores in first.items():
            for repeated in (second[name], third[name]):
                if not _are_close(scores, repeated):
                    fail(
                        f"{name}: `logits` returns different scores on the next call.",
                        "Make the head from the task alone, without state, and disable dropout.",
                    )

    def test_scores_leave_the_batch_alone(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`logits` does not write to its batch."""
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            before = keys_of(batch)
            with torch.no_grad():
                task.logits(model, batch)
            if keys_of(batch) != before:
                fail(
                    f"{task.name}: `logits` changes the inputs of its batch.",
                    "Do not use in-place operations on inputs: mul, not mul_.",
                )

    def test_examples_do_not_see_each_other(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """The scores of an example do not depend on the other examples of its batch."""
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            with torch.no_grad():
                together = task.logits(model, batch)
                alone = torch.cat([task.logits(model, batch.part(n, n + 1)) for n in range(SIZE)])
            if not _are_close(together, alone):
                fail(
                    f"{task.name}: the scores of an example depend on its batch.",
                    "Use the model in evaluation mode, and do not compute statistics of the batch.",
                )

    def test_padding_does_not_change_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """The scores of an example do not depend on its padding."""
        has_masks = False
        for task in adaptive_tasks(pool):
            batch = draw(task, Split.TEST, SIZE)
            if batch.mask is None:
                continue
            has_masks = True
            _check_padding(task, model, batch)
        if not has_masks:
            pytest.skip(f"no batch has an {ATTENTION_MASK}")

    def test_features_and_head_are_the_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """The `logits` of a FeatureTask equal `head(features)`."""
        tasks = [task for task in pool if isinstance(task, FeatureTask)]
        for task in tasks:
            batch = draw(task, Split.TEST, SIZE)
            with torch.no_grad():
                scores = task.head(task.features(model, batch.inputs))
                logits = task.logits(model, batch)
            if scores.shape != logits.shape or not torch.allclose(
                scores, logits, rtol=1e-5, atol=1e-5
            ):
                fail(
                    f"{task.name}: `logits` differs from `head(features)`.",
                    "Do not override `logits` in a FeatureTask.",
                )
        if not tasks:
            pytest.skip("no task is a FeatureTask")

    def test_tasks_follow_the_model_to_its_device(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """`evaluate` moves inputs and heads to the model's device, here the meta device."""
        model = request.getfixturevalue("model").to("meta")
        for task in pool:
            try:
                task.evaluate(model)
            except Exception as error:  # noqa: BLE001 - judged by its message
                if any(words in str(error) for words in _TWO_DEVICES):
                    fail(
                        f"{task.name}: `evaluate` mixes devices: {error}",
                        "Move batches to the model's device, next(model.parameters()).device, and "
                        "the head to the device of the features.",
                    )
                # ignore other errors: scores on the meta device have no values


def _with_all_predictions(
    pairs: Iterable[tuple[AdaptiveTask, Split]],
) -> Iterator[tuple[AdaptiveTask, Split]]:
    """Yield tasks as they are, and with all predictions where that is another task."""
    for task, split in pairs:
        yield task, split
        if (several := task.with_all_predictions()) is not task:
            yield several, split


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
        expected = torch.cat([task.logits(model, example) for example in alone])
        padded = [task.logits(model, batch), task.logits(model, Batch.joined(alone))]
    if not all(_are_close(scores, expected) for scores in padded):
        fail(
            f"{task.name}: the scores of an example depend on its padding.",
            f"Pad on the right, pass the {ATTENTION_MASK} to the model, and mask padding "
            "when computing features.",
        )
