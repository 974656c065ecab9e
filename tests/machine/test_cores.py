"""Work side by side."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
import threading

import pytest
import torch

from fusion_core.weights.merging.execution import Threads, map_on_cores


def test_results_come_in_order_from_threads_that_use_one_core() -> None:
    main = threading.get_ident()

    def work(unit: int) -> tuple[int, int, bool]:
        return unit, torch.get_num_threads(), threading.get_ident() != main

    before = torch.get_num_threads()
    assert list(map_on_cores(work, iter(range(50)))) == [(unit, 1, True) for unit in range(50)]
    assert torch.get_num_threads() == before


def test_units_are_taken_only_a_few_ahead() -> None:
    taken = itertools.count()
    results = map_on_cores(lambda unit: unit, (next(taken) for _ in range(1000)))
    assert next(results) == 0
    assert next(taken) < 100
    results.close()


def test_an_error_is_raised_unchanged() -> None:
    def work(unit: int) -> int:
        return 1 // (unit - 5)

    with pytest.raises(ZeroDivisionError):
        list(map_on_cores(work, range(100)))


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_freed_memory_is_retained_for_reuse() -> None:
    program = """
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage
import torch
from fusion_core.machine.memory import retain_freed_memory
from fusion_core.weights.merging.execution import map_on_cores

def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(8):
        list(map_on_cores(abs, [1, 2]))
        blocks = [torch.ones(2**21) for _ in range(24)]
    return getrusage(RUSAGE_SELF).ru_minflt - before

with retain_freed_memory():
    faults()
    kept = min(faults() for _ in range(3))  # the system may take idle memory back in between
print(kept, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    retained, returned = map(int, done.stdout.split())
    assert retained * 4 < returned


def test_the_switch_interval_is_restored_in_any_order() -> None:
    before = sys.getswitchinterval()
    first, second = Threads(1), Threads(1)
    assert sys.getswitchinterval() < before
    first.shutdown()
    first.shutdown()
    assert sys.getswitchinterval() < before
    second.shutdown()
    assert sys.getswitchinterval() == before
