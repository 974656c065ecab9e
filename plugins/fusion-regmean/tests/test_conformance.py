"""Run the conformance suites on every merge and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_regmean import plugin
from fusion_testing import AlgorithmSuite, CalibrationSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}
MERGES = [name for name, spec in SPECS.items() if spec.stage == "merge"]


class TestMerges(AlgorithmSuite):
    @pytest.fixture(params=MERGES)
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"samples": 12}


class TestFeatCal(CalibrationSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["featcal"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"samples": 12}
