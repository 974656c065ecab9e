"""Checks of what batches hold: labels that are classes, inputs of one kind, own tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.contracts.batch import Batch, Split
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import (
    ENOUGH,
    SIZE,
    Examples,
    adaptive_tasks,
    draw,
    keys_of,
    read_all,
    splits_of,
)
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from fusion_core.contracts.task_pool import TaskPool


class InputChecks(ComponentSuite):
    """What the inputs and labels of every task keep; a part of `TaskPoolSuite`."""

    def test_labels_are_of_their_examples(self, pool: TaskPool[Any]) -> None:
        """Labels are classes, several of them, and no input holds them."""
        looked_at = False
        for task in adaptive_tasks(pool):
            for split, examples in read_all(task).items():
                looked_at |= bool(examples.labels)
                _check_labels(task.name, split, examples)
        if not looked_at:
            pytest.skip("no split has labels")

    def test_splits_hold_the_same_kind_of_inputs(self, pool: TaskPool[Any]) -> None:
        """A model takes every split: names, dtypes, shapes and the range of values agree."""
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            for split, examples in splits.items():
                _check_kind(task.name, split, examples.batch, splits[Split.TEST].batch)

    def test_batches_belong_to_the_caller(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Writing to a batch changes no later batch: tensors are not shared with the data."""
        for task in adaptive_tasks(make()):
            for split in splits_of(task):
                before = draw(task, split, SIZE)
                keys = (keys_of(before), None if before.labels is None else before.labels.tolist())
                for values in (*before.tensors.values(), before.labels):
                    if values is not None:
                        values.zero_()
                again = draw(task, split, SIZE)
                labels = None if again.labels is None else again.labels.tolist()
                if keys != (keys_of(again), labels):
                    fail(
                        f"{task.name}: writing to a {split} batch changes the data of the task.",
                        "Return copies: index by a tensor of rows, or clone() a slice.",
                    )


def _check_labels(name: str, split: Split, examples: Examples) -> None:
    labels = examples.batch.labels
    if labels is None:
        if leak := {"label", "labels", "target", "targets", "answer", "answers"} & {
            *examples.batch.tensors
        }:
            fail(f"{name}: {split} inputs hold {', '.join(sorted(leak))}.", "Leave labels out.")
        return
    if labels.dim() and labels.is_floating_point() and not labels.isfinite().all():
        fail(f"{name}: {split} labels are not finite.", "Leave out examples without a label.")
    if not labels.is_floating_point() and int(labels.min()) < 0:
        fail(f"{name}: a {split} label is {int(labels.min())}.", "Count classes from 0.")
    if len(examples) < ENOUGH or labels.dim() != 1:
        return
    if len(set(labels.tolist())) == 1:
        fail(
            f"{name}: all {len(examples)} {split} examples have the label {labels[0].item()}.",
            "Read the label of each example; shuffle data that is sorted by class.",
        )
    for place, values in examples.batch.tensors.items():
        columns = values.detach().cpu().double().reshape(len(examples), -1)
        if bool((columns == labels.cpu().double().unsqueeze(1)).all(0).any()):
            fail(
                f"{name}: a position of the {split} inputs{place and f' ({place})'} is the label "
                "of every example.",
                "Keep answers out of what the model reads.",
            )


def _check_kind(name: str, split: Split, batch: Batch, test: Batch) -> None:
    if batch.form != test.form:
        fail(
            f"{name}: {split} inputs are {batch.form}, test inputs are {test.form}.",
            "Give all splits the same names, dtypes and shapes.",
        )
    for place, values in batch.tensors.items():
        theirs = test.tensors[place]
        if not values.is_floating_point() or min(values.numel(), theirs.numel()) <= 1:
            continue
        if not values.isfinite().all():
            fail(f"{name}: {split} inputs are not finite.", "Scale them to finite numbers.")
        spread, expected = float(values.double().std()), float(theirs.double().std())
        moved = abs(float(values.double().mean() - theirs.double().mean()))
        if not (expected / 5 <= spread <= 5 * expected and moved <= 5 * max(spread, expected)):
            fail(
                f"{name}: {split} inputs have mean {values.double().mean():.3g} and standard "
                f"deviation {spread:.3g}, test inputs {theirs.double().mean():.3g} and "
                f"{expected:.3g}.",
                "Scale all splits in the same way.",
            )
        _check_marks(name, split, place, values, theirs)


def _check_marks(
    name: str, split: Split, place: str, values: torch.Tensor, test: torch.Tensor
) -> None:
    """Fail if a column holds whole numbers in one split only: something was written into it."""
    if len(values) < ENOUGH or len(test) < ENOUGH or split is Split.TEST:
        return
    mine, theirs = (each.detach().cpu().reshape(len(each), -1) for each in (values, test))
    written = (mine == mine.round()).all(0) & ~(theirs == theirs.round()).any(0)
    if bool((written & (mine != mine[0]).any(0)).any()):
        fail(
            f"{name}: a position of the {split} inputs{place and f' ({place})'} holds whole "
            "numbers, and fractions in the test inputs.",
            "Keep labels and indices out of what the model reads.",
        )
