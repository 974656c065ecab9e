"""What every method and stage keeps, checked by the suites of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.testing import AlgorithmSuite, CalibrationSuite, TransformSuite
from fusion_linear import plugin

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


def of_stage(stage: str) -> list[str]:
    return [name for name, spec in SPECS.items() if spec.stage == stage]


class TestMerges(AlgorithmSuite):
    @pytest.fixture(params=[name for name in of_stage("merge") if name != "passthrough"])
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]


class TestNuslerpOfLines(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["nuslerp"]

    @pytest.fixture(params=["row", "column"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"mode": request.param}


class TestPassthrough(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["passthrough"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"model": "a"}

    @pytest.fixture
    def experts(self) -> int:
        return 1  # what is not copied is not looked at


class TestTransforms(TransformSuite):
    @pytest.fixture(params=of_stage("transform"))
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]


class TestCalibrations(CalibrationSuite):
    @pytest.fixture(params=of_stage("calibrate"))
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]
