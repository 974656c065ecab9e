"""Tests run on one thread each, which tiny models gain by, and with caches of their own."""

import os
import tempfile
from collections import defaultdict
from zlib import crc32

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a child process
_CACHE = tempfile.TemporaryDirectory(prefix="fusion-core-tests-")
for _home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ[_home] = _CACHE.name  # no run reads or writes what its user has measured

#: What the suites vary in a check: kinds of tiny models, how a merge is cut, run and stored.
VARIANTS = {"model", "cut", "workers", "dtype", "size"}

pytest_plugins = ["hub_server"]  # tests/hub_server.py: the fixture `hub`


def pytest_configure() -> None:
    """Pair every method with every stage nightly, and with one of each kind on each push."""
    if "FUSION_NIGHTLY" in os.environ:
        from fusion_testing import AlgorithmSuite

        AlgorithmSuite.every_partner = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try every method in one variant of each check of a suite, in turns; nightly in all."""
    if "FUSION_NIGHTLY" in os.environ:
        return
    variants: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        variants[_check_of(item)].append(item)
    chosen = {id(group[crc32(check.encode()) % len(group)]) for check, group in variants.items()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def _check_of(item: pytest.Item) -> str:
    """Name what a test checks, and of which method; variants of a suite's check have one name."""
    callspec = getattr(item, "callspec", None)
    if item.path.name != "test_conformance.py" or callspec is None:
        return item.nodeid
    own = {name: index for name, index in callspec.indices.items() if name not in VARIANTS}
    return f"{item.nodeid.partition('[')[0]} {own!r}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another has measured."""
    for home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(home, str(tmp_path_factory.mktemp("cache")))
