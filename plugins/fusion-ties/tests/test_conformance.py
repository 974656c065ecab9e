"""What every algorithm keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.testing import AlgorithmSuite
from fusion_ties import plugin

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec


class TestTies(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        (found,) = plugin.fusion_register_algorithms()
        return found

    @pytest.fixture(params=["paper", "mergekit"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {
            "paper": {},
            "mergekit": {"scope": "tensor", "zero_sign": "positive", "density": 0.5},
        }[request.param]
