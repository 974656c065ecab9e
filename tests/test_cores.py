"""Work side by side."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from fusion_core.weights.execution import on_cores


def test_results_come_in_order_from_threads_that_use_one_core() -> None:
    main = threading.get_ident()

    def work(unit: int) -> tuple[int, int, bool]:
        return unit, torch.get_num_threads(), threading.get_ident() != main

    before = torch.get_num_threads()
    assert list(on_cores(work, iter(range(50)))) == [(unit, 1, True) for unit in range(50)]
    assert torch.get_num_threads() == before


def test_units_are_taken_only_a_few_ahead() -> None:
    taken = itertools.count()
    results = on_cores(lambda unit: unit, (next(taken) for _ in range(1000)))
    assert next(results) == 0
    assert next(taken) < 100
    results.close()


def test_an_error_comes_out_as_it_is() -> None:
    def work(unit: int) -> int:
        return 1 // (unit - 5)

    with pytest.raises(ZeroDivisionError):
        list(on_cores(work, range(100)))
