"""Checks of the contents of batches: valid labels, consistent inputs, unshared tensors."""

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
    """Checks of every task's inputs and labels; part of `TaskPoolSuite`."""

    def test_labels_are_of_their_examples(self, pool: TaskPool[Any]) -> None:
        """Labels are valid, not all equal, and not among the inputs."""
        has_labels = False
        for task in adaptive_tasks(pool):
            for split, examples in read_all(task).items():
                has_labels |= bool(examples.labels)
                _check_labels(task.name, split, examples)
        if not has_labels:
            pytest.skip("no split has labels")

    def test_splits_hold_the_same_kind_of_inputs(self, pool: TaskPool[Any]) -> None:
        """The inputs of all splits have the same names, dtypes, shapes and range of values."""
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            for split, examples in splits.items():
                _check_kind(task.name, split, examples.batch, splits[Split.TEST].batch)

    def test_batches_belong_to_the_caller(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Writing to a batch does not change later batches."""
        for task in adaptive_tasks(make()):
            for split in splits_of(task):
                before = draw(task, split, SIZE)
                keys = (keys_of(before), None if before.labels is None else before.labels.tolist())
                for values in (*before.tensors.values(), before.labels):
                    if values is not None:
                        values.zero_()
                after = draw(task, split, SIZE)
                labels = None if after.labels is None else after.labels.tolist()
                if keys != (keys_of(after), labels):
                    fail(
                        f"{task.name}: writing to a {split} batch changes the task's data.",
                        "Return copies: index with a tensor of rows, or clone() a slice.",
                    )


def _check_labels(name: str, split: Split, examples: Examples) -> None:
    labels = examples.batch.labels
    if labels is None:
        if leak := {"label", "labels", "target", "targets", "answer", "answers"} & {
            *examples.batch.tensors
        }:
            fail(
                f"{name}: {split} inputs have a tensor {', '.join(sorted(leak))}.",
                "Leave labels out of the inputs.",
            )
        return
    if labels.dim() and labels.is_floating_point() and not labels.isfinite().all():
        fail(
            f"{name}: some {split} labels are not finite.",
            "Leave out examples without a label.",
        )
    if not labels.is_floating_point() and int(labels.min()) < 0:
        fail(
            f"{name}: a {split} label is {int(labels.min())}, expected 0 or more.",
            "Number classes from 0.",
        )
    if len(examples) < ENOUGH or labels.dim() != 1:
        return
    if len(set(labels.tolist())) == 1:
        fail(
            f"{name}: all {len(examples)} {split} examples have the label {labels[0].item()}.",
            "Read the label of each example. Shuffle data that is sorted by class.",
        )
    for key, values in examples.batch.tensors.items():
        columns = values.detach().cpu().double().reshape(len(examples), -1)
        if bool((columns == labels.cpu().double().unsqueeze(1)).all(0).any()):
            fail(
                f"{name}: one position of the {split} inputs{key and f' ({key})'} equals the label "
                "in every example.",
                "Leave labels out of the inputs.",
            )


def _check_kind(name: str, split: Split, batch: Batch, test: Batch) -> None:
    if batch.form != test.form:
        fail(
            f"{name}: expected {split} inputs like the test inputs, {test.form}, got {batch.form}.",
            "Return inputs with the same names, dtypes and shapes in all splits.",
        )
    for key, values in batch.tensors.items():
        reference = test.tensors[key]
        if not values.is_floating_point() or min(values.numel(), reference.numel()) <= 1:
            continue
        if not values.isfinite().all():
            fail(
                f"{name}: some {split} inputs are not finite.",
                "Check the data and its scaling for infinities and NaN.",
            )
        mean, expected_mean = float(values.double().mean()), float(reference.double().mean())
        std, expected_std = float(values.double().std()), float(reference.double().std())
        is_shifted = abs(mean - expected_mean) > 5 * max(std, expected_std)
        if is_shifted or not expected_std / 5 <= std <= 5 * expected_std:
            fail(
                f"{name}: expected {split} inputs with about the mean {expected_mean:.3g} and the "
                f"standard deviation {expected_std:.3g} of the test inputs, got {mean:.3g} and "
                f"{std:.3g}.",
                "Scale all splits in the same way.",
            )
        _check_columns(name, split, key, values, reference)


def _check_columns(
    name: str, split: Split, key: str, values: torch.Tensor, test: torch.Tensor
) -> None:
    """Fail if a column holds integers in one split only: labels may have leaked into it."""
    if len(values) < ENOUGH or len(test) < ENOUGH or split is Split.TEST:
        return
    columns, expected = (part.detach().cpu().reshape(len(part), -1) for part in (values, test))
    is_integer = (columns == columns.round()).all(0) & ~(expected == expected.round()).any(0)
    if bool((is_integer & (columns != columns[0]).any(0)).any()):
        fail(
            f"{name}: one position of the {split} inputs{key and f' ({key})'} holds integers, but "
            "fractions in the test inputs.",
            "Leave labels and indices out of the inputs.",
        )
