"""Checks of splits: no leaks between them, and labels that belong to their examples."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_core.contracts.batch import ATTENTION_MASK, Batch, Split
from fusion_core.contracts.task_pool import FeatureTask, TaskPool
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import (
    ENOUGH,
    SIZE,
    Examples,
    Splits,
    adaptive_tasks,
    are_fixed,
    draw,
    keys_of,
    overlap,
    read,
    read_all,
    repeated_share,
    rows_of,
    share_of,
)
from fusion_testing._suite import fail

#: Share from which two sets of examples count as the same.
_NEARLY_ALL = 0.9


class SplitChecks(ComponentSuite):
    """Checks of every task's splits; part of `TaskPoolSuite`."""

    def test_splits_share_no_examples(self, pool: TaskPool[Any]) -> None:
        """TEST shares no examples with TRAIN or, unless the pool is `transductive`, UNLABELED."""
        every = {task.name: read_all(task) for task in adaptive_tasks(pool)}
        if not every:
            pytest.skip("no task has batches")
        for name, splits in every.items():
            _check_disjoint(name, splits, Split.TRAIN)
            if not pool.transductive:
                _check_disjoint(name, splits, Split.UNLABELED)
        fixed = {
            name: splits
            for name, splits in every.items()
            if are_fixed(pool.adaptive(name), splits[Split.TEST])
        }
        if pool.transductive:
            _check_transductive(fixed)
        _check_foreign_examples(fixed)

    def test_examples_repeat_no_more_than_data_does(self, pool: TaskPool[Any]) -> None:
        """A large batch does not repeat a few examples."""
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            if not (isinstance(task, FeatureTask) or are_fixed(task, splits[Split.TEST])):
                continue
            for split, examples in splits.items():
                if len(examples) >= ENOUGH and repeated_share(examples.keys) >= 0.5:  # noqa: PLR2004 - half
                    fail(
                        f"{task.name}: a batch of {len(examples)} {split} examples has only "
                        f"{len(set(examples.keys))} different ones.",
                        "Draw batches without repetition, e.g. with fusion_core.shuffled_rows.",
                    )

    def test_a_test_example_is_the_same_in_every_batch(self, pool: TaskPool[Any]) -> None:
        """Neither the content of an example nor its label depends on its batch."""
        has_fixed = False
        for task in adaptive_tasks(pool):
            whole = read(task, Split.TEST)
            if not whole.is_whole:
                continue
            if not are_fixed(task, whole):
                if isinstance(task, FeatureTask):
                    fail(
                        f"{task.name}: the {len(whole)} test examples of step 0 and step 1 differ.",
                        "Keep test examples fixed: apply neither noise nor augmentation to them.",
                    )
                continue
            has_fixed = True
            known = dict(zip(whole.keys, whole.labels, strict=True))
            for size, step, seed in ((1, 0, 0), (1, 1, 0), (2, 0, 1), (3, 0, 0), (SIZE, 1, 1)):
                batch = draw(task, Split.TEST, size, step=step, seed=seed)
                _check_known(task.name, whole, known, batch)
        if not has_fixed:
            pytest.skip("no task has a fixed set of test examples that fits into one batch")


def _check_disjoint(name: str, splits: Splits, other: Split) -> None:
    """Fail if another split has test examples, beyond repeats in the data."""
    if other not in splits or not (share := overlap(splits[Split.TEST], splits[other])):
        return
    remedy = "Keep the test examples out of every other split"
    if other is Split.UNLABELED:
        remedy += ". If methods should adapt on test examples, set `transductive` on the pool"
    fail(f"{name}: {share:.0%} of the {other} examples are test examples.", f"{remedy}.")


def _check_transductive(every: dict[str, Splits]) -> None:
    """Fail unless UNLABELED are the test examples of at least one task."""
    shares = {
        name: share_of(splits[Split.UNLABELED], splits[Split.TEST])
        for name, splits in every.items()
        if Split.UNLABELED in splits
    }
    for name, share in shares.items():
        if 0 < share < _NEARLY_ALL:
            fail(
                f"{name}: {share:.0%} of the UNLABELED examples of the `transductive` pool are "
                "test examples, expected all or none.",
                "Return exactly the test examples as UNLABELED, or none of them.",
            )
    if shares and not any(shares.values()):
        fail(
            "the pool is `transductive`, but no UNLABELED example is a test example.",
            "Set `transductive = False`. Otherwise reports say that methods saw test data.",
        )


def _check_foreign_examples(every: dict[str, Splits]) -> None:
    """Fail if a split of one task has another task's examples."""
    for name, splits in every.items():
        for other, theirs in every.items():
            if name == other or share_of(splits[Split.TEST], theirs[Split.TEST]):
                continue
            for split, examples in splits.items():
                for foreign, others in theirs.items():
                    if overlap(examples, others) > 0.5:  # noqa: PLR2004 - most of them
                        fail(
                            f"{name}: its {split} examples are {foreign} examples of {other}.",
                            "Read each task's own data in all splits.",
                        )


def _check_known(name: str, whole: Examples, known: dict[str, Any], batch: Batch) -> None:
    keys, size = keys_of(batch), len(batch)
    for number, key in enumerate(keys):
        if key not in known and not _is_near(batch.part(number, number + 1), whole.batch):
            fail(
                f"{name}: the content of a test example in a batch of {size} differs from a batch "
                f"of all {len(whole)} test examples.",
                "Read and scale each example independently. Truncate texts before padding them, "
                f"and set the {ATTENTION_MASK} to 0 at every padding position.",
            )
    labels = [] if batch.labels is None else batch.labels.tolist()
    repeated = repeated_share(whole.keys)
    wrong = sum(known.get(key, label) != label for key, label in zip(keys, labels, strict=False))
    if wrong > max(0, repeated * size):
        fail(
            f"{name}: the label of a test example differs between two batches.",
            "Select inputs and labels by the same rows.",
        )


def _is_near(one: Batch, whole: Batch) -> bool:
    """Tell whether an example is in a batch up to rounding."""
    row, rows = rows_of(one), rows_of(whole)
    if row is None or rows is None or row.shape[1] != rows.shape[1]:
        return False
    return bool((rows - row).abs().amax(1).min() <= 1e-5 * rows.abs().max())
