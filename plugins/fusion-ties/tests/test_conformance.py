"""What every algorithm keeps, checked by the suites of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.testing import AlgorithmSuite, TransformSuite
from fusion_ties import plugin

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestTies(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["ties"]

    @pytest.fixture(params=["paper", "mergekit"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {
            "paper": {},
            "mergekit": {"scope": "tensor", "zero_sign": "positive", "density": 0.5},
        }[request.param]


class TestTrim(TransformSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["trim"]


class TestElect(TransformSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["elect"]
