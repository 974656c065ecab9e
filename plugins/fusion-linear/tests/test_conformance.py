"""What every algorithm keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_core.testing import AlgorithmSuite
from fusion_linear import plugin

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec


class TestLinearMethods(AlgorithmSuite):
    @pytest.fixture(params=plugin.fusion_register_algorithms(), ids=lambda spec: spec.name)
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        found: AlgorithmSpec = request.param
        return found
