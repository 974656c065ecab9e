"""Tests run on one thread each, which tiny models gain by, and with caches of their own."""

import os
import tempfile
from zlib import crc32

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a child process
_CACHE = tempfile.TemporaryDirectory(prefix="fusion-core-tests-")
for _home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ[_home] = _CACHE.name  # no run reads or writes what its user has measured

#: The kinds of tiny models that suites are run on, `fusion_testing.MODELS`.
MODELS = ("mlp", "convolution", "transformer")

pytest_plugins = ["hub_server"]  # tests/hub_server.py: the fixture `hub`


def pytest_configure() -> None:
    """Pair every method with every stage nightly, and with one of each kind on each push."""
    if "FUSION_NIGHTLY" in os.environ:
        from fusion_testing import AlgorithmSuite

        AlgorithmSuite.every_partner = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try every method in every check on one kind of tiny model, in turns; nightly on all."""
    if "FUSION_NIGHTLY" in os.environ:
        return
    left_out = [item for item in items if not _is_its_turn(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _is_its_turn(item)]


def _is_its_turn(item: pytest.Item) -> bool:
    """Tell whether a check of a suite is tried on this kind of model, which its name decides."""
    model = getattr(item, "callspec", None) and item.callspec.params.get("model")
    if item.path.name != "test_conformance.py" or model not in MODELS:
        return True
    check = item.nodeid.replace(model, "")
    return MODELS[crc32(check.encode()) % len(MODELS)] == model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another has measured."""
    for home in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(home, str(tmp_path_factory.mktemp("cache")))
