"""The conformance suites, run on mini8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_testing import ModelPoolSuite, TaskPoolSuite
from pools_mini import plugin

if TYPE_CHECKING:
    from fusion_core import ModelPoolSpec, TaskPoolSpec

PAIR = ["optdigits", "shapes"]


class TestMini8Pool(ModelPoolSuite):
    @pytest.fixture
    def spec(self) -> ModelPoolSpec:
        (spec,) = plugin.fusion_register_model_pools()
        return spec

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": PAIR}


class TestMini8Tasks(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        (spec,) = plugin.fusion_register_task_pools()
        return spec

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": PAIR, "limit": 60}
