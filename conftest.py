"""Tests run on one thread each, which tiny models gain by, and with caches of their own."""

import gc
import os
import sys
import tempfile
from collections import defaultdict
from itertools import count
from zlib import crc32

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a child process
# Modules are compiled once, whatever the shell says: tests start hundreds of processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Tests end processes, not the machine: what they write need not reach the disk.
os.fsync = os.fdatasync = os.fstat  # type: ignore[assignment]
_CACHE = tempfile.TemporaryDirectory(prefix="fusion-core-tests-")
_NUMBERS = count()
for _home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ[_home] = _CACHE.name  # no run reads or writes what its user has measured

#: Arguments that a suite varies within a check: the tiny model, and how a merge is cut and stored.
VARIANTS = {"model", "cut", "workers", "dtype", "size"}
#: On each push, a check of a suite for methods runs on one in 24 of them, in one variant.
METHODS = 24
#: On each push, every check of a suite for pools runs on one in 24 pools, and every check of a
#: suite for formats on one in 24 formats.
POOLS = 24

pytest_plugins = ["hub_server"]  # tests/hub_server.py: the fixture `hub`


def pytest_configure() -> None:
    """Pair every method with every stage nightly, and with one of each kind on each push."""
    gc.disable()  # nothing that is imported and collected becomes garbage
    if "FUSION_NIGHTLY" in os.environ:
        from fusion_testing import AlgorithmSuite

        AlgorithmSuite.every_partner = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the cases that run on each push; with FUSION_NIGHTLY set, all of them run."""
    if "FUSION_NIGHTLY" in os.environ:
        return
    cases: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if check := _check_of(item):
            cases[check].append(item)
    selected = {
        id(item)
        for (check, share), group in cases.items()
        for item in group[crc32(check.encode()) % min(share, len(group)) :: share]
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in selected])
    items[:] = [item for item in items if id(item) in selected]


def pytest_collection_finish() -> None:
    """Exempt what is imported and collected from garbage collection, which tests often ask for."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _check_of(item: pytest.Item) -> tuple[str, int] | None:
    """Name the check that a test is one case of, and say that one in so many cases runs.

    `@pytest.mark.sampled(3)` runs one in three cases of a test. A check of a suite for pools runs
    on one in `POOLS` pools. A check of a suite for methods runs in one variant,
    for one in `METHODS` methods; None if the method has no turn.
    """
    function = item.nodeid.partition("[")[0]
    if mark := item.get_closest_marker("sampled"):
        return function, mark.args[0]
    suites = {base.__name__ for base in getattr(getattr(item, "cls", None), "__mro__", ())}
    for suite in suites & {"ModelPoolSuite", "TaskPoolSuite", "FormatSuite"}:
        return f"{suite} {function.rpartition('::')[2]}", POOLS
    callspec = getattr(item, "callspec", None)
    if item.path.name != "test_conformance.py" or callspec is None:
        return item.nodeid, 1
    fixed = {name: index for name, index in callspec.indices.items() if name not in VARIANTS}
    check = f"{function} {fixed!r}"
    has_turn = crc32(check.encode()) % METHODS == 0 or len(fixed) == 0
    return (check, sys.maxsize) if has_turn else None


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another has measured. A directory is made only if it is used."""
    for home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(home, f"{_CACHE.name}/{next(_NUMBERS)}")
