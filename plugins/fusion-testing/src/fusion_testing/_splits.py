"""Checks of splits: none leaks into another, and what they hold belongs together."""

from __future__ import annotations

from typing import Any, NoReturn

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
    have_in_common,
    keys_of,
    read,
    read_all,
    repeated_share,
    rows_of,
    share_of,
)
from fusion_testing._suite import fail

#: From this share on, all examples are the others.
_NEARLY_ALL = 0.9


class SplitChecks(ComponentSuite):
    """What the splits of every task keep; a part of `TaskPoolSuite`."""

    def test_splits_share_no_examples(self, pool: TaskPool[Any]) -> None:
        """TEST is apart from TRAIN, and from UNLABELED unless the pool is `transductive`."""
        every = {task.name: read_all(task) for task in adaptive_tasks(pool)}
        if not every:
            pytest.skip("the tasks are only measured: they have no batches")
        for name, splits in every.items():
            _check_apart(name, splits, Split.TRAIN)
            if not pool.transductive:
                _check_apart(name, splits, Split.UNLABELED)
        fixed = {
            name: splits
            for name, splits in every.items()
            if are_fixed(pool.adaptive(name), splits[Split.TEST])
        }
        if pool.transductive:
            _check_transductive(fixed)
        _check_origin(fixed)

    def test_examples_repeat_no_more_than_data_does(self, pool: TaskPool[Any]) -> None:
        """A batch of a whole split is not the same few examples over and over."""
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            if not (isinstance(task, FeatureTask) or are_fixed(task, splits[Split.TEST])):
                continue
            for split, examples in splits.items():
                if len(examples) >= ENOUGH and repeated_share(examples.keys) >= 0.5:  # noqa: PLR2004 - half
                    fail(
                        f"{task.name}: of {len(examples)} {split} examples in one batch, only "
                        f"{len(set(examples.keys))} differ.",
                        "Draw a batch without repetition: fusion_core.shuffled_rows does.",
                    )

    def test_a_test_example_is_the_same_in_every_batch(self, pool: TaskPool[Any]) -> None:
        """Neither the content of an example nor its label depends on the batch that it is in."""
        looked_at = False
        for task in adaptive_tasks(pool):
            whole = read(task, Split.TEST)
            if not whole.is_whole:
                continue
            if not are_fixed(task, whole):
                if isinstance(task, FeatureTask):
                    _fail_for_other_examples(task.name, len(whole))
                continue
            looked_at = True
            known = dict(zip(whole.keys, whole.labels, strict=True))
            for size, step, seed in ((1, 0, 0), (1, 1, 0), (2, 0, 1), (3, 0, 0), (SIZE, 1, 1)):
                batch = draw(task, Split.TEST, size, step=step, seed=seed)
                _check_known(task.name, whole, known, batch)
        if not looked_at:
            pytest.skip("no task has a fixed set of test examples that fits into one batch")


def _check_apart(name: str, splits: Splits, other: Split) -> None:
    """Fail if test examples are among those of another split, beyond what data repeats."""
    if other not in splits or not (share := have_in_common(splits[Split.TEST], splits[other])):
        return
    remedy = "Keep the test examples out of every other split"
    if other is Split.UNLABELED:
        remedy += "; if methods are to adapt on them on purpose, set `transductive` on the pool"
    fail(f"{name}: {share:.0%} of the {other} and test examples are the same.", f"{remedy}.")


def _check_transductive(every: dict[str, Splits]) -> None:
    """Fail unless UNLABELED are the test examples, of one task at least."""
    shares = {
        name: share_of(splits[Split.UNLABELED], splits[Split.TEST])
        for name, splits in every.items()
        if Split.UNLABELED in splits
    }
    for name, share in shares.items():
        if 0 < share < _NEARLY_ALL:
            fail(
                f"{name}: the pool is `transductive`, and {share:.0%} of the unlabeled examples "
                "are test examples.",
                "UNLABELED are the test examples themselves, or apart from all of them.",
            )
    if shares and not any(shares.values()):
        fail(
            "the pool is `transductive`, and no unlabeled example is a test example.",
            "Set `transductive = False`: reports say of adapted models that they saw test data.",
        )


def _check_origin(every: dict[str, Splits]) -> None:
    """Fail if a split of one task holds another task's examples."""
    for name, splits in every.items():
        for other, theirs in every.items():
            if name == other or share_of(splits[Split.TEST], theirs[Split.TEST]):
                continue
            for split, examples in splits.items():
                for foreign, others in theirs.items():
                    if have_in_common(examples, others) > 0.5:  # noqa: PLR2004 - most of them
                        fail(
                            f"{name}: its {split} examples are the {foreign} examples of {other}.",
                            "Give each task its own data in all splits.",
                        )


def _fail_for_other_examples(name: str, count: int) -> NoReturn:
    fail(
        f"{name}: step 1 gives other test examples than step 0, of {count} in all.",
        "Test examples are fixed: neither noise nor augmentation may change them.",
    )


def _check_known(name: str, whole: Examples, known: dict[str, Any], batch: Batch) -> None:
    keys, size = keys_of(batch), len(batch)
    for number, key in enumerate(keys):
        if key not in known and not _is_near(batch.part(number, number + 1), whole.batch):
            fail(
                f"{name}: a test example in a batch of {size} is not among the {len(whole)} test "
                "examples as they are in one batch: its content depends on the batch.",
                "Read and scale each example by itself, and truncate texts before they are "
                f"padded; the {ATTENTION_MASK} is zero at every position of padding.",
            )
    labels = [] if batch.labels is None else batch.labels.tolist()
    repeated = repeated_share(whole.keys)
    wrong = sum(known.get(key, label) != label for key, label in zip(keys, labels, strict=False))
    if wrong > max(0, repeated * size):
        fail(
            f"{name}: the label of a test example differs between two batches.",
            "Take inputs and labels by the same rows.",
        )


def _is_near(one: Batch, whole: Batch) -> bool:
    """Tell whether an example is among others but for rounding."""
    row, rows = rows_of(one), rows_of(whole)
    if row is None or rows is None or row.shape[1] != rows.shape[1]:
        return False
    return bool((rows - row).abs().amax(1).min() <= 1e-5 * rows.abs().max())
