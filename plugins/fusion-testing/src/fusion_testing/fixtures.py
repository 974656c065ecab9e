"""Fixtures for authors' own tests; pytest loads them wherever fusion-testing is installed.

Every session of such an environment imports this module, so fixtures import torch on first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from fusion_testing._tasks import TinyTasks
    from pools_checkpoints import CheckpointsPool


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Report an error of a plugin in a check as a failure with advice."""
    from fusion_testing._suite import Suite, advised

    instance = pyfuncitem.instance
    if not (isinstance(instance, Suite) and instance.has_check(pyfuncitem.originalname)):
        return (yield)
    with advised():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Report an error of a plugin in a suite's fixture as a failure with advice."""
    if not fixturedef.func.__module__.startswith(f"{__package__}._"):
        return (yield)
    from fusion_testing._suite import Suite, advised

    if not isinstance(request.instance, Suite):
        return (yield)
    with advised():
        return (yield)


@pytest.fixture
def make_tiny_pool() -> Callable[..., CheckpointsPool]:
    """Return `fusion_testing.tiny_pool`, which makes pools of tiny live models."""
    from fusion_testing._models import tiny_pool

    return tiny_pool


@pytest.fixture
def tiny_tasks() -> TinyTasks:
    """Return three tiny tasks `a`, `b` and `c`, one per expert of a tiny pool."""
    from fusion_testing._tasks import TinyTasks

    return TinyTasks()


@pytest.fixture
def run_fuse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `fuse` in an empty directory, in a separate process.

    Example: `run_fuse("list-plugins", "--json").stdout`. It fails the test unless the exit code is
    `code`.
    """

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        program = "from fusion_core.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != code:
            message = f"expected exit code {code}, got exit code {done.returncode}:\n{done.stderr}"
            pytest.fail(message, pytrace=False)
        return done

    return run
