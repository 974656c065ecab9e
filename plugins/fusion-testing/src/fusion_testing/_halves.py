"""Checks of `holdout` and `halves`, which split the test examples into two disjoint halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from fusion_core.contracts.batch import Split
from fusion_core.contracts.measurements import Measured
from fusion_core.contracts.subject import Subject
from fusion_core.errors import RecipeError
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import (
    Examples,
    adaptive_tasks,
    are_fixed,
    batch_digests,
    draw,
    keys_of,
    overlap,
    read,
    splits_of,
)
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core.contracts.task_pool import AdaptiveTask, TaskPool


class HalvesChecks(ComponentSuite):
    """Checks of `holdout`, `halves` and `measured_on`; part of `TaskPoolSuite`."""

    def test_a_holdout_is_apart_from_what_is_adapted_on(
        self, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """`holdout` returns one half of the test examples as UNLABELED and the other as TEST."""
        pool = make()
        before = batch_digests(pool)
        held = _held_out(pool)
        _check_copy(pool, held, before, "holdout")
        if batch_digests(held, size=1) != batch_digests(make().holdout(), size=1):
            fail(
                "two calls of `holdout` return different halves.",
                "Seed the split into halves with the task's name.",
            )
        for task in adaptive_tasks(held):
            whole = read(pool.adaptive(task.name), Split.TEST)
            if Split.UNLABELED not in splits_of(task, 1):
                fail(
                    f"{task.name}: `holdout` has no UNLABELED examples.",
                    "Return one half of the test examples as UNLABELED.",
                )
            unlabeled, test = read(task, Split.UNLABELED), read(task, Split.TEST)
            is_fixed = are_fixed(pool.adaptive(task.name), whole)
            if is_fixed and overlap(unlabeled, test):
                _fail_for_overlap(f"{task.name}: `holdout`")
            _check_sizes(f"{task.name}: `holdout`", unlabeled, test, whole)

    def test_halves_share_no_test_examples(self, make: Callable[[], TaskPool[Any]]) -> None:
        """`halves` splits TEST into two; UNLABELED has no example of the second half."""
        pool = make()
        before = batch_digests(pool)
        try:
            first, second = pool.halves()
        except RecipeError as error:
            pytest.skip(f"the pool does not support `halves`: {error.message}")
        for half in (first, second):
            _check_copy(pool, half, before, "halves")
        if first.measured_on == second.measured_on:
            fail(
                f"both halves have the `measured_on` {first.measured_on!r}.",
                "Give the halves different descriptions: their scores must not be compared.",
            )
        for task in adaptive_tasks(second):
            chosen, rest = (read(half.adaptive(task.name), Split.TEST) for half in (first, second))
            whole = read(pool.adaptive(task.name), Split.TEST)
            _check_sizes(f"{task.name}: `halves`", chosen, rest, whole)
            if not are_fixed(pool.adaptive(task.name), whole):
                continue
            if overlap(chosen, rest):
                _fail_for_overlap(f"{task.name}: `halves`")
            if Split.UNLABELED in splits_of(task, 1):
                if _first(task) != _first(first.adaptive(task.name)):
                    fail(
                        f"{task.name}: the UNLABELED examples of the two halves differ.",
                        "Return the same UNLABELED examples for both halves.",
                    )
                unlabeled = read(task, Split.UNLABELED)
                if overlap(rest, unlabeled):
                    fail(
                        f"{task.name}: UNLABELED has test examples of the second half.",
                        "Draw UNLABELED examples from the first half only, or from other data.",
                    )

    def test_halves_are_measured_apart(
        self, make: Callable[[], TaskPool[Any]], model: nn.Module
    ) -> None:
        """Outcomes on the two halves are, together, the outcomes on all test examples."""
        pool = make()
        try:
            first, second = pool.halves()
        except RecipeError as error:
            pytest.skip(f"the pool does not support `halves`: {error.message}")
        whole, *halves = (tasks.measure(Subject.of(model)) for tasks in (pool, first, second))
        has_outcomes = False
        for name, metrics in whole.items():
            parts = [half[name] for half in halves]
            if not isinstance(metrics, Measured):
                continue
            measured = [part for part in parts if isinstance(part, Measured)]
            if len(measured) < len(parts):
                continue
            has_outcomes = True
            counts = [len(row.outcomes) for row in (metrics, *measured)]
            outcomes = sorted(outcome for part in measured for outcome in part.outcomes)
            expected = pytest.approx(sorted(metrics.outcomes), rel=1e-3, abs=1e-3)
            if counts[0] != sum(counts[1:]) or outcomes != expected:
                fail(
                    f"{name}: expected the outcomes of the halves ({counts[1]} and {counts[2]}) to "
                    f"be those of all {counts[0]} test examples, but they differ.",
                    "Measure each half on its own test examples in `evaluate`.",
                )
        if not has_outcomes:
            pytest.skip("no task returns outcomes per example, as Measured does")


def _held_out(pool: TaskPool[Any]) -> TaskPool[Any]:
    try:
        return pool.holdout()
    except RecipeError as error:
        pytest.skip(f"the pool does not support `holdout`: {error.message}")


def _check_copy(
    pool: TaskPool[Any], half: TaskPool[Any], before: dict[str, str], method: str
) -> None:
    """Fail unless a half is a copy of the pool with its own `measured_on` and `identity`."""
    if list(half.names) != list(pool.names):
        fail(
            f"`{method}` has the tasks {list(half.names)}, expected {list(pool.names)}.",
            "Keep the tasks and their order.",
        )
    if batch_digests(pool) != before:
        fail(
            f"`{method}` changes the pool itself.",
            "Change a copy, copy.copy(self), and return it.",
        )
    if not half.measured_on or half.measured_on == pool.measured_on:
        fail(
            f"the `measured_on` of `{method}` does not describe a half: {half.measured_on!r}.",
            "Describe the measured examples, e.g. 'the second half of the test examples'.",
        )
    if half.transductive:
        fail(
            f"`{method}` returns a `transductive` pool, but its UNLABELED and TEST are disjoint.",
            "Set `transductive = False` on the copy.",
        )
    for name in pool.names:
        whole = pool.identity(name)
        if whole is not None and half.identity(name) == whole:
            fail(
                f"{name}: `{method}` and the whole pool have the same `identity`.",
                "Add the half to `identity`: scores are remembered by it.",
            )


def _fail_for_overlap(where: str) -> NoReturn:
    fail(
        f"{where} returns halves that share examples.",
        "Draw one permutation of the test examples, and cut it in the middle.",
    )


def _check_sizes(where: str, one: Examples, other: Examples, whole: Examples) -> None:
    together = len(one) + len(other)
    if together < len(whole) or (whole.is_whole and together > len(whole)):
        fail(
            f"{where} returns halves of {len(one)} and {len(other)} examples, expected "
            f"{len(whole)} in total.",
            "Put every test example into exactly one of the two halves.",
        )
    if min(len(one), len(other)) * 5 < len(whole):
        fail(
            f"{where} returns halves of {len(one)} and {len(other)} examples, expected about equal "
            "sizes.",
            "Cut the test examples in the middle.",
        )


def _first(task: AdaptiveTask) -> tuple[str, ...]:
    """Return the key of the first UNLABELED example."""
    return keys_of(draw(task, Split.UNLABELED, 1))
