"""The conformance suites of fusion-testing, run on the methods of this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_adamerging import plugin
from fusion_testing import AlgorithmSuite, CalibrationSuite, TinyTasks

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestAdaMerging(AlgorithmSuite):
    @pytest.fixture(params=["adamerging", "symerge"])
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]

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


class WithFeatures(TinyTasks):
    """Tiny tasks whose heads all read features; without names in between, every second would."""

    def __init__(self, names: list[str]) -> None:
        super().__init__([part for name in names for part in (f"no {name}", name)])
        self.names = tuple(names)


class TestSurgery(CalibrationSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["surgery"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"steps": 3, "batch_size": 4, "examples": 8}

    @pytest.fixture
    def tasks(self, experts: int) -> WithFeatures:
        return WithFeatures([chr(ord("a") + number) for number in range(experts)])
