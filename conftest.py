"""Tests run on one thread each, which tiny models gain by, and with caches of their own."""

import os
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a child process
_CACHE = tempfile.TemporaryDirectory(prefix="fusion-core-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # no run reads or writes what its user has measured

pytest_plugins = ["hub_server"]  # tests/hub_server.py: the fixture `hub`


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another has measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
