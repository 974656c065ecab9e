"""What every algorithm keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_adamerging import plugin
from fusion_core.testing import AlgorithmSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec


class TestAdaMerging(AlgorithmSuite):
    @pytest.fixture(params=plugin.fusion_register_algorithms(), ids=lambda spec: spec.name)
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        found: AlgorithmSpec = request.param
        return found

    @pytest.fixture(params=["layer", "task"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"granularity": request.param, "steps": 3, "batch_size": 4}
