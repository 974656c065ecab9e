"""Checks of `holdout` and `halves`: test examples in two halves, of which none is in both."""

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
    have_in_common,
    keys_of,
    read,
    splits_of,
)
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core.contracts.task_pool import AdaptiveTask, TaskPool


class HalvesChecks(ComponentSuite):
    """What `holdout`, `halves` and `measured_on` keep; a part of `TaskPoolSuite`."""

    def test_a_holdout_is_apart_from_what_is_adapted_on(
        self, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """`holdout` gives one half of the test examples as UNLABELED and the other as TEST."""
        pool = make()
        before = batch_digests(pool)
        held = _held_out(pool)
        _check_copy(pool, held, before, "holdout")
        if batch_digests(held, size=1) != batch_digests(make().holdout(), size=1):
            fail("`holdout` draws other halves each time.", "Draw them by the task's name.")
        for task in adaptive_tasks(held):
            whole = read(pool.adaptive(task.name), Split.TEST)
            if Split.UNLABELED not in splits_of(task, 1):
                fail(
                    f"{task.name}: `holdout` has no unlabeled examples.",
                    "Give one half of the test examples as UNLABELED.",
                )
            unlabeled, test = read(task, Split.UNLABELED), read(task, Split.TEST)
            is_fixed = are_fixed(pool.adaptive(task.name), whole)
            if is_fixed and have_in_common(unlabeled, test):
                _fail_for_overlap(f"{task.name}: `holdout`")
            _check_sizes(f"{task.name}: `holdout`", unlabeled, test, whole)

    def test_halves_share_no_test_examples(self, make: Callable[[], TaskPool[Any]]) -> None:
        """`halves` gives TEST in two halves; UNLABELED holds none of the second half."""
        pool = make()
        before = batch_digests(pool)
        try:
            first, second = pool.halves()
        except RecipeError as error:
            pytest.skip(f"the pool has no halves: {error.message}")
        for half in (first, second):
            _check_copy(pool, half, before, "halves")
        if first.measured_on == second.measured_on:
            fail(
                f"both halves are `measured_on` {first.measured_on!r}.",
                "Say which half each is: figures of two halves are not compared.",
            )
        for task in adaptive_tasks(second):
            chosen, rest = (read(half.adaptive(task.name), Split.TEST) for half in (first, second))
            whole = read(pool.adaptive(task.name), Split.TEST)
            _check_sizes(f"{task.name}: `halves`", chosen, rest, whole)
            if not are_fixed(pool.adaptive(task.name), whole):
                continue
            if have_in_common(chosen, rest):
                _fail_for_overlap(f"{task.name}: `halves`")
            if Split.UNLABELED in splits_of(task, 1):
                if _first(task) != _first(first.adaptive(task.name)):
                    fail(
                        f"{task.name}: the halves have other unlabeled examples.",
                        "Give both halves the same ones.",
                    )
                unlabeled = read(task, Split.UNLABELED)
                if have_in_common(rest, unlabeled):
                    fail(
                        f"{task.name}: unlabeled examples are test examples of the second half.",
                        "UNLABELED holds no example of the second half.",
                    )

    def test_halves_are_measured_apart(
        self, make: Callable[[], TaskPool[Any]], model: nn.Module
    ) -> None:
        """What is measured on two halves is, together, what is measured on all test examples."""
        pool = make()
        try:
            first, second = pool.halves()
        except RecipeError as error:
            pytest.skip(f"the pool has no halves: {error.message}")
        whole, *halves = (each.measure(Subject.of(model)) for each in (pool, first, second))
        looked_at = False
        for name, metrics in whole.items():
            parts = [half[name] for half in halves]
            if not all(isinstance(each, Measured) for each in (metrics, *parts)):
                continue
            looked_at = True
            counts = [len(each.outcomes) for each in (metrics, *parts)]  # type: ignore[attr-defined]
            every = sorted(outcome for part in parts for outcome in part.outcomes)  # type: ignore[attr-defined]
            if counts[0] != sum(counts[1:]) or every != pytest.approx(
                sorted(metrics.outcomes),  # type: ignore[attr-defined]
                rel=1e-3,
                abs=1e-3,
            ):
                fail(
                    f"{name}: {counts[0]} test examples are measured, and {counts[1]} and "
                    f"{counts[2]} in the halves, or with other outcomes.",
                    "Measure each half on its own test examples.",
                )
        if not looked_at:
            pytest.skip("no task returns the outcomes of its examples, as Measured does")


def _held_out(pool: TaskPool[Any]) -> TaskPool[Any]:
    try:
        return pool.holdout()
    except RecipeError as error:
        pytest.skip(f"the pool has no holdout: {error.message}")


def _check_copy(
    pool: TaskPool[Any], half: TaskPool[Any], before: dict[str, str], method: str
) -> None:
    """Fail unless a half is a copy of the pool that says what it is."""
    if list(half.names) != list(pool.names):
        fail(f"`{method}` has the tasks {list(half.names)}.", "Keep the tasks and their order.")
    if batch_digests(pool) != before:
        fail(f"`{method}` changes the pool.", "Change a copy, copy.copy(self), and return it.")
    if not half.measured_on or half.measured_on == pool.measured_on:
        fail(
            f"`{method}` is `measured_on` {half.measured_on!r}.",
            "Say in words which test examples are measured: 'a half of the test examples'.",
        )
    if half.transductive:
        fail(f"`{method}` is `transductive`.", "Set `transductive = False` on the copy.")
    for name in pool.names:
        whole = pool.identity(name)
        if whole is not None and half.identity(name) == whole:
            fail(
                f"{name}: `{method}` has the `identity` of all test examples.",
                "Let `identity` say which half is measured: figures are remembered by it.",
            )


def _fail_for_overlap(where: str) -> NoReturn:
    fail(
        f"{where} gives halves that share examples.",
        "Draw one permutation of the test examples and cut it in the middle.",
    )


def _check_sizes(where: str, one: Examples, other: Examples, whole: Examples) -> None:
    together = len(one) + len(other)
    if together < len(whole) or (whole.is_whole and together > len(whole)):
        fail(
            f"{where} gives {len(one)} and {len(other)} examples, of {len(whole)} test examples.",
            "Give every test example to one of the two halves.",
        )
    if min(len(one), len(other)) * 5 < len(whole):
        fail(
            f"{where} gives parts of {len(one)} and {len(other)} examples.",
            "Cut the test examples in the middle.",
        )


def _first(task: AdaptiveTask) -> tuple[str, ...]:
    """Return the keys of the first unlabeled batch."""
    return keys_of(draw(task, Split.UNLABELED, 1))
