"""What every pool keeps, checked by the suites of fusion-core."""

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
        (found,) = plugin.fusion_register_model_pools()
        return found

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": PAIR}


class TestMini8Tasks(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        (found,) = plugin.fusion_register_task_pools()
        return found

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": PAIR, "limit": 60}
