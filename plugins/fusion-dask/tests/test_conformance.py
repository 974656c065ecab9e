"""The conformance suite of fusion-testing, run on the executor `dask`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_dask import plugin
from fusion_testing import ExecutorSuite

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ExecutorSpec


class TestDask(ExecutorSuite):
    @pytest.fixture
    def spec(self) -> ExecutorSpec:
        (spec,) = plugin.fusion_register_executors()
        return spec

    @pytest.fixture
    def options(self, scheduler: Path) -> dict[str, Any]:
        return {"scheduler_file": str(scheduler)}
