"""What every algorithm keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_adamerging import plugin
from fusion_core.testing import AlgorithmSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec


SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestAdaMerging(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["adamerging"]

    @pytest.fixture(params=["layer", "task"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"granularity": request.param, "steps": 3, "batch_size": 4}


class TestAdaRank(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["adarank"]

    @pytest.fixture(params=[1.0, 0.3])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"rank": request.param, "steps": 3, "lr": 0.07, "batch_size": 4}
